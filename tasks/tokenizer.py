"""Tokenizers behind one small interface: texts in, integer ids out."""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tasks.model_files import find_minilm
from tasks.settings import ModelError, ModelSettings

TINY_VOCABULARY = 4096
_PAD, _CLS, _SEP = 0, 1, 2
_FIRST_WORD = 3
_TOKENIZER_FILES = (".json", ".txt", ".model", ".jinja", ".tiktoken", ".py")


@dataclass(frozen=True)
class Encoded:
    """Token ids of every text, unpadded; ``token_types`` only where the encoder reads them."""

    input_ids: list[list[int]]
    token_types: list[list[int]] | None


class TextTokenizer(Protocol):
    """What batching needs of a tokenizer."""

    @property
    def pad_token_id(self) -> int:
        """Id used for padding; masked out everywhere."""

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Encoded:
        """Return the ids of each text (or pair of texts), cut to the settings' ``max_tokens``."""

    def encode_responses(self, prompts: Sequence[str], responses: Sequence[str]) -> tuple[list[list[int]], list[int]]:
        """Return the ids of each prompt followed by its response and an end mark, and where the responses start."""


@dataclass(frozen=True)
class HashTokenizer:
    """Words to ids by a checksum: needs no file and no training, the same on every machine.

    Parameters
    ----------
    max_tokens : int
        Longest sequence, special tokens included.
    vocabulary : int
        Number of ids; two words share an id with probability 1 / (``vocabulary`` - 3).
    """

    max_tokens: int = 128
    vocabulary: int = TINY_VOCABULARY
    pad_token_id: int = _PAD

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Encoded:
        """Return ``[CLS] words [SEP]`` or ``[CLS] words [SEP] words [SEP]`` for each text."""
        ids, types = [], []
        for index, text in enumerate(texts):
            first = self._words(text)
            second = self._words(pairs[index]) if pairs is not None else []
            room = self.max_tokens - (3 if pairs is not None else 2)
            while len(first) + len(second) > room:  # longest first, as Hugging Face cuts pairs
                (first if len(first) >= len(second) else second).pop()
            tail = [*second, _SEP] if pairs is not None else []
            ids.append([_CLS, *first, _SEP, *tail])
            types.append([0] * (len(first) + 2) + [1] * len(tail))
        return Encoded(ids, types)

    def encode_responses(self, prompts: Sequence[str], responses: Sequence[str]) -> tuple[list[list[int]], list[int]]:
        """Return ``[CLS] words [SEP] words [SEP]`` for each pair, and where the second words start."""
        heads = [[_CLS, *self._words(text), _SEP] for text in prompts]
        return _joined(heads, [[*self._words(text), _SEP] for text in responses], self.max_tokens)

    def _words(self, text: str) -> list[int]:
        size = self.vocabulary - _FIRST_WORD
        return [_FIRST_WORD + zlib.crc32(word.encode()) % size for word in re.findall(r"\w+|[^\w\s]", text.lower())]


@dataclass(frozen=True)
class HubTokenizer:
    """A Hugging Face tokenizer behind the `TextTokenizer` interface."""

    tokenizer: Any
    max_tokens: int

    @property
    def pad_token_id(self) -> int:
        """Id used for padding."""
        return int(self.tokenizer.pad_token_id)

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Encoded:
        """Return the ids of each text (or pair of texts), cut to ``max_tokens``."""
        batch = self.tokenizer(
            list(texts), None if pairs is None else list(pairs), truncation=True, max_length=self.max_tokens, padding=False
        )
        return Encoded(batch["input_ids"], batch.get("token_type_ids"))

    def encode_responses(self, prompts: Sequence[str], responses: Sequence[str]) -> tuple[list[list[int]], list[int]]:
        """Return the ids of ``prompt, line break, response, end of text``, and where the responses start."""
        end = [] if self.tokenizer.eos_token_id is None else [int(self.tokenizer.eos_token_id)]
        heads = self.tokenizer([f"{text}\n" for text in prompts])["input_ids"]
        tails = self.tokenizer(list(responses), add_special_tokens=False)["input_ids"]
        return _joined([list(row) for row in heads], [[*row, *end] for row in tails], self.max_tokens)


@dataclass(frozen=True)
class NoTokenizer:
    """Stands in for a tokenizer where the model reads images; refuses texts."""

    pad_token_id: int = _PAD

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Encoded:
        """Refuse."""
        raise ModelError("model=mlp reads images: expected task=mnist, found a task of texts; use model=minilm or model=hub")

    def encode_responses(self, prompts: Sequence[str], responses: Sequence[str]) -> tuple[list[list[int]], list[int]]:
        """Refuse."""
        self.encode(prompts)
        return [], []


def _joined(heads: list[list[int]], tails: list[list[int]], max_tokens: int) -> tuple[list[list[int]], list[int]]:
    """Join prompt and response; a long prompt loses its beginning, a response only what cannot fit beside one token."""
    rows, starts = [], []
    for head, tail in zip(heads, tails, strict=True):
        tail = tail[: max_tokens - 1]
        head = head[-(max_tokens - len(tail)) :] or [_PAD]  # something must predict the first token
        rows.append([*head, *tail])
        starts.append(len(head))
    return rows, starts


def load_tokenizer(model: ModelSettings) -> TextTokenizer:
    """Return the tokenizer that belongs to the model.

    Raises
    ------
    ModelError
        If its files are missing or unreachable.
    """
    if model.name == "tiny":
        return HashTokenizer(model.max_tokens)
    if model.name == "mlp":
        return NoTokenizer()
    from transformers import AutoTokenizer

    source = str(find_minilm(verify=False)) if model.name == "minilm" else str(model.path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
    except Exception as error:  # transformers raises OSError, ValueError, TypeError … for one cause: no tokenizer there
        raise ModelError(f"model {model.name}: no tokenizer could be loaded from {source!r}: {one_line(error)}") from error
    if len(tokenizer) < 16:  # transformers builds one from its special tokens alone where the vocabulary is missing
        raise ModelError(f"model {model.name}: no tokenizer could be loaded from {source!r}: its vocabulary is missing")
    if tokenizer.pad_token_id is None:  # decoders have none; any id will do, since padding is masked
        tokenizer.pad_token_id = tokenizer.eos_token_id or 0
    return HubTokenizer(tokenizer, model.max_tokens)


def tokenizer_digest(model: ModelSettings) -> str | None:
    """Return what a model's token ids depend on, without loading its tokenizer; None where its files are not on this disk."""
    if model.name == "tiny":
        return f"words of {TINY_VOCABULARY}"
    if model.name == "mlp":
        return None
    folder = find_minilm(verify=False) if model.name == "minilm" else Path(str(model.path)).expanduser()
    if not folder.is_dir():
        return None
    digest = hashlib.blake2b(digest_size=24)
    for file in sorted(folder.iterdir()):
        if file.suffix in _TOKENIZER_FILES and file.is_file():
            content = file.read_bytes()
            digest.update(f"{file.name} {len(content)} ".encode() + content)
    return digest.hexdigest()


def one_line(error: BaseException, limit: int = 200) -> str:
    """First line of an exception's text, for a message of one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:limit]


def some_of(names: Sequence[str], limit: int = 5) -> str:
    """List names for a message of one line, and how many more there are."""
    more = f" (and {len(names) - limit} more)" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
