"""One training step of ours beside PEFT LoRA: all layers, no prefix cache, the same loop, texts, order and base model.

CPU seconds per step on one thread, twice:

- ``layer``: texts of one length, so neither side pads and only the LoRA layer differs.
- ``texts``: the first phrases of the task, as devices read them. PEFT's side pads to the longest text of the batch (the
  kinder choice: the baseline app pads to a fixed length); ours lets short texts share rows, as every run does.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from benchmarks.federations import BASELINE, Setting, baseline_config
from benchmarks.watch import interleaved
from conf.compose import compose_config
from conf.convert import lora_settings, model_settings
from tasks.data.batches import tokenise
from tasks.data.examples import TextExamples
from tasks.models.build import build_model
from tasks.models.tokenizer import load_tokenizer

WORDS = "the film is a great and very funny story about two old people who love music but never talk".split()
BLOCKS, STEPS, TOKENS = 7, 8, 32


class _SharedRows(torch.nn.Module):
    """Our model behind the two arguments of the baseline's loop; the first holds whatever our batches hold."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.base_model = model.base_model

    def forward(self, inputs: dict[str, Any], _: None) -> Any:
        """Return logits."""
        return self.base_model(**inputs)


def _texts(count: int, tokens: int) -> TextExamples:
    """Texts of exactly ``tokens`` tokens: every word is one, and two are added around them."""
    rng = np.random.default_rng(0)
    return TextExamples(tuple(" ".join(rng.choice(WORDS, tokens - 2)) for _ in range(count)), rng.integers(0, 2, count))


def measure(setting: Setting) -> dict[str, dict[str, float]]:
    """Return CPU seconds per step of both sides, for both comparisons, on the study's data."""
    sys.path.insert(0, str(BASELINE))
    from lora_baseline import task as baseline  # type: ignore[import-not-found]

    torch.set_num_threads(1)
    config = {**baseline_config(setting), "local-steps": STEPS}
    size = config["batch-size"]
    ours = compose_config("model=minilm lora.layers=all")
    settings, task = model_settings(ours), baseline.data_of(config)
    model = build_model(settings, lora_settings(ours), num_outputs=task.num_outputs)
    theirs = baseline.get_model(task.num_outputs, config)

    even = list(baseline.get_loader(_texts(STEPS * size, TOKENS), {**config, "max-length": TOKENS}))
    assert all(bool(mask.all()) for _, mask, _ in even), "the texts do not all have the length asked for"
    phrases = task.train.subset(np.arange(STEPS * size))
    padded = [
        (ids[:, : mask.sum(1).max()], mask[:, : mask.sum(1).max()], labels)
        for ids, mask, labels in baseline.get_loader(phrases, config)
    ]
    encoded = tokenise(load_tokenizer(replace(settings, max_tokens=config["max-length"])), phrases)
    parts = (encoded.batch(range(first, first + size)) for first in range(0, STEPS * size, size))
    shared = [(batch.inputs, None, batch.labels) for batch in parts]

    def block(side: Any, batches: list[Any]) -> Callable[[], float]:
        def run() -> float:
            began = time.process_time()
            baseline.train(side, batches, config)
            return (time.process_time() - began) / STEPS

        return run

    return {
        "layer": interleaved({"peft_s": block(theirs, even), "ours_s": block(model, even)}, BLOCKS),
        "texts": interleaved({"peft_s": block(theirs, padded), "ours_s": block(_SharedRows(model), shared)}, BLOCKS),
    }
