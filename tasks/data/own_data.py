"""A device's own examples: a file of its owner is the whole partition, nothing of it is shared or held out by the server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tasks.data.examples import TaskError, flip_labels, take
from tasks.data.load import TaskData, default_metrics, guess_text
from tasks.data.tables import read_table
from tasks.data.texts import GLUE, glue_labels, table_examples
from tasks.settings import Kind


def load_own_data(
    name: str,
    *,
    train_file: str,
    seed: int,
    text_columns: Sequence[str] | None = None,
    label_column: str | None = None,
    kind: str | None = None,
    labels: Sequence[Any] | None = None,
    train_limit: int | None = None,
    label_noise: float = 0.0,
) -> TaskData:
    """Load the file of one device as its training data.

    Parameters
    ----------
    name : str
        Task of the federation, ``tsv`` or a GLUE name.
    train_file : str
        The device's table.
    seed : int
        Seed of the subsample and the label noise.
    text_columns, label_column, kind, train_limit, label_noise
        As in `tasks.data.load.load_task`.
    labels : sequence or None
        Label values in the order of their indices, the same for the whole federation; GLUE tasks know their own.

    Returns
    -------
    TaskData
        Everything in ``train``; validation and test are empty.

    Raises
    ------
    TaskError
        If the task has no files, or a classification's labels are not given: a device that sees only some of them would
        number its classes differently from the others.
    """
    glue = GLUE.get(name)
    if name != "tsv" and glue is None:
        raise TaskError(
            f"a device with its own file (task.train_file) needs task=tsv or a GLUE task, found task={name}"
        )
    chosen: Kind = "regression" if (kind or (glue.kind if glue else "")) == "regression" else "classification"
    column, hint = label_column or "label", ""
    table = read_table(train_file)
    if glue and glue.kind == chosen == "classification" and column in table:
        labels, hint = glue_labels(name, table[column], labels)
    if chosen == "classification" and not labels and column in table:
        raise TaskError(
            "devices with their own files need task.labels, the list of all label values, e.g. task.labels=[no,yes]"
        )
    train, values = table_examples(
        table,
        source=train_file,
        text_columns=tuple(text_columns or (glue.text_columns if glue else guess_text(table))),
        label_column=column,
        kind=chosen,
        labels=labels or None,
        hint=hint,
    )
    train = take(train, train_limit, np.random.default_rng([seed, 2]))
    train = (
        flip_labels(train, label_noise, len(values) or 1, np.random.default_rng([seed, 4])) if label_noise else train
    )
    metrics = glue.metrics if glue and glue.kind == chosen else default_metrics(chosen)
    return TaskData(name, train, train.subset([]), train.subset([]), chosen, tuple(str(v) for v in values), metrics)
