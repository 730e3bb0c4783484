"""Tables from TSV, CSV, JSON and Parquet files and from data sets known by name, as plain columns.

A device reads its table in every process that Flower starts for it, so the common formats are read by Python's own
reader: importing pandas for them takes 66 MiB and half a second.
"""

import csv
import gzip
import sys
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.data.examples import TaskError
from tasks.settings import told_as

Table = dict[str, list[Any]]  # column -> one value per row; None where it is missing
_TESTS = ("test", "validation", "dev")  # names of splits, the first with labels is the test set


def read_table(path: str | Path) -> Table:
    """Read a table of the format that its name says: tsv, csv, jsonl, json (all of them also gz) or parquet.

    TSV is as GLUE writes it: a tab always separates, a quotation mark is an ordinary character. In TSV and CSV every
    value is a text: "007" and "NA" are words. `TaskError` if the file is missing, of another format, or broken.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise TaskError(f"task file: expected a file at {str(path)!r}, found none")
    name = file.name.lower().removesuffix(".gz")
    with told_as(TaskError, f"task file {str(path)!r} cannot be read"):
        try:
            if name.endswith((".tsv", ".csv")):
                return _read_delimited(file, tabs=name.endswith(".tsv"))
            if name.endswith((".jsonl", ".json", ".parquet")):
                import pandas as pd

                if name.endswith(".parquet"):
                    return plain_table(pd.read_parquet(file))
                return plain_table(pd.read_json(file, lines=name.endswith(".jsonl"), dtype=False, convert_dates=False))
        except UnicodeDecodeError as error:
            found, other = ("UTF-16", "UTF-16") if b"\0" in error.object else ("another encoding", "LATIN1")
            mend = f"save it as UTF-8, e.g. iconv -f {other} -t UTF-8 OLD > NEW"
            raise ValueError(f"expected UTF-8, found {found}; {mend}") from error
    raise TaskError(f"task file: expected .tsv, .csv, .jsonl, .json (.gz too) or .parquet, found {file.name!r}")


def hub_tables(name: str, label_column: str) -> tuple[Table, Table | None, list[str] | None]:
    """Return the training table, the test table where there is one, and the names of the classes where they are known.

    ``name`` is a folder, or a name of the hub, ``owner/name`` or ``owner/name:configuration``.
    """
    from datasets import Dataset, DatasetDict, load_dataset, load_from_disk

    if Path(name).is_file():
        mend = "use task=tsv task.train_file="
        raise TaskError(f"task.dataset: expected a name or folder, found the file {name}; {mend}")
    saved = any((Path(name) / file).is_file() for file in ("dataset_dict.json", "state.json"))
    wanted = "a data set of the hub (with a connection, or already downloaded) or a folder that datasets.save_to_disk"
    with told_as(TaskError, f"task.dataset: cannot load {name!r}", f"; expected {wanted} wrote"):
        found: Any = load_from_disk(name) if saved else load_dataset(*name.split(":"))
    splits = {"train": found} if isinstance(found, Dataset) else found
    if not isinstance(splits, dict | DatasetDict) or "train" not in splits:
        raise TaskError(f"task.dataset: expected a split named train in {name!r}, found {', '.join(splits)}")
    names = getattr(splits["train"].features.get(label_column), "names", None)

    def table(split: Any) -> Table:
        columns: Table = split.to_dict()
        if names and label_column in columns:  # -1: kept back by whoever published it
            columns[label_column] = [names[k] if k >= 0 else None for k in columns[label_column]]
        return columns

    tests = (table(splits[split]) for split in _TESTS if split in splits)
    labelled = (part for part in tests if any(value is not None for value in part.get(label_column, [0])))
    return table(splits["train"]), next(labelled, None), names


def plain_table(frame: Any) -> Table:
    """Return the columns of a pandas table."""
    cells = frame.astype(object).where(frame.notna(), None)
    return {str(name): values for name, values in cells.to_dict("list").items()}


def num_rows(table: Table) -> int:
    """Rows of a table."""
    return len(next(iter(table.values()), ()))


def codes(column: Sequence[Any]) -> npt.NDArray[np.int64]:
    """Number the distinct values of a column in their order as texts."""
    return np.unique([str(value) for value in column], return_inverse=True)[1].astype(np.int64)


def _refuse_other_separator(header: list[str], wanted: str) -> None:
    for separator, name in (("\t", "tabs"), (",", "commas"), (";", "semicolons")):
        if len(header) == 1 and separator in header[0]:
            mend = f"save it with {wanted} or name it {'.csv' if name == 'commas' else '.tsv'}"
            raise ValueError(f"expected columns separated by {wanted}, found {name} in its first line; {mend}")


def _read_delimited(file: Path, *, tabs: bool) -> Table:
    csv.field_size_limit(sys.maxsize)  # a long document is no error
    options: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tabs else {"strict": True}
    opened: Any = gzip.open if file.name.lower().endswith(".gz") else open
    with opened(file, "rt", encoding="utf-8-sig", newline="") as handle:
        reader = csv.reader(handle, **options)
        header = next(reader, [])
        if not header:
            raise ValueError("expected a first line with the names of the columns, found none")
        if "\0" in header[0]:  # UTF-16 without a mark at its beginning
            raise UnicodeDecodeError("utf-8", b"\0", 0, 1, "a text has no such character")
        _refuse_other_separator(header, "tabs" if tabs else "commas")
        twice = sorted({name for name in header if name and header.count(name) > 1})
        if twice:
            raise ValueError(f"expected columns with different names, found {twice[0]!r} twice")
        rows = []
        for row in filter(None, reader):  # blank lines do not count
            if len(row) > len(header):  # never to be cut: the text holds a separator
                raise ValueError(f"line {reader.line_num}: expected {len(header)} fields, found {len(row)}")
            rows.append(row)
    return {name: cells for name, *cells in zip_longest(header, *rows)}
