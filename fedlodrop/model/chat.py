"""Conversations with the language model of a run, in its own chat template."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from transformers import TextStreamer

from conf.compose import ConfigError
from fedlodrop.model.load import TrainedModel
from server_app.build import load_data
from tasks.data.batches import tokenise
from tasks.data.examples import ChatExamples, PromptExamples, Turn
from tasks.models.tokenizer import HubTokenizer
from tasks.scoring.generation import generate

_LONGEST = 2048  # tokens of a conversation, if the model takes as many
_MAX_NEW_TOKENS = 256  # of an answer


def readable_tokenizer(trained: TrainedModel) -> HubTokenizer:
    """Return the tokenizer of a run's language model; ConfigError if the run has none whose tokens are read back."""
    if trained.kind != "causal":
        raise ConfigError(f"expected the run of a language model, found task={trained.config.task.name}; see: predict")
    if not isinstance(trained.tokenizer, HubTokenizer):
        raise ConfigError(
            "the tiny model's hashed words cannot be read back as an answer; expected a run with model=hub"
        )
    return trained.tokenizer


def is_generated(trained: TrainedModel) -> bool:
    """Whether the run's examples were generated: single requests, under one system prompt."""
    return trained.config.task.train_file is None and trained.config.task.dataset is None


def system_prompt(trained: TrainedModel) -> str:
    """Return what stood before every generated request in training, such as the functions that may be called."""
    # A file is perhaps not at hand, and names its own in each row.
    return str(getattr(load_data(trained.config).train, "system", "")) if is_generated(trained) else ""


class _Pieces(TextStreamer):
    """Hands on a model's words as they are written."""

    def __init__(self, tokenizer: Any, say: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._say = say

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Show the next words."""
        self._say(text)


@dataclass
class Chat:
    """A conversation with a trained model, or with its base alone.

    With ``alone``, and without a chat template, every request stands alone: what has been said before only confuses a
    model that was taught single requests.
    """

    trained: TrainedModel
    system: str = ""
    base: bool = False
    alone: bool = False
    turns: list[Turn] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Refuse a run without a language model, and a base that training has changed."""
        readable_tokenizer(self.trained)
        if self.base and self.trained.base_changed:
            raise ConfigError(f"--base: {self.trained.config.strategy.name} changed the base, so it is not at hand")

    def ask(self, text: str, say: Callable[[str], None] = lambda piece: None) -> str:
        """Return the answer to one more turn; ``say`` gets its pieces as they are written."""
        tokenizer, model = readable_tokenizer(self.trained), self.trained.model
        room = min(getattr(model.base_model.model.encoder.config, "max_position_embeddings", _LONGEST), _LONGEST)
        most = min(_MAX_NEW_TOKENS, room // 4)
        tokenizer = replace(tokenizer, max_tokens=room - most)
        labels, first = np.zeros(1, dtype=np.int64), [("system", self.system)] if self.system else []
        asked: PromptExamples = PromptExamples((text,), labels, ("",))
        if tokenizer.tokenizer.chat_template:
            whole = (*first, *(() if self.alone else self.turns), ("user", text), ("assistant", ""))
            asked = ChatExamples((text,), labels, ("",), turns=(whole,))
        pieces = _Pieces(tokenizer.tokenizer, say)
        data: Any = tokenise(tokenizer, asked)
        if self.base:
            with model.disable_adapter():
                (answer,) = generate(model, tokenizer, data, 1, most, streamer=pieces)
        else:
            (answer,) = generate(model, tokenizer, data, 1, most, streamer=pieces)
        self.turns += [("user", text), ("assistant", answer)]
        return answer
