"""The way in to every task, where a new one is registered (`_LOADERS`, `TASKS`; the pattern is `tasks.data.mnist`).

The given validation data (a file, or GLUE's validation split) is the *test* set. The *validation* set, on which rounds
and settings may be selected, is a seeded slice of the training data that is never trained on.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from adapter.plugins import load_plugin
from tasks.data.calls import generate_calls
from tasks.data.examples import PromptExamples, TaskError, TextExamples, flip_labels, hold_out, take
from tasks.data.glue import GLUE, glue_labels, glue_prompts, load_glue
from tasks.data.intents import INTENTS, generate_intents, generate_prompts
from tasks.data.mnist import DIGITS, ImageExamples, load_images
from tasks.data.tables import Table, hub_tables, read_table
from tasks.data.texts import format_of, table_conversations, table_examples, table_prompts
from tasks.settings import Kind

__all__ = ["TASKS", "TaskData", "TaskError", "TextExamples", "load_task"]

TASKS = ("intents", "calls", "hub", "instruct", "mnist", "tsv", *sorted(GLUE))
AnyExamples = TextExamples | PromptExamples | ImageExamples
_CAUSAL: tuple[Kind, tuple[str, ...], tuple[str, ...]] = ("causal", (), ("teacher_forced_match", "perplexity"))
_Source = tuple[Table, str]  # a table, and what errors call it


@dataclass(frozen=True)
class TaskData:
    """A task, ready to train and to score.

    The three sets are disjoint; only ``train`` is ever trained on, only ``validation`` may select anything.
    ``label_names`` is empty for a regression or a causal task; the first of the ``metrics`` is the primary one.
    """

    name: str
    train: AnyExamples
    validation: AnyExamples
    test: AnyExamples
    kind: Kind
    label_names: tuple[str, ...]
    metrics: tuple[str, ...]
    format: str = ""  # of conversations: what the columns of their file say it is
    test_held_out: bool = False  # of the training data, where the data set apart none

    @property
    def primary_metric(self) -> str:
        """The metric that selects a round; higher is better."""
        return self.metrics[0]

    @property
    def num_outputs(self) -> int:
        """Outputs of the model: the number of classes, or 1."""
        return len(self.label_names) or 1


@dataclass(frozen=True)
class TaskSettings:
    """The arguments of `load_task`."""

    # intents and calls (generated), tsv (files), mnist (an archive), instruct (files when given, else generated), or a
    # GLUE task (files when given, else downloaded)
    name: str
    seed: int  # of the generator, the held-out slice, the subsamples and the label noise
    # Tables for tsv and GLUE names; without validation_file a fifth of the training file is the test set.
    train_file: str | None = None
    validation_file: str | None = None
    text_columns: Sequence[str] | None = None  # one or two; None: GLUE's, or sentence or text where the file has it
    label_column: str | None = None  # None means label
    kind: str | None = None  # classification or regression; None: the task's own, else classification
    train_limit: int | None = None  # at most so many training examples
    validation_limit: int | None = None  # at most so many examples of the given validation data (the test set)
    holdout: int | None = None  # size of the validation set; None: 200 or a tenth, whichever is smaller
    label_noise: float = 0.0  # share of training labels that are replaced by a wrong one
    group_column: str | None = None  # who wrote an example (files only)
    labels: Sequence[Any] | None = None  # values in the order of their indices (files); None: the sorted values found
    schema: bool = False  # calls: the system prompt lists the functions
    dataset: str | None = None  # hub: a data set's name, or a folder of `datasets`

    @property
    def text_kind(self) -> Kind:
        """Kind of a task of labelled texts."""
        own = GLUE[self.name].kind if self.name in GLUE else "classification"
        chosen = own if self.kind in (None, "causal") else self.kind
        return "regression" if chosen == "regression" else "classification"

    @property
    def numbered_by_glue(self) -> bool:
        """Whether GLUE says which label has which index."""
        return self.name in GLUE and GLUE[self.name].kind == self.text_kind == "classification"


def load_task(name: str, **settings: Any) -> TaskData:
    """Load a task from the arguments of `TaskSettings`; equal arguments give equal data in every process."""
    s = TaskSettings(name, **settings)
    if ":" in name:
        return _with_noise(_own(s), s)
    if name not in TASKS:
        raise TaskError(f"task.name: expected one of {', '.join(TASKS)}, found {name!r}")
    _check_kind(s)
    return _with_noise(_LOADERS.get(name, _files)(s), s)


def load_own_data(name: str, **settings: Any) -> TaskData:
    """Load the file of one device: everything in it is training data, nothing is held out here.

    The arguments are those of `load_task`. ``labels`` must be given unless the task knows them: a device that sees only
    some would number its classes differently from the others.
    """
    s = TaskSettings(name, **settings)
    if name not in ("tsv", "instruct") and name not in GLUE:
        raise TaskError(f"a device's own file (task.train_file) needs task=tsv, instruct or one of GLUE, found {name}")
    table = read_table(str(s.train_file))
    classes = name != "instruct" and s.text_kind == "classification"
    if classes and not (s.numbered_by_glue or s.labels) and (s.label_column or "label") in table:
        raise TaskError("devices with their own files need task.labels, all label values, e.g. task.labels=[no,yes]")
    task = (_prompts if name == "instruct" else _texts)(s, (table, str(s.train_file)))
    return _with_noise(replace(task, train=take(task.train, s.train_limit, np.random.default_rng([s.seed, 2]))), s)


def _check_kind(s: TaskSettings) -> None:
    causal, usual = ("causal",), ("classification", "regression", *["causal"] * (s.name in GLUE or s.name == "hub"))
    allowed = {"instruct": causal, "calls": causal, "mnist": ("classification",)}.get(s.name, usual)
    if s.kind not in (None, *allowed):
        raise TaskError(f"task.kind: expected {', '.join(allowed)} or null for task {s.name}, found {s.kind!r}")
    if s.schema and s.name != "calls":
        raise TaskError(f"task.schema: expected false for task {s.name}, found {s.schema}")


def _generated(s: TaskSettings, generate: Callable[..., Any], *about: Any) -> TaskData:
    if s.train_file or s.validation_file or s.kind == "regression":
        kind, other = ("", "instruct") if about[0] == "causal" else (" and kind classification", "tsv")
        raise TaskError(f"task {s.name} is generated: expected no files{kind}; use task={other} for files")
    asked = {"num_train": s.train_limit, "num_validation": s.holdout, "num_test": s.validation_limit}
    return TaskData(s.name, *generate(**{name: n for name, n in asked.items() if n is not None}, seed=s.seed), *about)


def _own(s: TaskSettings) -> TaskData:
    """Call the function of the user's own that ``task.class`` names; what it does not hold out is held out here."""
    task = load_plugin(s.name, "task.class")(s)
    if not isinstance(task, TaskData):
        raise TaskError(f"task.class: expected tasks.data.load.TaskData from {s.name}, found {type(task).__name__}")
    return task if len(task.validation) else _split(task, s)


