"""From examples to batches: tokenised once, padded to each batch's own longest text, drawn by a seeded generator."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tasks.data.examples import (
    Batch,
    ChatExamples,
    Columns,
    Examples,
    IndexArray,
    PromptExamples,
    TaskError,
    TextExamples,
)
from tasks.data.mnist import ImageExamples
from tasks.models.tokenizer import HubTokenizer, NoTokenizer, TextTokenizer, TokenRows
from tasks.settings import ModelError

_NATURAL_SHARE = 0.05  # so many test texts recur in the training data of well-kept collections, too (CoLA: 1.5 %)


@dataclass(frozen=True, kw_only=True)
class Tokenised(TokenRows, Columns):
    """A set of examples: rows as tuples of arrays, and what is said of every row as arrays (examples,).

    Where a causal example has ``targets``, a batch asks for these tokens (input ``predict`` and flat labels) instead of
    one label per text.
    """

    labels: npt.NDArray[np.generic]
    pad_token_id: int

    @property
    def lengths(self) -> IndexArray:
        """Tokens of each example, shape (examples,)."""
        return np.array([len(ids) for ids in self.input_ids], dtype=np.int64)

    def batch(self, indices: npt.ArrayLike) -> Batch:
        """Return the examples at ``indices`` as tensors, padded to the longest among them."""
        chosen = np.asarray(indices, dtype=np.int64)
        ids = _padded(self.input_ids, chosen, self.pad_token_id)  # (batch, tokens)
        real = torch.arange(ids.shape[1]) < torch.from_numpy(self.lengths[chosen])[:, None]
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": real.long()}
        if self.token_types is not None:
            inputs["token_type_ids"] = _padded(self.token_types, chosen)
        if self.targets is None:
            return Batch(inputs, torch.from_numpy(self.labels[chosen]))
        answer = _padded(self.targets, chosen).bool()  # (batch, tokens)
        inputs["predict"] = answer.roll(-1, dims=1)  # each is predicted one position before it
        return Batch(inputs, ids[answer])


Encoded = Tokenised | ImageExamples  # examples ready to be batched


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
        return Tokenised((), None, labels=examples.labels, pad_token_id=tokenizer.pad_token_id)
    if isinstance(examples, ChatExamples):
        encoded = tokenizer.encode_chats(examples.turns)
    elif isinstance(examples, PromptExamples):
        encoded = tokenizer.encode_responses(examples.texts, examples.responses, examples.system)
    else:
        encoded = tokenizer.encode(examples.texts, examples.text_pairs)
    kinds = {"input_ids": np.int32, "token_types": np.int32, "targets": np.bool_}
    rows: dict[str, Any] = {name: _arrays(getattr(encoded, name), kind) for name, kind in kinds.items()}
    said = {name: getattr(encoded, name) for name in ("cut", "response_start", "response_cut")}
    columns: dict[str, Any] = {name: np.asarray(column) for name, column in said.items() if column is not None}
    return Tokenised(labels=examples.labels, pad_token_id=tokenizer.pad_token_id, **rows, **columns)


def _arrays(rows: Sequence[Sequence[int]] | None, dtype: npt.DTypeLike) -> tuple[npt.NDArray[Any], ...] | None:
    return None if rows is None else tuple(np.asarray(row, dtype=dtype) for row in rows)


def explain_example(examples: Examples, tokenizer: TextTokenizer, index: int) -> list[tuple[str, int, bool]]:
    """Return text (``#`` and the id of a hashed word), id and "is learnt" of every token of one prompt, as trained."""
    if not isinstance(examples, PromptExamples):
        raise TaskError("expected a task of prompts or conversations, found one without answers to write")
    if not 0 <= index < len(examples):
        raise TaskError(f"expected the number of an example from 0 to {len(examples) - 1}, found {index}")
    data: Any = tokenise(tokenizer, examples.subset([index]))
    hub = tokenizer.tokenizer if isinstance(tokenizer, HubTokenizer) else None
    texts = [f"#{token}" if hub is None else str(hub.decode([token])) for token in data.input_ids[0]]
    return list(zip(texts, data.input_ids[0].tolist(), data.targets[0].tolist(), strict=True))


def sample_batches(
    num_examples: int, batch_size: int, *, rng: np.random.Generator, steps: int | None = None, epochs: int | None = None
) -> list[IndexArray]:
    """Draw the batches of one local training, index arrays, one per step.

    With ``steps``, batches come from an endless chain of permutations: all have ``min(batch_size, num_examples)``
    examples, none holds an example twice, and within n steps no example is drawn more than once oftener than another.
    With ``epochs``, every pass uses each example exactly once; its last batch may be smaller.
    """
    if num_examples < 1 or batch_size < 1:
        raise ValueError(f"expected examples and a positive size, found {num_examples} examples, size {batch_size}")
    if (steps is None) == (epochs is None):
        raise ValueError(f"expected either steps or epochs, found {steps} and {epochs}")
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
    apart: list[list[IndexArray]] = []
    for batch in batches:
        if not apart or np.isin(batch, np.concatenate(apart[-1])).any():
            apart.append([])
        apart[-1].append(batch)
    found: list[IndexArray] = []
    for together in apart:
        drawn = np.concatenate(together)
        drawn = drawn[np.argsort(lengths[drawn], kind="stable")]
        dealt = np.split(drawn, np.cumsum([len(batch) for batch in together])[:-1])
        found += [dealt[i] for i in rng.permutation(len(dealt))]
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


def data_notes(train: Examples, test: Examples, parts: Mapping[str, Encoded], max_tokens: int) -> list[str]:
    """Return a line for everything wrong with the data that was not refused; ``parts`` are its sets, tokenised."""
    notes = [note for name, part in parts.items() if (note := _cuts(name, part, max_tokens))]
    known = set(train.keys())
    again = sum(key in known for key in test.keys())
    if again > _NATURAL_SHARE * len(test):
        mend = "give another task.validation_file, or none to hold a fifth of the training file out"
        notes.append(f"{again} of {len(test)} test examples are also training examples, the score is too good; {mend}")
    if len(test) > 1 and not isinstance(test, PromptExamples) and (test.labels == test.labels[0]).all():
        notes.append(f"all {len(test)} test examples have the same label: is the file one without labels?")
    return notes


def _cuts(name: str, part: Encoded, max_tokens: int) -> str:
    if not isinstance(part, Tokenised) or part.cut is None:
        return ""
    some, lost = part.cut, " and lose their end"
    if part.response_cut is not None:
        some = part.cut | part.response_cut
        prompts, ends = part.cut.sum(), part.response_cut.sum()
        lost = f": {prompts} lose a part of their prompt, {ends} the end of their answer (never a match then)"
    told = f"are longer than model.max_tokens={max_tokens}{lost}; raise it if the model can"
    return f"of {len(part)} {name} examples {some.sum()} {told}" if some.any() else ""
