"""One training step of ours beside PEFT LoRA: all layers, no prefix cache, the same loop, texts, order and base model.

CPU seconds per step on one thread, twice:

- ``step_layer_only``: random tokens of one length, so neither side pads and only the LoRA layer differs.
- ``step``: the first phrases of the task, as devices read them. PEFT's side pads to the longest text of the batch (the
  kinder choice: the baseline app pads to a fixed length); ours lets short texts share rows, as every run does.
"""

import sys
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.federations import BASELINE, Setting, baseline_config
from benchmarks.watch import interleaved
from conf.compose import compose_config
from conf.convert import lora_settings, model_settings
from tasks.data.batches import tokenise
from tasks.models.build import build_model
from tasks.models.tokenizer import load_tokenizer

BLOCKS, STEPS, TOKENS = 7, 8, 32


class _ByName(torch.nn.Module):
    """Our model behind the two arguments of the baseline's loop; the first holds whatever our batches hold."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.base_model = model.base_model

    def forward(self, inputs: dict[str, Any], _: None) -> Any:
        """Return logits."""
        return self.base_model(**inputs)


def measure(setting: Setting) -> dict[str, tuple[float, float]]:
    """Return CPU seconds per step, ours and PEFT's, for both comparisons, on the study's data."""
    sys.path.insert(0, str(BASELINE))
    from lora_baseline import task as baseline  # type: ignore[import-not-found]

    torch.set_num_threads(1)
    config = {**baseline_config(setting), "local-steps": STEPS}
    size = config["batch-size"]
    ours = compose_config("model=minilm lora.layers=all")
    settings, task = model_settings(ours), baseline.data_of(config)
    model = build_model(settings, lora_settings(ours), num_outputs=task.num_outputs)
    theirs = baseline.get_model(task.num_outputs, config)

    ones, labels = torch.ones(size, TOKENS, dtype=torch.long), torch.zeros(size, dtype=torch.long)
    even = [(torch.randint(1000, 30000, (size, TOKENS)), ones, labels) for _ in range(STEPS)]
    phrases = task.train.subset(np.arange(STEPS * size))
    padded = [
        (ids[:, : mask.sum(1).max()], mask[:, : mask.sum(1).max()], labels)
        for ids, mask, labels in baseline.get_loader(phrases, config)
    ]
    encoded = tokenise(load_tokenizer(replace(settings, max_tokens=config["max-length"])), phrases)
    parts = (encoded.batch(range(first, first + size)) for first in range(0, STEPS * size, size))
    shared = [(batch.inputs, None, batch.labels) for batch in parts]

    def compared(theirs_on: list[Any], ours_on: list[Any]) -> tuple[float, float]:
        cases = {
            "PEFT": partial(baseline.train, theirs, theirs_on, config),
            "ours": partial(baseline.train, _ByName(model), ours_on, config),
        }
        spent = interleaved(cases, BLOCKS, STEPS)
        return spent["ours"], spent["PEFT"]

    named = [({"input_ids": ids, "attention_mask": mask}, None, labels) for ids, mask, labels in even]
    return {"step": compared(padded, shared), "step_layer_only": compared(even, named)}
