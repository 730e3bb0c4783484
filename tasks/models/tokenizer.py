"""Tokenizers behind one small interface: texts in, integer ids out."""

import contextlib
import functools
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.models.files import find_minilm, model_source
from tasks.settings import ModelError, ModelSettings, told_as

TINY_VOCABULARY = 4096
_PAD, _CLS, _SEP = 0, 1, 2
_FIRST_WORD = 3


@dataclass(frozen=True)
class TokenRows:
    """Token ids of every text, unpadded, and which of them were cut.

    ``token_types`` are there only where the encoder reads them. ``cut`` says whether the text, of two texts either, or
    the prompt lost something that did not fit into ``max_tokens``. Of prompts with responses: where each response
    starts (of a conversation the last), whether it lost its end, and which tokens are learnt.
    """

    input_ids: Sequence[Any]
    token_types: Sequence[Any] | None
    cut: Any = None
    response_start: Any = None
    response_cut: Any = None
    targets: Sequence[Any] | None = None


@dataclass(frozen=True)
class HashTokenizer:
    """Words to ids by a checksum: no file, no training, the same on every machine; some words share an id."""

    max_tokens: int = 128
    vocabulary: int = TINY_VOCABULARY
    pad_token_id: int = _PAD

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> TokenRows:
        """Return ``[CLS] words [SEP]`` or ``[CLS] words [SEP] words [SEP]`` for each text."""
        ids, types, cut = [], [], []
        for row in zip(texts, strict=True) if pairs is None else zip(texts, pairs, strict=True):
            parts = [self._words(text) for text in row]
            excess = sum(map(len, parts)) + len(parts) + 1 - self.max_tokens
            for _ in range(excess):
                max(parts, key=len).pop()  # longest first, as Hugging Face cuts pairs
            cut.append(excess > 0)
            ids.append([_CLS, *(token for part in parts for token in (*part, _SEP))])
            types.append([0, *(number for number, part in enumerate(parts) for _ in (*part, _SEP))])
        return TokenRows(ids, types, cut)

    def encode_responses(self, prompts: Sequence[str], responses: Sequence[str], system: str = "") -> TokenRows:
        """Return ``[CLS] words [SEP] words [SEP]`` for each pair."""
        heads = [[_CLS, *self._words(text), _SEP] for text in prompts]
        return _joined(heads, [[*self._words(text), _SEP] for text in responses], self.max_tokens, 0)

    def encode_chats(self, chats: Sequence[Sequence[tuple[str, str]]]) -> TokenRows:
        """Return ``[CLS] words [SEP] words [SEP] ...``, one part for each turn."""
        rows, targets = [], []
        for turns in chats:
            parts = [[*self._words(text), _SEP] for _, text in turns]
            rows.append([_CLS, *(token for part in parts for token in part)])
            learnt = [role == "assistant" for (role, _), part in zip(turns, parts, strict=True) for _ in part]
            targets.append([False, *learnt])
        return _fitted(rows, targets, self.max_tokens, 1)

    def _words(self, text: str) -> list[int]:
        size = self.vocabulary - _FIRST_WORD
        return [_FIRST_WORD + zlib.crc32(word.encode()) % size for word in re.findall(r"\w+|[^\w\s]", text.lower())]


