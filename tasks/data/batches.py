"""From examples to batches: tokenised once, padded to each batch's own longest text, drawn by a seeded generator."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tasks.data.examples import ChatExamples, Columns, Examples, PromptExamples, TextExamples
from tasks.data.mnist import ImageExamples
from tasks.data.model_inputs import Batch, Encoded, IndexArray
from tasks.models.tokenizer import NoTokenizer, TextTokenizer
from tasks.settings import ModelError


@dataclass(frozen=True)
class Tokenised(Columns):
    """Token ids of a set of examples, unpadded, with what `tasks.models.tokenizer.TokenRows` says of them.

    Where a causal example has ``targets``, a batch asks for these tokens (input ``predict`` and flat labels) instead of
    one label per text.
    """

    input_ids: tuple[npt.NDArray[np.int32], ...]
    token_types: tuple[npt.NDArray[np.int32], ...] | None
    labels: npt.NDArray[np.generic]
    pad_token_id: int
    response_start: IndexArray | None = None
    cut: npt.NDArray[np.bool_] | None = None
    response_cut: npt.NDArray[np.bool_] | None = None
    targets: tuple[npt.NDArray[np.bool_], ...] | None = None

    @property
    def lengths(self) -> IndexArray:
        """Tokens of each example, shape (examples,)."""
        return np.array([len(ids) for ids in self.input_ids], dtype=np.int64)

    def batch(self, indices: npt.ArrayLike) -> Batch:
        """Return the examples at ``indices`` as tensors, padded to the longest among them."""
        chosen = np.asarray(indices, dtype=np.int64)
        ids = _padded(self.input_ids, chosen, self.pad_token_id)  # (batch, tokens)
        inputs: dict[str, Any] = {"input_ids": ids}
        length = torch.from_numpy(self.lengths[chosen])
        inputs["attention_mask"] = (torch.arange(ids.shape[1]) < length[:, None]).long()
        if self.token_types is not None:
            inputs["token_type_ids"] = _padded(self.token_types, chosen)
        if self.targets is None:
            return Batch(inputs, torch.from_numpy(self.labels[chosen]))
        answer = _padded(self.targets, chosen).bool()  # (batch, tokens)
        inputs["predict"] = answer.roll(-1, dims=1)  # each is predicted one position before it
        return Batch(inputs, ids[answer])


def _padded(rows: Sequence[npt.NDArray[Any]], chosen: IndexArray, value: int = 0) -> Tensor:
    tensors = [torch.from_numpy(rows[i].astype(np.int64)) for i in chosen]
    return pad_sequence(tensors, batch_first=True, padding_value=value)


def tokenise(tokenizer: TextTokenizer, examples: Examples) -> Encoded:
    """Tokenise all examples once; images are as they are. `ModelError` if the model reads the other kind."""
    if isinstance(examples, ImageExamples):
        if not isinstance(tokenizer, NoTokenizer):
            raise ModelError("this task's examples are images: expected model=mlp, found a model that reads texts")
        return examples
    if not isinstance(examples, TextExamples):
        raise TypeError(f"expected texts or images, found {type(examples).__name__}")
    if len(examples) == 0:
        return Tokenised((), None, examples.labels, tokenizer.pad_token_id)
    if isinstance(examples, ChatExamples):
        encoded = tokenizer.encode_chats(examples.turns)
    elif isinstance(examples, PromptExamples):
        encoded = tokenizer.encode_responses(examples.texts, examples.responses, examples.system)
    else:
        encoded = tokenizer.encode(examples.texts, examples.text_pairs)
    starts, cut = (None if x is None else np.asarray(x) for x in (encoded.response_start, encoded.response_cut))
    return Tokenised(
        _arrays(encoded.input_ids, np.int32) or (),
        _arrays(encoded.token_types, np.int32),
        examples.labels,
        tokenizer.pad_token_id,
        starts,
        np.asarray(encoded.cut),
        cut,
        _arrays(encoded.targets, np.bool_),
    )


def _arrays(rows: Sequence[Sequence[int]] | None, dtype: npt.DTypeLike) -> tuple[npt.NDArray[Any], ...] | None:
    return None if rows is None else tuple(np.asarray(row, dtype=dtype) for row in rows)


def sample_batches(
    num_examples: int, batch_size: int, *, rng: np.random.Generator, steps: int | None = None, epochs: int | None = None
) -> list[IndexArray]:
    """Draw the batches of one local training, index arrays, one per step.

    With ``steps``, batches come from an endless chain of permutations: all have ``min(batch_size, num_examples)``
    examples, none holds an example twice, and within n steps no example is drawn more than once oftener than another.
    With ``epochs``, every pass uses each example exactly once; its last batch may be smaller. `ValueError` if there is
    no example, no positive size, or not exactly one of the two.
    """
    if num_examples < 1 or batch_size < 1:
        raise ValueError(
            f"batches need examples and a positive size, found {num_examples} examples, batch size {batch_size}"
        )
    if (steps is None) == (epochs is None):
        raise ValueError(f"give exactly one of steps and epochs, found steps={steps}, epochs={epochs}")
    if epochs is not None:
        cuts = range(batch_size, num_examples, batch_size)
        return [batch for _ in range(epochs) for batch in np.split(rng.permutation(num_examples), cuts)]
    stream = _endless(num_examples, min(batch_size, num_examples), rng)
    return [next(stream) for _ in range(steps or 0)]


def grouped_by_length(batches: list[IndexArray], lengths: IndexArray, rng: np.random.Generator) -> list[IndexArray]:
    """Deal the examples of some batches anew, those of like length together, so that less is padded.

    The batches keep their sizes and come in random order; only those that share no example are dealt together, so that
    none holds an example twice. ``lengths`` has shape (examples,).
    """
    found: list[IndexArray] = []
    apart: list[IndexArray] = []
    for batch in [*batches, None]:
        if apart and (batch is None or np.isin(batch, np.concatenate(apart)).any()):
            drawn = np.concatenate(apart)
            drawn = drawn[np.argsort(lengths[drawn], kind="stable")]
            dealt = np.split(drawn, np.cumsum([len(part) for part in apart])[:-1])
            found += [dealt[i] for i in rng.permutation(len(dealt))]
            apart = []
        if batch is not None:
            apart.append(batch)
    return found


def _endless(num_examples: int, size: int, rng: np.random.Generator) -> Iterator[IndexArray]:
    queue = rng.permutation(num_examples)
    while True:
        if len(queue) < size:
            fresh = rng.permutation(num_examples)
            again = np.isin(fresh, queue)  # already in this batch: moved behind the others
            queue = np.concatenate([queue, fresh[~again], fresh[again]])
        yield queue[:size]
        queue = queue[size:]
