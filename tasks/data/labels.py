"""Labels of a table's rows: which values are classes and in which order, which are numbers, which are none."""

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.data.examples import TaskError

Label = int | str
_WHOLE = re.compile(r"0|-?[1-9][0-9]{0,999}")  # only what Python would write for the number: 007, +7 and 7.0 are texts
_UNLABELLED = ("", "-", "?", "nan")  # what tables hold in rows without a label
_FEW_CLASSES = 10  # more than this, and more than half of the rows: numbers or identifiers, hardly classes


def in_rows(rows: Sequence[int]) -> str:
    """Return where something was found, e.g. "rows 2, 5, 9"; the first row below the header is row 1."""
    named = ", ".join(str(row + 1) for row in rows[:5])
    return f"row{'s' * (len(rows) > 1)} {named}" + (f" and {len(rows) - 5} more" if len(rows) > 5 else "")


def label_values(column: Sequence[Any]) -> list[Label]:
    """Return whole numbers as int, all else as text; texts that all end in ".0" went through a table of floats."""
    values = [_label_value(value) for value in column]
    texts = [value.removesuffix(".0") for value in values if isinstance(value, str) and value.endswith(".0")]
    if values and len(texts) == len(values) and all(_WHOLE.fullmatch(text) for text in texts):
        return [int(text) for text in texts]
    return values


def _label_value(value: Any) -> Label:
    if isinstance(value, (int, float, np.number)) and float(value).is_integer():
        return int(value)
    text = "" if value is None else str(value).strip()
    return int(text) if _WHOLE.fullmatch(text) else text


def class_labels(
    column: Sequence[Any], where: str, known: Sequence[Any] | None = None, hint: str = ""
) -> tuple[npt.NDArray[np.int64], tuple[Label, ...]]:
    """Number the classes of a column: class indices, shape (rows,), and the label values in the order of their indices.

    ``known`` are label values in that order; None takes the sorted values found. ``hint`` says what to do about others.
    """
    order = None if known is None else tuple(_label_value(value) for value in known)
    values = [_label_value(value) for value in column]
    if order is None or not set(values) <= set(order):
        values = label_values(column)
    _refuse_unlabelled([str(value) for value in values], where, [str(value) for value in order or ()])
    if order is None:
        _refuse_what_is_no_class(values, where)
        order = tuple(sorted(set(values), key=lambda value: (isinstance(value, str), value)))
    elif len(set(order)) < len(order):
        raise TaskError(f"task.labels: expected different labels, found {list(known or ())}")
    index = {value: i for i, value in enumerate(order)}
    unknown = min((str(value) for value in values if value not in index), default=None)
    if unknown is not None:
        rows = [row for row, value in enumerate(values) if str(value) == unknown]
        advice = " -1 often marks a row without a label: remove these rows" if unknown == "-1" else hint
        found = f"found {unknown!r} ({in_rows(rows)})" + (f";{advice}" if advice else "")
        raise TaskError(f"{where}: expected the training labels {list(order)}, {found}")
    if len(order) < 2:
        raise TaskError(f"{where}: expected at least two classes, found only {list(order)}")
    return np.array([index[value] for value in values], dtype=np.int64), order


def number_labels(column: Sequence[Any], where: str) -> npt.NDArray[np.float32]:
    """Return the values of a regression, shape (rows,)."""
    _refuse_unlabelled(["" if value is None else str(value).strip() for value in column], where, _UNLABELLED[1:])
    with np.errstate(over="ignore"):
        numbers = np.array([_number(value) for value in column]).astype(np.float32)
    wrong = np.flatnonzero(~np.isfinite(numbers))
    if wrong.size:
        found = f"found {str(column[wrong[0]])!r} ({in_rows(wrong.tolist())})"
        raise TaskError(f"{where}: expected numbers for a regression, finite and below 3e38, {found}; mend these rows")
    return numbers


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _refuse_unlabelled(texts: list[str], where: str, allowed: Sequence[str]) -> None:
    if none := [row for row, text in enumerate(texts) if text in _UNLABELLED and text not in allowed]:
        also = "".join(f" or {mark!r}" for mark in sorted({texts[row] for row in none} - {""}))
        found = f"{len(none)} empty{also} ({in_rows(none)})"
        raise TaskError(f"{where}: expected a label in every row, found {found}; remove these rows")


def _refuse_what_is_no_class(values: list[Label], where: str) -> None:
    """Refuse rows that are marked as unlabelled by -1, and columns of numbers or identifiers."""
    found = set(values)
    if -1 in found and found != {-1, 1} and all(isinstance(value, int) and value >= -1 for value in found):
        rows = [row for row, value in enumerate(values) if value == -1]
        unlabelled = f"{len(rows)} times -1 ({in_rows(rows)}), which often marks a row without one; remove these rows"
        classes = ",".join(map(str, sorted(found)))
        mend = f"or if -1 is a class say task.labels=[{classes}]"
        raise TaskError(f"{where}: expected a label in every row, found {unlabelled}, {mend}")
    numbers = [_number(value) for value in values]
    broken = [row for row, number in enumerate(numbers) if not number.is_integer()]
    if broken and all(map(math.isfinite, numbers)):
        wrong = f"expected classes, found numbers such as {values[broken[0]]} ({in_rows(broken[:1])})"
    elif len(found) > max(_FEW_CLASSES, len(values) // 2):
        wrong = f"expected classes that several rows share, found {len(found)} different labels in {len(values)} rows"
    else:
        return
    mend = "to predict numbers say task.kind=regression, else list the classes in task.labels"
    raise TaskError(f"{where}: {wrong}; {mend}")
