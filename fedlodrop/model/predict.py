"""Questions by hand to the model of a run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from conf.compose import ConfigError
from fedlodrop.model.load import TrainedModel
from tasks.data.batches import tokenise
from tasks.data.examples import TextExamples
from tasks.models.tokenizer import HubTokenizer

_MAX_ANSWER_TOKENS = 32


def predict(
    trained: TrainedModel, texts: Sequence[str], pairs: Sequence[str] | None = None
) -> list[list[tuple[str, float]]]:
    """Ask a trained model about texts; ``pairs`` holds the second text of each for tasks that compare two.

    Returns
    -------
    list
        Per text the outputs from the likeliest down: (label, probability); of a regression ("value", value); of a
        causal model (its answer, the probability of all its tokens).

    Raises
    ------
    ConfigError
        If the model reads images, or its tokens cannot be read back.
    """
    if trained.config.model.name == "mlp":
        raise ConfigError("predict takes texts, and this run's model reads images")
    if trained.kind == "causal":
        return [[_answer(trained, text)] for text in texts]
    examples = TextExamples(tuple(texts), np.zeros(len(texts), dtype=np.int64), None if pairs is None else tuple(pairs))
    batch = tokenise(trained.tokenizer, examples).batch(np.arange(len(texts)))
    with torch.inference_mode():
        logits = trained.model(**batch.inputs)
    if trained.kind == "regression":
        return [[("value", float(row[0]))] for row in logits]
    order = torch.softmax(logits, dim=-1).numpy()
    return [[(trained.label_names[k], float(row[k])) for k in np.argsort(-row, kind="stable")] for row in order]


def _answer(trained: TrainedModel, prompt: str) -> tuple[str, float]:
    """Continue a prompt greedily until the end mark."""
    tokenizer = trained.tokenizer
    if not isinstance(tokenizer, HubTokenizer):
        raise ConfigError(
            "the tiny model's hashed words cannot be read back as an answer; expected a run with model=hub"
        )
    encoded = tokenizer.encode_responses([prompt], [""])
    (row,), (start,) = encoded.input_ids, encoded.response_start or [0]
    ids, probability, end = row[:start], 1.0, row[start:]
    with torch.inference_mode():
        for _ in range(_MAX_ANSWER_TOKENS):
            inputs = torch.tensor([ids[-trained.config.model.max_tokens :]])
            last = torch.zeros_like(inputs, dtype=torch.bool)
            last[0, -1] = True
            likelihood = torch.softmax(trained.model(inputs, torch.ones_like(inputs), last)[0], dim=-1)
            token = int(likelihood.argmax())
            probability *= float(likelihood[token])
            if [token] == end:
                break
            ids.append(token)
    return str(tokenizer.tokenizer.decode(ids[start:])), probability