def _images(s: TaskSettings) -> TaskData:
    images, test = load_images(s.train_file, s.validation_file)
    none, metrics = images.subset([]), ("accuracy", "worst_class")
    return _split(TaskData("mnist", images, none, test or none, "classification", DIGITS, metrics), s)


def _instruct(s: TaskSettings) -> TaskData:
    if s.train_file is None and s.dataset is None:
        if s.validation_file is not None:
            raise TaskError("task.train_file: expected a file beside task.validation_file, found null")
        return _generated(s, generate_prompts, *_CAUSAL)
    train, test, _ = _tables(s)
    return _split(_prompts(s, train, test), s)


def _prompts(s: TaskSettings, train: _Source, test: _Source | None = None) -> TaskData:
    """Turn tables into prompts or conversations, each in the format that its columns say."""
    chat, columns = format_of(train[0]), {"group_column": s.group_column}
    read: Callable[..., PromptExamples] = functools.partial(table_conversations, name=str(chat))
    if chat is None:
        read = functools.partial(table_prompts, columns=s.text_columns)
        columns["label_column"] = s.label_column
    examples = read(*train, **columns)
    none = examples.subset([])
    tested = none if test is None else read(*test)
    return TaskData(s.name, examples, none, tested, *_CAUSAL, chat or "prompt and response")


