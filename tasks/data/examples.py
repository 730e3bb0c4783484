"""Labelled texts and the seeded operations on them: subsets, held-out slices, label noise."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

IndexArray = npt.NDArray[np.int64]
IntArray = npt.NDArray[np.integer]


class TaskError(ValueError):
    """A task that cannot be loaded as asked; the text is one line for the user."""


class Columns:
    """A frozen dataclass whose arrays and tuples are columns, one entry per example; ``labels`` is one of them."""

    labels: npt.NDArray[np.generic]

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: npt.ArrayLike) -> Self:
        """Return the examples at ``indices``, in that order; what is no column stays as it is."""
        chosen, data = np.asarray(indices, dtype=np.int64), cast(Any, self)
        named = {field.name: getattr(data, field.name) for field in fields(data)}
        arrays = {name: value[chosen] for name, value in named.items() if isinstance(value, np.ndarray)}
        tuples = {name: tuple(value[i] for i in chosen) for name, value in named.items() if isinstance(value, tuple)}
        return cast(Self, replace(data, **arrays, **tuples))


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

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.text_pairs is None:
            raise TaskError("responses: expected one per prompt, found none")

    system: str = ""

    @property
    def responses(self) -> tuple[str, ...]:
        """One response per prompt."""
        return self.text_pairs or ()


Turn = tuple[str, str]  # role and content


@dataclass(frozen=True)
class ChatExamples(PromptExamples):
    """Conversations: ``turns`` holds role and content of every turn, and the assistant's are learnt."""

    turns: tuple[tuple[Turn, ...], ...] = ()


def hold_out(examples: SomeExamples, size: int, rng: np.random.Generator) -> tuple[SomeExamples, SomeExamples]:
    """Split off ``size`` random examples, return (rest, held out). No text is on both sides."""
    if not 0 <= size < len(examples):
        wanted = f"0 or more and fewer than the {len(examples)} training examples"
        raise TaskError(f"task.holdout: expected {wanted}, found {size}")
    order = rng.permutation(len(examples))
    held, keys = order[:size], examples.keys()
    taken = {keys[i] for i in held}
    rest = [int(i) for i in order[size:] if keys[i] not in taken]
    if not rest:
        raise TaskError("task.holdout: every training text also occurs in the held-out slice, none is left")
    return examples.subset(rest), examples.subset(np.sort(held))


def take(examples: SomeExamples, limit: int | None, rng: np.random.Generator) -> SomeExamples:
    """Return at most ``limit`` random examples, in their original order; all of them when ``limit`` is None."""
    if limit is None or limit >= len(examples):
        return examples
    return examples.subset(np.sort(rng.permutation(len(examples))[:limit]))


def flip_labels(examples: SomeExamples, rate: float, num_classes: int, rng: np.random.Generator) -> SomeExamples:
    """Replace each label, with probability ``rate``, by another class drawn uniformly."""
    if rate == 0.0:
        return examples
    flipped = rng.random(len(examples)) < rate
    shift = rng.integers(1, num_classes, size=len(examples))  # never 0: a flipped label is always wrong
    labels = (examples.labels.astype(np.int64) + shift * flipped) % num_classes
    return cast(SomeExamples, replace(cast(Any, examples), labels=labels))


@dataclass(frozen=True)
class Batch:
    """What a model is called with: its keyword arguments, and the labels its outputs are compared with."""

    inputs: dict[str, Any]
    labels: "torch.Tensor"

    def to(self, device: "torch.device | str") -> "Batch":
        """Return the batch on another device."""
        moved = {name: value.to(device) if hasattr(value, "to") else value for name, value in self.inputs.items()}
        return Batch(moved, self.labels.to(device))