@dataclass(frozen=True)
class HubTokenizer:
    """A Hugging Face tokenizer with the methods of `HashTokenizer`."""

    tokenizer: Any
    max_tokens: int
    vocabulary: int | None = None  # rows of the model's word table

    @property
    def pad_token_id(self) -> int:
        """Id used for padding."""
        return int(self.tokenizer.pad_token_id)

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> TokenRows:
        """Return the ids of each text (or pair of texts), cut to ``max_tokens``."""
        given = [list(part) for part in (texts, pairs) if part is not None]
        batch = self.tokenizer(*given, truncation=True, max_length=self.max_tokens)
        rows, types = self._readable(batch["input_ids"]), batch.get("token_type_ids")
        types = None if types is None else [row or [0] for row in types]
        if batch.encodings is None:  # a tokenizer in Python does not tell what it left out
            return TokenRows(rows, types, [len(row) >= self.max_tokens for row in rows])
        return TokenRows(rows, types, [bool(row.overflowing) for row in batch.encodings])

    def _readable(self, rows: list[list[int]]) -> list[list[int]]:
        """Give a text without tokens a mark, and refuse ids that the model does not have."""
        marks = (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id, self.pad_token_id)
        mark = next(int(i) for i in marks if i is not None)
        rows = [list(row) or [mark] for row in rows]
        highest = max((max(row) for row in rows), default=0)
        if self.vocabulary is not None and highest >= self.vocabulary:
            found = f"found {highest} ({self.tokenizer.convert_ids_to_tokens(highest)!r})"
            wanted = f"a tokenizer of the model's own, whose ids end at {self.vocabulary - 1}"
            raise ModelError(f"model.path: expected {wanted}, {found}")
        return rows

    def encode_responses(self, prompts: Sequence[str], responses: Sequence[str], system: str = "") -> TokenRows:
        """Return the ids of ``start marks, prompt, line break, response, end of text``, every mark once.

        With a chat template, the prompt is the user's turn after ``system``, and the response the assistant's. The last
        of the marks that the tokenizer puts after a text serves as the end of text where it names none.
        """
        if self.tokenizer.chat_template:
            first = [("system", system)] if system else []
            pairs = zip(prompts, responses, strict=True)
            return self.encode_chats([[*first, ("user", asked), ("assistant", answer)] for asked, answer in pairs])
        start, own_end = self._marks
        end = own_end[-1:] if self.tokenizer.eos_token_id is None else [int(self.tokenizer.eos_token_id)]
        heads = self._plain([f"{text}\n" for text in prompts])
        heads = [row if row[: len(start)] == start else [*start, *row] for row in heads]
        tails = [row if row[-1:] == end else [*row, *end] for row in self._plain(responses)]
        return _joined(self._readable(heads), self._readable(tails), self.max_tokens, len(start))

    def encode_chats(self, chats: Sequence[Sequence[tuple[str, str]]]) -> TokenRows:
        """Return conversations in the chat template; what the assistant says, and the mark that ends it, is learnt."""
        if not self.tokenizer.chat_template:
            raise ModelError("model.path: expected a tokenizer with a chat template for conversations, found none")
        marks = {id for id, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        rows, targets = [], []
        for turns in chats:
            text, spans = self._spans(turns)
            encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            ids, starts = list(encoded["input_ids"]), [start for start, _ in encoded["offset_mapping"]]
            learnt = [False] * len(ids)
            for first, last in spans:
                inside = [k for k, start in enumerate(starts) if first <= start < last]
                ends = [k for k in inside if ids[k] in marks]
                for k in inside if not ends else range(inside[0], ends[-1] + 1):  # not the line break behind the mark
                    learnt[k] = True
            length = len(learnt) - learnt[::-1].index(True)  # nothing comes after the last answer
            end = [] if ids[length - 1] in marks else [int(self.tokenizer.eos_token_id)]  # the template writes none
            rows.append(ids[:length] + end)
            targets.append(learnt[:length] + [True] * len(end))
        return _fitted(self._readable(rows), targets, self.max_tokens, len(self._marks[0]))

    def _spans(self, turns: Sequence[tuple[str, str]]) -> tuple[str, list[tuple[int, int]]]:
        """Return a conversation in the template, and where the assistant's turns begin and end in it."""
        messages = [{"role": role, "content": content} for role, content in turns]
        text, spans = "", []
        for k, (role, answer) in enumerate(turns):
            if role == "assistant":
                head, whole = self._rendered(messages[:k], True), self._rendered(messages[: k + 1])
                if not whole.startswith(head):  # an answer is asked for by more than what stands before a given one
                    whole = head + answer + (self.tokenizer.eos_token or "")
                if not head.startswith(text):
                    raise ModelError("the chat template changes earlier turns: conversations of one answer only")
                text = whole
                spans.append((len(head), len(whole)))
        return text, spans

    def _rendered(self, messages: list[dict[str, str]], asks: bool = False) -> str:
        with told_as(ModelError, "the chat template refuses a conversation"):  # for roles that it does not take
            return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=asks))

    def _plain(self, texts: Sequence[str]) -> list[list[int]]:
        return [list(row) for row in self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]]

    @functools.cached_property
    def _marks(self) -> tuple[list[int], list[int]]:
        """The marks that the tokenizer puts before and after every text."""
        (plain,), whole = self._plain(["a"]), list(self.tokenizer(["a"])["input_ids"][0])
        for start in range(len(whole) - len(plain) + 1):
            if plain and whole[start : start + len(plain)] == plain:
                return whole[:start], whole[start + len(plain) :]
        return [], []


