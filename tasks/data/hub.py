"""Data sets by name, of the Hugging Face hub or as `datasets.save_to_disk` wrote them, as plain tables."""

from pathlib import Path
from typing import Any

from tasks.data.examples import TaskError
from tasks.data.tables import Table
from tasks.settings import told_as

_TESTS = ("test", "validation", "dev")  # names of splits, the first with labels is the test set


def hub_tables(name: str, label_column: str) -> tuple[Table, Table | None, list[str] | None]:
    """Return the training table, the test table where there is one, and the names of the classes where they are known.

    ``name`` is a folder, or a name of the hub, ``owner/name`` or ``owner/name:configuration``.
    Raises `TaskError` if there is no such data set, no connection to look for it, or no split to train on.
    """
    from datasets import Dataset, DatasetDict, load_dataset, load_from_disk

    if Path(name).is_file():
        raise TaskError(
            f"task.dataset: expected a name or a folder, found the file {name}; use task=tsv task.train_file="
        )
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
