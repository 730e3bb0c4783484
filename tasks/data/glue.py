"""The tasks of GLUE (Wang et al., 2019), which `glue.yaml` describes: labels, prompts, and how to download them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tasks.data.examples import PromptExamples, TaskError, TextExamples
from tasks.data.labels import label_values
from tasks.data.tables import Table, plain_table
from tasks.settings import Kind, told_as


@dataclass(frozen=True)
class GlueTask:
    """One GLUE task: columns, labels and official metrics, the first one primary; and how a language model is asked."""

    text_columns: tuple[str, ...]
    label_names: tuple[str, ...]
    question: str  # {0} and {1} stand for the texts
    answers: tuple[str, ...]  # of the labels, in their order; none for a regression, where the number is the answer
    metrics: tuple[str, ...] = ("accuracy",)
    kind: Kind = "classification"
    collection: str = ""  # as the collection calls the task, if not by its name here
    test_split: str = "validation"


def _glue_task(values: dict[str, Any]) -> GlueTask:
    return GlueTask(**values | {key: tuple(value) for key, value in values.items() if isinstance(value, list)})


_TASKS = yaml.safe_load(Path(__file__).with_name("glue.yaml").read_text(encoding="utf-8"))
GLUE = {name: _glue_task(values) for name, values in _TASKS.items()}


def glue_prompts(name: str, examples: TextExamples) -> PromptExamples:
    """Turn a task's texts into questions for a language model; the labels stay, for the partition."""
    glue = GLUE[name]
    asked = zip(examples.texts, examples.text_pairs or examples.texts, strict=True)
    answers = tuple(glue.answers[int(label)] if glue.answers else f"{label:.1f}" for label in examples.labels)
    return PromptExamples(tuple(glue.question.format(*two) for two in asked), examples.labels, answers, examples.groups)


def glue_labels(name: str, column: Sequence[Any], labels: Sequence[Any] | None) -> tuple[Sequence[Any], str]:
    """Return the labels of a GLUE classification in the order that its metrics count on, and what to do about others.

    ``labels`` is the user's own order. `TaskError` if it turns GLUE's round, or has more or fewer labels.
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
    """Return GLUE's training and validation tables; `TaskError` if they are neither cached nor reachable."""
    import datasets

    remedy = "; give task.train_file and task.validation_file instead"
    with told_as(TaskError, f"task {name}: GLUE is neither cached nor reachable", remedy):
        loaded: Any = datasets.load_dataset("nyu-mll/glue", GLUE[name].collection or name)
    train, test = (plain_table(loaded[split].to_pandas()) for split in ("train", GLUE[name].test_split))
    return train, test
