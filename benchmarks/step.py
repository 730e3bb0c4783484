"""One training step of ours beside PEFT LoRA: all layers, no prefix cache, the same loop, texts, order and base model.

CPU seconds per step on one thread, twice:

- ``layer``: texts of one length, so neither side pads and only the LoRA layer differs.
- ``texts``: the first phrases of the task, as devices read them. PEFT's side pads to the longest text of the batch (the
  kinder choice: the baseline app pads to a fixed length); ours lets short texts share rows, as every run does.
"""

import sys
import time
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.federations import BASELINE, baseline_config
from benchmarks.setting import Setting
from benchmarks.watch import interleaved
from conf.compose import compose_config
from conf.convert import lora_settings, model_settings
from tasks.data.batches import tokenise
from tasks.data.examples import TextExamples
from tasks.data.load import load_task
from tasks.models.build import build_model, load_tokenizer

WORDS = "the film is a great and very funny story about two old people who love music but never talk".split()
BLOCKS, STEPS, TOKENS = 7, 8, 32


class _SharedRows(nn.Module):
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


def _block(baseline: Any, model: Any, batches: list[Any], config: dict[str, Any]) -> float:
    """Train some steps and return the CPU seconds of one."""
    began = time.process_time()
    baseline.train(model, batches, config)
    return (time.process_time() - began) / STEPS


def measure(setting: Setting) -> dict[str, dict[str, float]]:
    """Return CPU seconds per step of both sides, for both comparisons, on the study's data."""
    sys.path.insert(0, str(BASELINE))
    from lora_baseline import task as baseline  # type: ignore[import-not-found]

    torch.set_num_threads(1)
    config = {**baseline_config(setting), "local-steps": STEPS}
    size = config["batch-size"]
    ours = compose_config("model=minilm lora.layers=all")
    settings = model_settings(ours)
    task = load_task(
        name=setting.task,
        seed=config["seed"],
        train_file=setting.train_file or None,
        validation_file=setting.test_file or None,
        train_limit=setting.train_limit,
    )
    model = build_model(settings, lora_settings(ours), num_outputs=task.num_outputs)
    theirs = baseline.get_model(task.num_outputs, config)

    even = list(baseline.get_loader(_texts(STEPS * size, TOKENS), {**config, "max-length": TOKENS}))
    assert all(bool(mask.all()) for _, mask, _ in even), "the texts do not all have the length asked for"
    phrases = task.train.subset(np.arange(STEPS * size))
    padded = [
        (ids[:, : int(mask.sum(1).max())], mask[:, : int(mask.sum(1).max())], labels)
        for ids, mask, labels in baseline.get_loader(phrases, config)
    ]
    encoded = tokenise(load_tokenizer(replace(settings, max_tokens=config["max-length"])), phrases)
    shared = [
        (batch.inputs, None, batch.labels)
        for batch in (encoded.batch(range(i, i + size)) for i in range(0, STEPS * size, size))
    ]
    sides = {"layer": ((theirs, even), (model, even)), "texts": ((theirs, padded), (_SharedRows(model), shared))}
    found = {}
    for name, both in sides.items():
        cases = {
            side: partial(_block, baseline, *of, config) for side, of in zip(("peft_s", "ours_s"), both, strict=True)
        }
        found[name] = interleaved(cases, BLOCKS)
    return found
