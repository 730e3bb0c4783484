"""Labelled texts from tables and from the GLUE collection.

References
----------
.. [Wang2019] Wang et al., GLUE: A Multi-Task Benchmark and Analysis Platform for Natural Language Understanding, ICLR 2019.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tasks.examples import TaskError, TextExamples
from tasks.settings import Kind
from tasks.table import Table, codes, num_rows, plain_table
from tasks.tokenizer import one_line


@dataclass(frozen=True)
class GlueTask:
    """Columns, labels and official metrics of one GLUE task; the first metric is the primary one."""

    text_columns: tuple[str, ...]
    label_names: tuple[str, ...]
    metrics: tuple[str, ...]
    kind: Kind = "classification"


GLUE = {
    "cola": GlueTask(("sentence",), ("unacceptable", "acceptable"), ("mcc", "accuracy")),
    "sst2": GlueTask(("sentence",), ("negative", "positive"), ("accuracy",)),
    "mrpc": GlueTask(("sentence1", "sentence2"), ("not_equivalent", "equivalent"), ("accuracy", "f1")),
    "rte": GlueTask(("sentence1", "sentence2"), ("entailment", "not_entailment"), ("accuracy",)),
    "qnli": GlueTask(("question", "sentence"), ("entailment", "not_entailment"), ("accuracy",)),
    "stsb": GlueTask(("sentence1", "sentence2"), (), ("pearson", "spearman"), "regression"),
}


def table_examples(
    table: Table,
    *,
    source: str,
    text_columns: Sequence[str],
    label_column: str,
    kind: Kind,
    labels: Sequence[Any] | None = None,
    group_column: str | None = None,
) -> tuple[TextExamples, tuple[Any, ...]]:
    """Turn a table into examples.

    Parameters
    ----------
    table : Table
        One example per row.
    source : str
        What to call the table in errors.
    text_columns : sequence of str
        One or two columns with text.
    label_column : str
        Column with the label: whole numbers or names, or any number for a regression.
    kind : str
        ``classification`` or ``regression``.
    labels : sequence or None
        Known label values in the order of their indices; None takes the sorted values found here.
    group_column : str or None
        Column that says who wrote an example.

    Returns
    -------
    tuple
        The examples, and the label values in the order of their indices (empty for a regression).

    Raises
    ------
    TaskError
        If a column or a label is missing or of the wrong type.
    """
    columns = list(table)
    if not 1 <= len(text_columns) <= 2:
        raise TaskError(f"task.text_columns: expected one or two of {columns} in {source}, found {list(text_columns)}")
    for key, wanted in [*(("text_columns", c) for c in text_columns), ("label_column", label_column), ("group", group_column)]:
        if wanted is not None and wanted not in columns:
            raise TaskError(f"task.{key}: expected one of the columns {columns} of {source}, found {wanted!r}")
    if not num_rows(table):
        raise TaskError(f"{source}: expected at least one example, found an empty table")
    for column in text_columns:
        missing = sum(value is None for value in table[column])
        if missing:
            raise TaskError(f"{source}, column {column!r}: expected a text in every row, found {missing} missing")
    texts = [tuple(str(value) for value in table[column]) for column in text_columns]
    values, names = _labels(table[label_column], f"{source}, column {label_column!r}", kind, labels)
    groups = None
    if group_column is not None:
        groups = codes(table[group_column])
    return TextExamples(texts[0], values, texts[1] if len(texts) > 1 else None, groups), names


def _labels(
    column: list[Any], where: str, kind: Kind, known: Sequence[Any] | None
) -> tuple[np.ndarray[Any, Any], tuple[Any, ...]]:
    """Class indices with the label values, or float values with an empty tuple."""
    missing = sum(value is None or not str(value).strip() for value in column)
    if missing:
        raise TaskError(f"{where}: expected a label in every row, found {missing} empty")
    if kind == "regression":
        try:
            return np.array([float(value) for value in column], dtype=np.float32), ()
        except (TypeError, ValueError) as error:
            raise TaskError(f"{where}: expected numbers for a regression, found {one_line(error)}") from error
    values = [_label_value(value) for value in column]
    names = tuple(sorted(set(values), key=lambda value: (isinstance(value, str), value))) if known is None else tuple(known)
    index = {value: i for i, value in enumerate(names)}
    unknown = sorted({str(value) for value in values if value not in index})
    if unknown:
        raise TaskError(f"{where}: expected the training labels {list(names)}, found {unknown[0]!r}")
    if len(names) < 2:
        raise TaskError(f"{where}: expected at least two classes, found only {list(names)}")
    return np.array([index[value] for value in values], dtype=np.int64), names


def _label_value(value: Any) -> Any:
    """Whole numbers as int whatever the column's type, everything else as text."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return str(value).strip()
    return int(number) if number.is_integer() else str(value)


def load_glue(name: str) -> tuple[Table, Table]:
    """Return GLUE's training and validation tables, through the ``datasets`` library.

    Raises
    ------
    TaskError
        If the collection is neither cached nor reachable.
    """
    import datasets

    try:
        loaded: Any = datasets.load_dataset("nyu-mll/glue", name)
    except Exception as error:  # datasets and its HTTP client raise many types; the user needs one line
        raise TaskError(
            f"task {name}: GLUE is neither cached nor reachable ({one_line(error)}); "
            "give task.train_file and task.validation_file instead"
        ) from error
    return plain_table(loaded["train"].to_pandas()), plain_table(loaded["validation"].to_pandas())
