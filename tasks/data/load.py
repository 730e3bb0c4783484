"""One entry point to every task: training, validation and test examples with their metrics.

The given validation data (a file, or GLUE's validation split) is the *test* set. The *validation* set, on which rounds
and settings may be selected, is a seeded slice of the training data that is never trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tasks.data.calls import generate_calls
from tasks.data.chat import METRICS as RESPONSE_METRICS
from tasks.data.chat import generate_prompts, table_prompts
from tasks.data.examples import PromptExamples, TaskError, TextExamples, default_holdout, flip_labels, hold_out, take
from tasks.data.intents import INTENTS, generate_intents
from tasks.data.mnist import DIGITS, ImageExamples, load_images
from tasks.data.tables import Table, read_table
from tasks.data.texts import GLUE, glue_labels, load_glue, table_examples
from tasks.settings import Kind

__all__ = ["TASKS", "TaskData", "TaskError", "TextExamples", "load_task"]

TASKS = ("intents", "calls", "instruct", "mnist", "tsv", *sorted(GLUE))
AnyExamples = TextExamples | PromptExamples | ImageExamples


@dataclass(frozen=True)
class TaskData:
    """A task, ready to train and to score.

    Parameters
    ----------
    name : str
        Name of the task.
    train, validation, test : TextExamples, PromptExamples or ImageExamples
        Disjoint; only ``train`` is ever trained on, only ``validation`` may select anything.
    kind : str
        ``classification``, ``regression`` or ``causal``.
    label_names : tuple of str
        Names of the classes; empty for a regression or a causal task.
    metrics : tuple of str
        What `tasks.scoring.metrics.compute_metrics` reports; the first is the primary metric.
    """

    name: str
    train: AnyExamples
    validation: AnyExamples
    test: AnyExamples
    kind: Kind
    label_names: tuple[str, ...]
    metrics: tuple[str, ...]

    @property
    def primary_metric(self) -> str:
        """The metric that selects a round; higher is better."""
        return self.metrics[0]

    @property
    def num_outputs(self) -> int:
        """Outputs of the model: the number of classes, or 1."""
        return len(self.label_names) or 1


def load_task(
    name: str,
    *,
    seed: int,
    train_file: str | None = None,
    validation_file: str | None = None,
    text_columns: Sequence[str] | None = None,
    label_column: str | None = None,
    kind: str | None = None,
    train_limit: int | None = None,
    validation_limit: int | None = None,
    holdout: int | None = None,
    label_noise: float = 0.0,
    group_column: str | None = None,
    labels: Sequence[Any] | None = None,
) -> TaskData:
    """Load a task; equal arguments give equal data in every process.

    Parameters
    ----------
    name : str
        ``intents`` and ``calls`` (generated), ``tsv`` (files), ``mnist`` (an archive), ``instruct`` (files when given, else
        generated), or a GLUE task (files when given, else downloaded).
    seed : int
        Seed of the generator, the held-out slice, the subsamples and the label noise.
    train_file, validation_file : str or None
        Tables for ``tsv`` and GLUE names. Without ``validation_file`` a fifth of the training file is the test set.
    text_columns : sequence of str or None
        One or two columns; None takes GLUE's, or ``sentence`` or ``text`` where the file has it.
    label_column : str or None
        None means ``label``.
    kind : str or None
        ``classification`` or ``regression``; None takes the task's own, else classification. ``instruct`` is
        ``causal``.
    train_limit, validation_limit : int or None
        At most so many training examples, and examples of the given validation data (the test set).
    holdout : int or None
        Size of the validation set; None means 200 or a tenth, whichever is smaller (``intents``: 200).
    label_noise : float
        Share of *training* labels that are replaced by a wrong one.
    group_column : str or None
        Column that says who wrote an example (files only).
    labels : sequence or None
        Label values in the order of their indices (files only); None takes the sorted values of the training file.

    Returns
    -------
    TaskData
        Training, validation and test examples.

    Raises
    ------
    TaskError
        If the task is unknown, or a file, column or label is not as expected.
    """
    if name not in TASKS:
        raise TaskError(f"task.name: expected one of {', '.join(TASKS)}, found {name!r}")
    _check_kind(name, kind)
    if name == "instruct":
        task = _instruct(
            seed,
            train_file,
            validation_file,
            text_columns,
            label_column,
            group_column,
            (train_limit, validation_limit, holdout),
        )
    elif name == "mnist":
        images, test = load_images(train_file, validation_file)
        task = _split(_task_of_images(images, test, seed), seed, train_limit, validation_limit, holdout)
    elif name == "calls":
        if train_file or validation_file:
            raise TaskError("task calls is generated: expected no files; use task=instruct for files")
        task = _calls(seed, train_limit, validation_limit, holdout)
    elif name == "intents":
        if train_file or validation_file or kind == "regression":
            raise TaskError(
                "task intents is generated: expected no files and kind classification; use task=tsv for files"
            )
        task = _intents(seed, train_limit, validation_limit, holdout)
    else:
        files = _files(name, seed, train_file, validation_file, text_columns, label_column, kind, group_column, labels)
        task = _split(files, seed, train_limit, validation_limit, holdout)
    if label_noise and task.kind != "classification":
        raise TaskError(
            f"task.label_noise: expected 0 for a {task.kind} task, which has no other class to confuse with"
        )
    noisy = flip_labels(task.train, label_noise, task.num_outputs, np.random.default_rng([seed, 4]))
    return TaskData(task.name, noisy, task.validation, task.test, task.kind, task.label_names, task.metrics)


def _check_kind(name: str, kind: str | None) -> None:
    allowed = {"instruct": (None, "causal"), "calls": (None, "causal"), "mnist": (None, "classification")}.get(
        name, (None, "classification", "regression")
    )
    if kind not in allowed:
        choices = ", ".join(choice for choice in allowed if choice)
        raise TaskError(f"task.kind: expected {choices} or null for task {name}, found {kind!r}")


def _instruct(
    seed: int,
    train_file: str | None,
    validation_file: str | None,
    columns: Sequence[str] | None,
    label_column: str | None,
    group_column: str | None,
    limits: tuple[int | None, int | None, int | None],
) -> TaskData:
    train_limit, validation_limit, holdout = limits
    if train_file is None:
        if validation_file is not None:
            raise TaskError("task.train_file: expected a file beside task.validation_file, found null")
        generated = generate_prompts(
            num_train=train_limit or 1600,
            num_validation=200 if holdout is None else holdout,
            num_test=validation_limit or 400,
            seed=seed,
        )
        return TaskData("instruct", *generated, "causal", (), RESPONSE_METRICS)
    options: dict[str, Any] = {"columns": columns, "label_column": label_column, "group_column": group_column}
    train = table_prompts(read_table(train_file), source=train_file, **options)
    if validation_file is None:
        train, test = hold_out(train, max(1, len(train) // 5), np.random.default_rng([seed, 0]))
    else:
        test = table_prompts(read_table(validation_file), source=validation_file, columns=columns)
    files = TaskData("instruct", train, train.subset([]), test, "causal", (), RESPONSE_METRICS)
    return _split(files, seed, train_limit, validation_limit, holdout)


def _calls(seed: int, train_limit: int | None, validation_limit: int | None, holdout: int | None) -> TaskData:
    asked = {"num_train": train_limit, "num_validation": holdout, "num_test": validation_limit}
    sizes = {name: size for name, size in asked.items() if size is not None}
    return TaskData("calls", *generate_calls(**sizes, seed=seed), "causal", (), RESPONSE_METRICS)


def _task_of_images(train: ImageExamples, test: ImageExamples | None, seed: int) -> TaskData:
    if test is None:
        train, test = hold_out(train, max(1, len(train) // 5), np.random.default_rng([seed, 0]))
    return TaskData("mnist", train, train.subset([]), test, "classification", DIGITS, ("accuracy",))


def _intents(seed: int, train_limit: int | None, validation_limit: int | None, holdout: int | None) -> TaskData:
    generated = generate_intents(
        num_train=1600 if train_limit is None else train_limit,
        num_validation=200 if holdout is None else holdout,
        num_test=400 if validation_limit is None else validation_limit,
        seed=seed,
    )
    return TaskData("intents", *generated, "classification", INTENTS, ("accuracy",))


def _files(
    name: str,
    seed: int,
    train_file: str | None,
    validation_file: str | None,
    text_columns: Sequence[str] | None,
    label_column: str | None,
    kind: str | None,
    group_column: str | None,
    labels: Sequence[Any] | None,
) -> TaskData:
    """Read both tables; the returned task has everything in ``train`` and ``test`` and no validation set yet."""
    glue = GLUE.get(name)
    if train_file is None and (glue is None or validation_file is not None):
        raise TaskError(f"task.train_file: expected a file for task {name}, found null")
    sources = (train_file or f"GLUE {name} train", validation_file or f"GLUE {name} validation")
    train_table, test_table = load_glue(name) if train_file is None else (read_table(train_file), None)
    if validation_file is not None:
        test_table = read_table(validation_file)
    chosen: Kind = "regression" if (kind or (glue.kind if glue else "")) == "regression" else "classification"
    options: dict[str, Any] = {
        "text_columns": tuple(text_columns or (glue.text_columns if glue else guess_text(train_table))),
        "label_column": label_column or "label",
        "kind": chosen,
    }
    if glue and glue.kind == chosen == "classification" and options["label_column"] in train_table:
        labels, options["hint"] = glue_labels(name, train_table[options["label_column"]], labels)
    train, values = table_examples(train_table, source=sources[0], group_column=group_column, labels=labels, **options)
    if test_table is None:
        train, test = hold_out(train, max(1, len(train) // 5), np.random.default_rng([seed, 0]))
    else:
        test, _ = table_examples(test_table, source=sources[1], labels=values, **options)
    names = tuple(str(value) for value in values)
    if glue and glue.kind == chosen and values == tuple(range(len(glue.label_names))):
        names = glue.label_names
    metrics = glue.metrics if glue and glue.kind == chosen else default_metrics(chosen)
    return TaskData(name, train, train.subset([]), test, chosen, names, metrics)


def _split(
    task: TaskData, seed: int, train_limit: int | None, validation_limit: int | None, holdout: int | None
) -> TaskData:
    """Hold the validation set out of the training data, then apply the limits."""
    wanted = len(task.train) if train_limit is None else min(train_limit, len(task.train))
    size = default_holdout(wanted) if holdout is None else holdout
    train, validation = hold_out(task.train, size, np.random.default_rng([seed, 1]))
    train = take(train, train_limit, np.random.default_rng([seed, 2]))
    test = take(task.test, validation_limit, np.random.default_rng([seed, 3]))
    return TaskData(task.name, train, validation, test, task.kind, task.label_names, task.metrics)


def guess_text(table: Table) -> tuple[str, ...]:
    """The usual name of a text column, else nothing: the error then lists the columns."""
    return next(((name,) for name in ("sentence", "text") if name in table), ())


def default_metrics(kind: Kind) -> tuple[str, ...]:
    return ("accuracy",) if kind == "classification" else ("pearson", "spearman")
