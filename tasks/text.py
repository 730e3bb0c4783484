"""Labelled texts from TSV, CSV and Parquet files (gzip too) and from the GLUE collection.

References
----------
.. [Wang2019] Wang et al., GLUE: A Multi-Task Benchmark and Analysis Platform for Natural Language Understanding, ICLR 2019.
"""

from __future__ import annotations

import csv
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.examples import TaskError, TextExamples
from tasks.settings import Kind
from tasks.tokenizer import one_line

if TYPE_CHECKING:
    import pandas as pd


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


def read_table(path: str | Path) -> pd.DataFrame:
    """Read a table; the format follows from the name: ``.tsv``, ``.csv``, ``.jsonl`` (each also ``.gz``) or ``.parquet``.

    TSV files are read as GLUE writes them: a tab always separates, a quotation mark is an ordinary character.

    Raises
    ------
    TaskError
        If the file is missing, of another format, or broken.
    """
    import pandas as pd

    file = Path(path).expanduser()
    if not file.is_file():
        raise TaskError(f"task file: expected a file at {str(path)!r}, found none")
    name = file.name.lower().removesuffix(".gz")
    # Everything as text: "007" and "NA" are words here. A row with too many fields must not turn into an index.
    options: dict[str, Any] = {"dtype": str, "keep_default_na": False, "index_col": False, "encoding": "utf-8-sig"}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            if name.endswith(".tsv"):
                table: pd.DataFrame = pd.read_csv(file, sep="\t", quoting=csv.QUOTE_NONE, **options)
                return table
            if name.endswith(".csv"):
                table = pd.read_csv(file, **options)
                return table
            if name.endswith(".jsonl"):
                return pd.read_json(file, lines=True, dtype=False, convert_dates=False)
            if name.endswith(".parquet"):
                return pd.read_parquet(file)
    except Exception as error:  # pandas, gzip and pyarrow each have their own types for a broken file
        raise TaskError(f"task file {str(path)!r} cannot be read: {one_line(error)}") from error
    raise TaskError(f"task file: expected .tsv, .csv, .jsonl (.gz too) or .parquet, found {file.name!r}")


def table_examples(
    table: pd.DataFrame,
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
    table : pandas.DataFrame
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
    columns = [str(column) for column in table.columns]
    if not 1 <= len(text_columns) <= 2:
        raise TaskError(f"task.text_columns: expected one or two of {columns} in {source}, found {list(text_columns)}")
    for key, wanted in [*(("text_columns", c) for c in text_columns), ("label_column", label_column), ("group", group_column)]:
        if wanted is not None and wanted not in columns:
            raise TaskError(f"task.{key}: expected one of the columns {columns} of {source}, found {wanted!r}")
    if table.empty:
        raise TaskError(f"{source}: expected at least one example, found an empty table")
    for column in text_columns:
        missing = int(table[column].isna().sum())
        if missing:
            raise TaskError(f"{source}, column {column!r}: expected a text in every row, found {missing} missing")
    texts = [tuple(str(value) for value in table[column]) for column in text_columns]
    values, names = _labels(table[label_column], f"{source}, column {label_column!r}", kind, labels)
    groups = None
    if group_column is not None:
        groups = np.unique(table[group_column].astype(str).to_numpy(), return_inverse=True)[1].astype(np.int64)
    return TextExamples(texts[0], values, texts[1] if len(texts) > 1 else None, groups), names


def _labels(
    column: pd.Series[Any], where: str, kind: Kind, known: Sequence[Any] | None
) -> tuple[np.ndarray[Any, Any], tuple[Any, ...]]:
    """Class indices with the label values, or float values with an empty tuple."""
    missing = int((column.isna() | (column.astype(str).str.strip() == "")).sum())
    if missing:
        raise TaskError(f"{where}: expected a label in every row, found {missing} empty")
    if kind == "regression":
        try:
            return column.astype(float).to_numpy(dtype=np.float32), ()
        except (TypeError, ValueError) as error:
            raise TaskError(f"{where}: expected numbers for a regression, found {one_line(error)}") from error
    values = [_label_value(value) for value in column.tolist()]
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


def load_glue(name: str) -> tuple[pd.DataFrame, pd.DataFrame]:
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
    return loaded["train"].to_pandas(), loaded["validation"].to_pandas()
