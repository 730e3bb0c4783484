"""Questions by hand to the model of a run: texts, tables of them, conversations in its own chat template."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import TextStreamer

from conf.compose import ConfigError
from fedlodrop.model.load import TrainedModel
from server_app.build import load_data
from tasks.data.batches import tokenise
from tasks.data.examples import ChatExamples, PromptExamples, TextExamples, Turn
from tasks.data.glue import GLUE
from tasks.data.tables import read_table
from tasks.models.tokenizer import HubTokenizer
from tasks.scoring.generation import generate

_LONGEST = 2048  # tokens of a conversation, if the model takes as many
_MAX_NEW_TOKENS = 256  # of an answer in it
_AT_ONCE = 256  # texts in a forward pass


def predict(
    trained: TrainedModel, texts: Sequence[str], pairs: Sequence[str] | None = None
) -> list[list[tuple[str, float]]]:
    """Ask a trained model about texts; ``pairs`` holds the second text of each for tasks that compare two.

    Returns per text the outputs from the likeliest down: (label, probability); of a regression ("value", value); of a
    causal model (its answer, the probability of all its tokens). Raises ConfigError if the model reads images, or its
    tokens cannot be read back.
    """
    if trained.config.model.name == "mlp":
        raise ConfigError("predict takes texts, and this run's model reads images")
    if trained.kind == "causal":
        return [[answer] for answer in _answers(trained, texts)]
    examples = TextExamples(tuple(texts), np.zeros(len(texts), dtype=np.int64), None if pairs is None else tuple(pairs))
    data, indices = tokenise(trained.tokenizer, examples), np.arange(len(texts))
    with torch.inference_mode():
        batches = (data.batch(indices[start : start + _AT_ONCE]) for start in indices[::_AT_ONCE])
        logits = torch.cat([trained.model(**batch.inputs).float() for batch in batches])
    if trained.kind == "regression":
        return [[("value", float(row[0]))] for row in logits]
    order = torch.softmax(logits, dim=-1).numpy()
    return [[(trained.label_names[k], float(row[k])) for k in np.argsort(-row, kind="stable")] for row in order]


def predict_file(trained: TrainedModel, path: Path) -> pd.DataFrame:
    """Ask a trained model about every row of a table; return it with columns ``prediction`` and ``probability``.

    The texts stand in the columns that the run was trained on or, where these have no name, in ``sentence``,
    ``text`` or ``prompt``. Raises ConfigError if there is none, TaskError if the file cannot be read.
    """
    table, task = read_table(path), trained.config.task
    own = task.text_columns or (GLUE[task.name].text_columns if task.name in GLUE else ())
    columns = list(own) or [name for name in ("sentence", "text", "prompt") if name in table][:1]
    missing = [name for name in columns if name not in table]
    if missing or not columns:
        wanted = ", ".join(columns) or "sentence, text or prompt"
        raise ConfigError(f"--file {path}: expected the column {wanted}, found {', '.join(table)}")
    texts = [[str(value or "") for value in table[name]] for name in columns]
    best = [outputs[0] for outputs in predict(trained, texts[0], texts[1] if len(texts) > 1 else None)]
    values = [value for _, value in best]
    if trained.kind == "regression":
        return pd.DataFrame(table).assign(prediction=values)
    return pd.DataFrame(table).assign(prediction=[name for name, _ in best], probability=values)


def _answers(trained: TrainedModel, texts: Sequence[str]) -> list[tuple[str, float]]:
    """Return the greedy answer to each text, as in training after the run's system prompt, and its probability."""
    tokenizer = readable_tokenizer(trained)
    labels = np.zeros(len(texts), dtype=np.int64)
    asked = PromptExamples(tuple(texts), labels, ("",) * len(texts), system=system_prompt(trained))
    prompts: Any = tokenise(tokenizer, asked)
    answers = generate(trained.model, tokenizer, prompts)
    written = tokenise(tokenizer, replace(asked, text_pairs=tuple(answers)))
    found = []
    for k, answer in enumerate(answers):
        batch = written.batch([k])
        with torch.inference_mode():
            likelihood = torch.log_softmax(trained.model(**batch.inputs), dim=-1)
        found.append((answer, float(likelihood.gather(1, batch.labels[:, None]).sum().exp())))
    return found


def readable_tokenizer(trained: TrainedModel) -> HubTokenizer:
    """Return the tokenizer of a run's language model; ConfigError if the run has none whose tokens are read back."""
    if trained.kind != "causal":
        raise ConfigError(f"expected the run of a language model, found task={trained.config.task.name}; see: predict")
    if not isinstance(trained.tokenizer, HubTokenizer):
        raise ConfigError("the tiny model's hashed words cannot be read back as an answer; expected a run of model=hub")
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
        data: Any = tokenise(tokenizer, asked)
        with model.disable_adapter() if self.base else nullcontext():
            (answer,) = generate(model, tokenizer, data, 1, most, streamer=_Pieces(tokenizer.tokenizer, say))
        self.turns += [("user", text), ("assistant", answer)]
        return answer
