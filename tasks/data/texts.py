"""Examples from the rows of a table: labelled texts, or prompts with responses."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.data.examples import PromptExamples, TaskError, TextExamples
from tasks.data.labels import class_labels, in_rows, number_labels
from tasks.data.tables import Table, codes, num_rows
from tasks.settings import Kind

_PAIR = ("prompt", "response")  # or prompt and completion, TRL's names


def table_examples(
    table: Table,
    *,
    source: str,
    text_columns: Sequence[str],
    label_column: str,
    kind: Kind,
    labels: Sequence[Any] | None = None,
    group_column: str | None = None,
    hint: str = "",
) -> tuple[TextExamples, tuple[Any, ...]]:
    """Turn a table, called ``source`` in errors, into labelled texts and their label values (none of a regression).

    One or two ``text_columns`` hold text, ``label_column`` whole numbers or names, or any number for a regression, and
    ``group_column`` who wrote an example. ``labels`` and ``hint`` are those of `class_labels`. `TaskError` if a column
    or a label is missing or of the wrong type.
    """
    if not 1 <= len(text_columns) <= 2:
        raise TaskError(
            f"task.text_columns: expected one or two of {list(table)} in {source}, found {list(text_columns)}"
            + ("" if label_column in table else f"; task.label_column: found {label_column!r}")
        )
    _require_columns(table, source, text_columns, {"label_column": label_column, "group": group_column})
    for column in text_columns:
        missing = [row for row, value in enumerate(table[column]) if value is None]
        if missing:
            found = f"found {len(missing)} missing ({in_rows(missing)})"
            raise TaskError(f"{source}, column {column!r}: expected a text in every row, {found}")
    texts = [tuple(str(value) for value in table[column]) for column in text_columns]
    where = f"{source}, column {label_column!r}"
    values: tuple[npt.NDArray[np.generic], tuple[Any, ...]]
    if kind == "regression":
        values = number_labels(table[label_column], where), ()
    else:
        values = class_labels(table[label_column], where, labels, hint)
    groups = None if group_column is None else codes(table[group_column])
    return TextExamples(texts[0], values[0], texts[1] if len(texts) > 1 else None, groups), values[1]


def table_prompts(
    table: Table,
    *,
    source: str,
    columns: Sequence[str] | None = None,
    label_column: str | None = None,
    group_column: str | None = None,
) -> PromptExamples:
    """Turn the rows of a table, called ``source`` in errors, into prompts and responses, from these ``columns``.

    A Dirichlet partition skews by ``label_column``; None puts every example into one class. `TaskError` if a column is
    missing, a cell is no text, or a response is empty.
    """
    wanted = tuple(columns or _PAIR)
    if wanted == _PAIR and "response" not in table and "completion" in table:
        wanted = ("prompt", "completion")
    if len(wanted) != 2:
        raise TaskError(f"task.text_columns: expected the columns of prompt and response, found {list(wanted)}")
    _require_columns(table, source, wanted, {"label_column": label_column, "group_column": group_column})
    for column in wanted:
        for row, value in enumerate(table[column]):
            if not isinstance(value, str):
                raise TaskError(f"{source}, column {column!r}, row {row + 1}: expected a text, found {value!r}")
    prompts, responses = (tuple(table[column]) for column in wanted)
    empty = next((row for row, text in enumerate(responses) if not text.strip()), None)
    if empty is not None:
        raise TaskError(
            f"{source}, column {wanted[1]!r}: expected a response in every row, found none in row {empty + 1}"
        )
    labels = np.zeros(len(prompts), dtype=np.int64) if label_column is None else codes(table[label_column])
    return PromptExamples(prompts, labels, responses, None if group_column is None else codes(table[group_column]))


def _require_columns(table: Table, source: str, texts: Sequence[str], others: dict[str, str | None]) -> None:
    """Refuse a table without rows, or without one of the columns that the keys of the configuration name."""
    named = [*(("text_columns", column) for column in texts), *others.items()]
    missing = [(key, wanted) for key, wanted in named if wanted is not None and wanted not in table]
    if missing:
        said = [f"task.{key}: found {wanted!r}" for key, wanted in missing]
        said[0] = said[0].replace("found", f"expected one of the columns {list(table)} of {source}, found", 1)
        raise TaskError("; ".join(said))
    if not num_rows(table):
        raise TaskError(f"{source}: expected at least one example, found an empty table")
