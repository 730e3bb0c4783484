"""Labelled texts from tables and from the GLUE collection.

References
----------
.. [Wang2019] Wang et al., GLUE: A Multi-Task Benchmark and Analysis Platform for Natural Language Understanding, ICLR
2019.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.data.examples import TaskError, TextExamples
from tasks.data.labels import class_labels, in_rows, label_values, number_labels
from tasks.data.tables import Table, codes, num_rows, plain_table
from tasks.settings import Kind, one_line


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
    hint: str = "",
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
    hint : str
        What to do about a label that is not known.

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
    for key, wanted in [
        *(("text_columns", c) for c in text_columns),
        ("label_column", label_column),
        ("group", group_column),
    ]:
        if wanted is not None and wanted not in columns:
            raise TaskError(f"task.{key}: expected one of the columns {columns} of {source}, found {wanted!r}")
    if not num_rows(table):
        raise TaskError(f"{source}: expected at least one example, found an empty table")
    for column in text_columns:
        missing = [row for row, value in enumerate(table[column]) if value is None]
        if missing:
            found = f"found {len(missing)} missing ({in_rows(missing)})"
            raise TaskError(f"{source}, column {column!r}: expected a text in every row, {found}")
    texts = [tuple(str(value) for value in table[column]) for column in text_columns]
    where = f"{source}, column {label_column!r}"
    values: npt.NDArray[np.generic]
    names: tuple[Any, ...] = ()
    if kind == "regression":
        values = number_labels(table[label_column], where)
    else:
        values, names = class_labels(table[label_column], where, labels, hint)
    groups = None
    if group_column is not None:
        groups = codes(table[group_column])
    return TextExamples(texts[0], values, texts[1] if len(texts) > 1 else None, groups), names


def glue_labels(name: str, column: Sequence[Any], labels: Sequence[Any] | None) -> tuple[Sequence[Any], str]:
    """Return the labels of a GLUE classification in the order that its metrics count on, and what to do about others.

    Parameters
    ----------
    name : str
        One of `GLUE`, with classes.
    column : sequence
        The labels found.
    labels : sequence or None
        The user's own order, kept where it does not turn GLUE's round.

    Raises
    ------
    TaskError
        If there are not as many labels as GLUE's, or the same ones in another order.
    """
    names = GLUE[name].label_names
    orders: list[tuple[Any, ...]] = [names, tuple(range(len(names)))]
    hint = f" or use the names {', '.join(names)}; task=tsv takes other classes"
    if labels is None:
        found = set(label_values(column))
        return next((order for order in orders if found <= set(order)), orders[1]), hint
    given = tuple(label_values(labels))
    if len(given) != len(names):
        raise TaskError(f"task {name}: expected {len(names)} classes, found {len(given)} in task.labels; use task=tsv")
    for order in orders:
        if set(given) == set(order) and given != order:
            right = ",".join(map(str, order))
            raise TaskError(f"task {name}: expected task.labels=[{right}] in this order, which its metrics count on")
    return given, hint


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
