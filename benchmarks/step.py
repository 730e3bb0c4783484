"""One training step with our LoRA layers beside PEFT's: all layers, no prefix cache, the same loop, batches and base model.

Run as `python -m benchmarks.step [STEPS] [TOKENS]`; prints one line of JSON with CPU seconds per step on one thread. Texts all
have one length, so neither side pads: what differs is the model alone, the baseline app's and ours.
"""

from __future__ import annotations

import json
import sys
import time
from statistics import median

import numpy as np
import torch

from benchmarks.federations import BASELINE, baseline_config
from benchmarks.setting import make_setting
from conf.compose import compose_config
from conf.plain import lora_settings, model_settings
from tasks.examples import TextExamples
from tasks.fused_lora import fuse
from tasks.models import build_model

WORDS = "the film is a great and very funny story about two old people who love music but never talk".split()
BLOCKS = 7


def _texts(count: int, tokens: int) -> TextExamples:
    """Texts of exactly ``tokens`` tokens: every word is one, and two are added around them."""
    rng = np.random.default_rng(0)
    return TextExamples(tuple(" ".join(rng.choice(WORDS, tokens - 2)) for _ in range(count)), rng.integers(0, 2, count))


def measure(steps: int, tokens: int) -> dict[str, float]:
    """Return CPU seconds per step of both: medians of interleaved blocks, after one block of each to warm up."""
    sys.path.insert(0, str(BASELINE))
    from lora_baseline import task as baseline  # type: ignore[import-not-found]

    torch.set_num_threads(1)
    setting = make_setting(quick=False, data=None, repeats=None, baseline_tokens=tokens)
    config = {**baseline_config(setting), "local-steps": steps, "max-length": tokens}
    ours = compose_config("model=minilm lora.layers=all")
    model = build_model(model_settings(ours), lora_settings(ours), num_outputs=2)
    fuse(model)  # changes nothing where it is fused already
    sides = {"peft": baseline.get_model(2, config), "ours": model}
    loader = list(baseline.get_loader(_texts(steps * config["batch-size"], tokens), config, shuffle_seed=0))
    assert all(bool(mask.all()) for _, mask, _ in loader), "the texts do not all have the length asked for"
    spent: dict[str, list[float]] = {name: [] for name in sides}
    for block in range(BLOCKS + 1):
        for name, side in sides.items():
            began = time.process_time()
            baseline.train(side, loader, config)
            if block:
                spent[name].append((time.process_time() - began) / steps)
    return {f"{name}_s": median(values) for name, values in spent.items()}


if __name__ == "__main__":
    print(json.dumps(measure(*(int(word) for word in (sys.argv[1:] + ["8", "32"][len(sys.argv) - 1 :])))))
