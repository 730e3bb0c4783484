"""Labelled texts and the seeded operations on them: subsets, held-out slices, label noise."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self, TypeVar, cast

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.integer]


class TaskError(ValueError):
    """A task that cannot be loaded as asked; the text is one line for the user."""


class Columns:
    """A frozen dataclass whose arrays and tuples are columns, one entry per example; ``labels`` is one of them."""

    labels: npt.NDArray[np.generic]

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.labels)

    def subset(self, indices: npt.ArrayLike) -> Self:
        """Return the examples at ``indices``, in that order; what is no column stays as it is."""
        chosen, data = np.asarray(indices, dtype=np.int64), cast(Any, self)
        picked: dict[str, Any] = {}
        for field in fields(data):
            value = getattr(data, field.name)
            if isinstance(value, np.ndarray):
                picked[field.name] = value[chosen]
            elif isinstance(value, tuple):
                picked[field.name] = tuple(value[i] for i in chosen)
        return cast(Self, replace(data, **picked))


class Examples(Columns):
    """What partitions, held-out slices and limits need of labelled examples of any type."""

    groups: IntArray | None  # (examples,): who wrote each example

    def keys(self) -> Sequence[Hashable]:
        """What makes two examples the same."""
        raise NotImplementedError


SomeExamples = TypeVar("SomeExamples", bound=Examples)


@dataclass(frozen=True)
class TextExamples(Examples):
    """Labelled texts, column by column: int64 class indices, or float32 values for a regression.

    ``text_pairs`` are the second texts of tasks that compare two; ``groups`` says who wrote each example.
    """

    texts: tuple[str, ...]
    labels: npt.NDArray[np.generic]
    text_pairs: tuple[str, ...] | None = None
    groups: IntArray | None = None

    def __post_init__(self) -> None:
        """Check that every column is as long as the texts."""
        for name in ("labels", "text_pairs", "groups"):
            column = getattr(self, name)
            if column is not None and len(column) != len(self.texts):
                raise TaskError(f"{name}: expected {len(self.texts)} entries, one per text, found {len(column)}")

    def keys(self) -> list[tuple[str, str]]:
        """What makes two examples the same text: both texts, without regard to case or surrounding space."""
        pairs = self.text_pairs or ("",) * len(self)
        return [(a.strip().lower(), b.strip().lower()) for a, b in zip(self.texts, pairs, strict=True)]


@dataclass(frozen=True)
class PromptExamples(TextExamples):
    """Prompts (``texts``), responses (``text_pairs``), labels for the partition, ``system`` for a chat template."""

    system: str = ""

    @property
    def responses(self) -> tuple[str, ...]:
        """One response per prompt."""
        return self.text_pairs or ()

    def __post_init__(self) -> None:
        """Check that there is a response to every prompt."""
        super().__post_init__()
        if self.text_pairs is None:
            raise TaskError("responses: expected one per prompt, found none")


Turn = tuple[str, str]  # role and content


@dataclass(frozen=True)
class ChatExamples(PromptExamples):
    """Conversations: ``turns`` holds role and content of every turn, and the assistant's are learnt."""

    turns: tuple[tuple[Turn, ...], ...] = ()


def default_holdout(available: int) -> int:
    """Size of the validation set: 200 examples or 10 %, whichever is smaller, and at least one."""
    return max(1, min(200, available // 10))


def hold_out(examples: SomeExamples, size: int, rng: np.random.Generator) -> tuple[SomeExamples, SomeExamples]:
    """Split off ``size`` random examples; return (rest, held out). No text is on both sides: duplicates leave the rest.

    Raises `TaskError` if nothing would be left to train on.
    """
    if not 0 <= size < len(examples):
        raise TaskError(
            f"task.holdout: expected 0 or more and fewer than the {len(examples)} training examples, found {size}"
        )
    order = rng.permutation(len(examples))
    held, keys = order[:size], examples.keys()
    taken = {keys[i] for i in held}
    rest = [int(i) for i in order[size:] if keys[i] not in taken]
    if not rest:
        raise TaskError(
            "task.holdout: every training text also occurs in the held-out slice, nothing is left to train on"
        )
    return examples.subset(rest), examples.subset(np.sort(held))


def take(examples: SomeExamples, limit: int | None, rng: np.random.Generator) -> SomeExamples:
    """Return at most ``limit`` random examples, in their original order; all of them when ``limit`` is None."""
    if limit is None or limit >= len(examples):
        return examples
    if limit < 1:
        raise TaskError(f"task limits: expected at least 1 example, found {limit}")
    return examples.subset(np.sort(rng.permutation(len(examples))[:limit]))


def flip_labels(examples: SomeExamples, rate: float, num_classes: int, rng: np.random.Generator) -> SomeExamples:
    """Replace each label, with probability ``rate``, by another class drawn uniformly; `TaskError` if there is none."""
    if not 0.0 <= rate < 1.0:
        raise TaskError(f"task.label_noise: expected a number in [0, 1), found {rate}")
    if rate == 0.0:
        return examples
    if num_classes < 2:
        raise TaskError("task.label_noise: expected at least two classes to confuse, found one")
    flipped = rng.random(len(examples)) < rate
    shift = rng.integers(1, num_classes, size=len(examples))  # never 0: a flipped label is always wrong
    labels = np.where(
        flipped, (examples.labels.astype(np.int64) + shift) % num_classes, examples.labels.astype(np.int64)
    )
    return cast(SomeExamples, replace(cast(Any, examples), labels=labels))