def _files(s: TaskSettings) -> TaskData:
    if s.name == "hub" and s.kind == "causal":
        return _instruct(s)
    if s.train_file is None and s.dataset is None and (s.name not in GLUE or s.validation_file is not None):
        wanted = "task.dataset: expected a name" if s.name == "hub" else "task.train_file: expected a file"
        raise TaskError(f"{wanted} for task {s.name}, found null")
    train, test, names = _tables(s)
    return _split(_texts(replace(s, labels=s.labels or names), train, test), s)


def _tables(s: TaskSettings) -> tuple[_Source, _Source | None, Sequence[str] | None]:
    """Read training table, test table and the names of the classes, from a data set, from GLUE or from files."""
    if s.dataset is not None:
        if s.train_file or s.validation_file:
            raise TaskError("task.dataset: expected no files beside it, found task.train_file or task.validation_file")
        train, test, names = hub_tables(s.dataset, s.label_column or "label")
        tested = None if test is None else (test, f"the test split of {s.dataset}")
        return (train, s.dataset), tested, None if s.kind == "causal" else names
    if s.train_file is None:
        train, test = load_glue(s.name)
        return (train, f"GLUE {s.name} train"), (test, f"GLUE {s.name} validation"), None
    given = None if s.validation_file is None else (read_table(s.validation_file), s.validation_file)
    return (read_table(s.train_file), s.train_file), given, None


def _texts(s: TaskSettings, train: _Source, test: _Source | None = None) -> TaskData:
    """Turn tables into labelled texts; what the test table holds is read as the training table was."""
    table, glue, kind = train[0], GLUE.get(s.name), s.text_kind
    usual = next(((name,) for name in ("sentence", "text") if name in table), ())  # else the error lists the columns
    label_column, labels = s.label_column or "label", s.labels
    columns = tuple(s.text_columns or (glue.text_columns if glue else usual))
    options: dict[str, Any] = {"text_columns": columns, "label_column": label_column, "kind": kind}
    if s.numbered_by_glue and label_column in table:
        labels, options["hint"] = glue_labels(s.name, table[label_column], labels)
    examples, values = table_examples(*train, group_column=s.group_column, labels=labels, **options)
    tested = none = examples.subset([])
    if test is not None:
        tested, _ = table_examples(*test, labels=values, **options)
    if s.kind == "causal":
        asked, nothing, tested_on = (glue_prompts(s.name, part) for part in (examples, none, tested))
        return TaskData(s.name, asked, nothing, tested_on, *_CAUSAL)
    names = tuple(str(value) for value in values)
    metrics: tuple[str, ...] = ("accuracy",) if kind == "classification" else ("pearson", "spearman")
    if glue and glue.kind == kind:
        metrics = glue.metrics
        names = glue.label_names if values == tuple(range(len(glue.label_names))) else names
    return TaskData(s.name, examples, none, tested, kind, names, metrics)


def _split(task: TaskData, s: TaskSettings) -> TaskData:
    """Hold out a test set where none was given, then the validation set; apply the limits."""
    train, test = task.train, task.test
    if held_out := not len(test):
        train, test = hold_out(train, max(1, len(train) // 5), np.random.default_rng([s.seed, 0]))
    wanted = len(train) if s.train_limit is None else min(s.train_limit, len(train))
    size = max(1, min(200, wanted // 10)) if s.holdout is None else s.holdout
    train, validation = hold_out(train, size, np.random.default_rng([s.seed, 1]))
    train = take(train, s.train_limit, np.random.default_rng([s.seed, 2]))
    test = take(test, s.validation_limit, np.random.default_rng([s.seed, 3]))
    return replace(task, train=train, validation=validation, test=test, test_held_out=held_out)


def _with_noise(task: TaskData, s: TaskSettings) -> TaskData:
    if s.label_noise and task.kind != "classification":
        raise TaskError(f"task.label_noise: expected 0 for a {task.kind} task, which has no classes to confuse")
    noisy = flip_labels(task.train, s.label_noise, task.num_outputs, np.random.default_rng([s.seed, 4]))
    return replace(task, train=noisy)


_LOADERS: dict[str, Callable[[TaskSettings], TaskData]] = {
    "instruct": _instruct,
    "mnist": _images,
    "calls": lambda s: _generated(s, functools.partial(generate_calls, schema=s.schema), *_CAUSAL),
    "intents": lambda s: _generated(s, generate_intents, "classification", INTENTS, ("accuracy",)),
}
