"""Prompts and responses for causal language models: from files, or generated from the intents."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tasks.data.examples import PromptExamples, TaskError, TextExamples
from tasks.data.intents import INTENTS, generate_intents
from tasks.data.tables import Table, codes, num_rows

COLUMNS = ("prompt", "response")
METRICS = ("exact_match", "perplexity")


def generate_prompts(
    *, num_train: int, num_validation: int, num_test: int, seed: int
) -> tuple[PromptExamples, PromptExamples, PromptExamples]:
    """Generate the offline default: commands as prompts, the names of their intents in words as responses.

    Returns
    -------
    tuple of PromptExamples
        Training, validation and test examples of `tasks.data.intents.generate_intents`.
    """
    train, validation, test = generate_intents(
        num_train=num_train, num_validation=num_validation, num_test=num_test, seed=seed
    )
    return _answered(train), _answered(validation), _answered(test)


def _answered(commands: TextExamples) -> PromptExamples:
    responses = tuple(INTENTS[int(label)].replace("_", " ") for label in commands.labels)
    return PromptExamples(commands.texts, commands.labels, responses, commands.groups)


def table_prompts(
    table: Table,
    *,
    source: str,
    columns: Sequence[str] | None = None,
    label_column: str | None = None,
    group_column: str | None = None,
) -> PromptExamples:
    """Turn a table into prompts and responses.

    Parameters
    ----------
    table : Table
        One example per row.
    source : str
        What to call the table in errors.
    columns : sequence of str or None
        The columns of prompts and responses; None means ``prompt`` and ``response``.
    label_column : str or None
        What a Dirichlet partition skews by; None puts every example into one class.
    group_column : str or None
        Column that says who wrote an example.

    Raises
    ------
    TaskError
        If a column is missing, a cell is no text, or a response is empty.
    """
    known = list(table)
    wanted = tuple(columns or COLUMNS)
    if len(wanted) != 2:
        raise TaskError(f"task.text_columns: expected the columns of prompt and response, found {list(wanted)}")
    for key, column in (
        ("text_columns", wanted[0]),
        ("text_columns", wanted[1]),
        ("label_column", label_column),
        ("group_column", group_column),
    ):
        if column is not None and column not in known:
            raise TaskError(f"task.{key}: expected one of the columns {known} of {source}, found {column!r}")
    if not num_rows(table):
        raise TaskError(f"{source}: expected at least one example, found an empty table")
    prompts, responses = (_texts(table, column, source) for column in wanted)
    empty = [row for row, text in enumerate(responses) if not text.strip()]
    if empty:
        raise TaskError(
            f"{source}, column {wanted[1]!r}: expected a response in every row, found none in row {empty[0] + 1}"
        )
    labels = np.zeros(len(prompts), dtype=np.int64) if label_column is None else codes(table[label_column])
    return PromptExamples(prompts, labels, responses, None if group_column is None else codes(table[group_column]))


def _texts(table: Table, column: str, source: str) -> tuple[str, ...]:
    values = table[column]
    for row, value in enumerate(values):
        if not isinstance(value, str):
            raise TaskError(f"{source}, column {column!r}, row {row + 1}: expected a text, found {value!r}")
    return tuple(values)
