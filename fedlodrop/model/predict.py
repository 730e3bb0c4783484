"""Questions by hand to the model of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from conf.compose import ConfigError
from fedlodrop.model.chat import readable_tokenizer, system_prompt
from fedlodrop.model.load import TrainedModel
from tasks.data.batches import tokenise
from tasks.data.examples import PromptExamples, TextExamples
from tasks.scoring.generation import generate


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
        return [[answer] for answer in _answers(trained, texts)]
    examples = TextExamples(tuple(texts), np.zeros(len(texts), dtype=np.int64), None if pairs is None else tuple(pairs))
    batch = tokenise(trained.tokenizer, examples).batch(np.arange(len(texts)))
    with torch.inference_mode():
        logits = trained.model(**batch.inputs)
    if trained.kind == "regression":
        return [[("value", float(row[0]))] for row in logits]
    order = torch.softmax(logits, dim=-1).numpy()
    return [[(trained.label_names[k], float(row[k])) for k in np.argsort(-row, kind="stable")] for row in order]


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