@dataclass(frozen=True)
class NoTokenizer:
    """Stands in for a tokenizer where the model reads images; refuses texts."""

    pad_token_id: int = _PAD

    def encode(self, *texts: Any, **options: Any) -> TokenRows:
        """Refuse."""
        raise ModelError("model=mlp reads images: expected task=mnist, found a task of texts; use model=minilm")

    encode_responses = encode_chats = encode


TextTokenizer = HashTokenizer | HubTokenizer | NoTokenizer


def _joined(heads: list[list[int]], tails: list[list[int]], max_tokens: int, marks: int) -> TokenRows:
    parts = list(zip(heads, tails, strict=True))
    learnt = [[False] * len(head) + [True] * len(tail) for head, tail in parts]
    return _fitted([head + tail for head, tail in parts], learnt, max_tokens, marks)


def _fitted(rows: list[list[int]], targets: list[list[bool]], max_tokens: int, marks: int) -> TokenRows:
    """Cut what is too long; the last answer stays whole as long as what stands before it keeps a quarter.

    What stands before loses its beginning, but for its ``marks`` start marks, a long answer its end.
    """
    columns: Any = ([], [], [], [], [])
    for row, target in zip(rows, targets, strict=True):
        before = len(target) - target[::-1].index(False) if False in target else 1
        stop = before + max_tokens - min(before, max_tokens // 4)  # the answer's end, where all of it fits
        room = max_tokens - len(row[before:stop])
        kept, drop = min(marks, room - 1), max(0, before - room)
        learnt = [False, *target[1:]]  # nothing predicts the first token
        shown = [*range(kept), *range(kept + drop, min(stop, len(row)))]
        ids, told = [row[k] for k in shown], [learnt[k] for k in shown]
        for column, value in zip(columns, (ids, drop > 0, before - drop, stop < len(row), told), strict=True):
            column.append(value)
    return TokenRows(columns[0], None, *columns[1:])


def load_tokenizer(model: ModelSettings) -> TextTokenizer:
    """Return the tokenizer that belongs to the model; `ModelError` if its files are missing or unreachable."""
    if model.name == "tiny":
        return HashTokenizer(model.max_tokens)
    if model.name == "mlp":
        return NoTokenizer()
    from transformers import AutoConfig, AutoTokenizer

    source = str(find_minilm(verify=False)) if model.name == "minilm" else model_source(model)
    none = f"model {model.name}: no tokenizer could be loaded from {source!r}"
    with told_as(ModelError, none):
        tokenizer = AutoTokenizer.from_pretrained(source)
    if len(tokenizer) < 16:  # transformers builds one from its special tokens alone where the vocabulary is missing
        raise ModelError(f"{none}: its vocabulary is missing")
    vocabulary = None
    with contextlib.suppress(Exception):  # whoever loads the model says what is wrong with its configuration
        vocabulary = getattr(AutoConfig.from_pretrained(source).get_text_config(), "vocab_size", None)
    marks = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    padding = next(i for i in marks if i is not None and i < (vocabulary or i + 1))
    if tokenizer.pad_token_id != padding:  # decoders have none; any id will do, since padding is masked
        tokenizer.pad_token_id = padding
    if template := model.chat_template:
        if "{{" not in template and "{%" not in template:
            file = Path(template).expanduser()
            if not file.is_file():
                wanted = "a file, or a template with {{ and }}"
                raise ModelError(f"model.chat_template: expected {wanted}, found {template!r}")
            template = file.read_text(encoding="utf-8")
        tokenizer.chat_template = template
    return HubTokenizer(tokenizer, model.max_tokens, vocabulary)
