"""From examples to batches: tokenised once, padded to each batch's own longest text, drawn by a seeded generator."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from tasks.examples import TextExamples
from tasks.layered import plan_packing
from tasks.settings import Kind
from tasks.tokenizer import TextTokenizer

IndexArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """Keyword arguments of the model, of shape (batch, tokens, …), and labels of shape (batch,)."""

    inputs: dict[str, Any]
    labels: Tensor

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch on another device."""
        moved = {name: value.to(device) if hasattr(value, "to") else value for name, value in self.inputs.items()}
        return Batch(moved, self.labels.to(device))


@dataclass(frozen=True)
class Tokenised:
    """Token ids of a set of examples, unpadded.

    Parameters
    ----------
    input_ids : tuple of array
        One int32 array per example.
    token_types : tuple of array or None
        Same lengths; which of two texts a token belongs to.
    labels : array
        Shape (examples,).
    pad_token_id : int
        Fills the padded positions; the attention mask hides them.
    """

    input_ids: tuple[npt.NDArray[np.int32], ...]
    token_types: tuple[npt.NDArray[np.int32], ...] | None
    labels: npt.NDArray[np.generic]
    pad_token_id: int

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.input_ids)

    @property
    def lengths(self) -> IndexArray:
        """Tokens of each example, shape (examples,)."""
        return np.array([len(ids) for ids in self.input_ids], dtype=np.int64)

    def subset(self, indices: npt.ArrayLike) -> Tokenised:
        """Return the examples at ``indices``, in that order."""
        chosen = np.asarray(indices, dtype=np.int64)
        types = None if self.token_types is None else tuple(self.token_types[i] for i in chosen)
        return Tokenised(tuple(self.input_ids[i] for i in chosen), types, self.labels[chosen], self.pad_token_id)

    def batch(self, indices: npt.ArrayLike) -> Batch:
        """Return the examples at ``indices`` as tensors, padded to the longest among them."""
        chosen = np.asarray(indices, dtype=np.int64)
        longest = max(len(self.input_ids[i]) for i in chosen)
        ids = np.full((len(chosen), longest), self.pad_token_id, dtype=np.int64)  # (batch, tokens)
        mask = np.zeros_like(ids)
        types = None if self.token_types is None else np.zeros_like(ids)
        for row, i in enumerate(chosen):
            length = len(self.input_ids[i])
            ids[row, :length] = self.input_ids[i]
            mask[row, :length] = 1
            if types is not None and self.token_types is not None:
                types[row, :length] = self.token_types[i]
        inputs: dict[str, Any] = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
        if types is not None:
            inputs["token_type_ids"] = torch.from_numpy(types)
        packing = plan_packing([len(self.input_ids[i]) for i in chosen])
        if packing is not None:
            inputs["packing"] = packing
        return Batch(inputs, torch.from_numpy(self.labels[chosen]))


def tokenise(tokenizer: TextTokenizer, examples: TextExamples) -> Tokenised:
    """Tokenise all examples once.

    Parameters
    ----------
    tokenizer : TextTokenizer
        From `tasks.models.load_tokenizer`.
    examples : TextExamples
        What to tokenise.

    Returns
    -------
    Tokenised
        In the order of ``examples``.
    """
    if len(examples) == 0:
        return Tokenised((), None, examples.labels, tokenizer.pad_token_id)
    encoded = tokenizer.encode(examples.texts, examples.text_pairs)
    types = None
    if encoded.token_types is not None:
        types = tuple(np.asarray(row, dtype=np.int32) for row in encoded.token_types)
    ids = tuple(np.asarray(row, dtype=np.int32) for row in encoded.input_ids)
    return Tokenised(ids, types, examples.labels, tokenizer.pad_token_id)


def sample_batches(
    num_examples: int,
    batch_size: int,
    *,
    rng: np.random.Generator,
    steps: int | None = None,
    epochs: int | None = None,
) -> list[IndexArray]:
    """Draw the batches of one local training.

    With ``steps``, batches come from an endless chain of permutations: all have ``min(batch_size, num_examples)``
    examples, none holds an example twice, and within n steps no example is drawn more than once oftener than another.
    With ``epochs``, every pass uses each example exactly once; its last batch may be smaller.

    Parameters
    ----------
    num_examples : int
        Examples of the device.
    batch_size : int
        Examples per step, at most.
    rng : numpy.random.Generator
        Draws the order.
    steps, epochs : int or None
        Exactly one of them is given.

    Returns
    -------
    list of array
        Index arrays, one per step.

    Raises
    ------
    ValueError
        If there is no example, no positive size, or not exactly one of ``steps`` and ``epochs``.
    """
    if num_examples < 1 or batch_size < 1:
        raise ValueError(f"batches need examples and a positive size, found {num_examples} examples, batch size {batch_size}")
    if (steps is None) == (epochs is None):
        raise ValueError(f"give exactly one of steps and epochs, found steps={steps}, epochs={epochs}")
    if epochs is not None:
        cuts = range(batch_size, num_examples, batch_size)
        return [batch for _ in range(epochs) for batch in np.split(rng.permutation(num_examples), cuts)]
    stream = _endless(num_examples, min(batch_size, num_examples), rng)
    return [next(stream) for _ in range(steps or 0)]


def _endless(num_examples: int, size: int, rng: np.random.Generator) -> Iterator[IndexArray]:
    queue = rng.permutation(num_examples)
    while True:
        if len(queue) < size:
            fresh = rng.permutation(num_examples)
            again = np.isin(fresh, queue)  # already in this batch: moved behind the others
            queue = np.concatenate([queue, fresh[~again], fresh[again]])
        yield queue[:size]
        queue = queue[size:]


def task_loss(logits: Tensor, labels: Tensor, kind: Kind, reduction: str = "mean") -> Tensor:
    """Cross entropy of class indices, or squared error of values.

    Parameters
    ----------
    logits : Tensor
        Shape (batch, outputs).
    labels : Tensor
        Shape (batch,).
    kind : str
        ``classification`` or ``regression``.
    reduction : str
        ``mean``, ``sum`` or ``none``.
    """
    if kind == "regression":
        return functional.mse_loss(logits.squeeze(-1), labels.to(logits.dtype), reduction=reduction)
    return functional.cross_entropy(logits, labels, reduction=reduction)


@torch.no_grad()
def evaluate(model: Any, data: Tokenised, batch_size: int = 64) -> tuple[float, npt.NDArray[np.float32]]:
    """Score a model.

    Parameters
    ----------
    model : peft.PeftModel or TextClassifier
        Its ``kind`` selects the loss; its training mode is restored.
    data : Tokenised
        At least one example.
    batch_size : int
        Examples per forward pass; they are sorted by length, so that little is padded.

    Returns
    -------
    tuple
        Mean loss over the examples, and the logits, shape (examples, outputs), in the order of ``data``.

    Raises
    ------
    ValueError
        If there is nothing to score.
    """
    if len(data) == 0:
        raise ValueError("evaluate needs at least one example, found none")
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    order = np.argsort(data.lengths, kind="stable")
    losses, parts = [], []
    for start in range(0, len(order), batch_size):
        batch = data.batch(order[start : start + batch_size]).to(device)
        logits = model(**batch.inputs)
        losses.append(task_loss(logits.float(), batch.labels, model.kind, "none").double().cpu())
        parts.append(logits.float().cpu())
    model.train(was_training)
    stacked = torch.cat(parts).numpy()  # (examples, outputs), by length
    predictions = np.empty_like(stacked)
    predictions[order] = stacked
    return float(torch.cat(losses).mean()), predictions
