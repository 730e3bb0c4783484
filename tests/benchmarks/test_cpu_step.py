"""One training step on the CPU, step by step of what was made faster: medians of interleaved repeats of CPU time.

`make bench` prints the table of docs/performance.md ("Where a step's time goes").
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tasks.data.batches import Tokenised, sample_batches
from tasks.models.build import build_model
from tasks.scoring.evaluation import task_loss
from tasks.settings import ComputeSettings, LoraSettings, ModelError, ModelSettings
from tasks.speed import frozen_linear
from tasks.speed.block_store import BlockStore
from tasks.speed.prefix_cache import PrefixCache

pytestmark = pytest.mark.benchmark

EXAMPLES, BATCH, STEPS, REPEATS = 160, 16, 4, 7


def _phrases() -> Tokenised:
    """Random tokens with the lengths of SST-2's phrases: mean 13.7, up to 40 (a geometric tail above 4)."""
    rng = np.random.default_rng(0)
    lengths = np.clip(4 + rng.geometric(1 / 10, EXAMPLES), 4, 40)
    ids = tuple(rng.integers(1000, 30000, length).astype(np.int32) for length in lengths)
    return Tokenised(ids, None, labels=rng.integers(0, 2, EXAMPLES), pad_token_id=0)


class _Fixed:
    """The same examples, always padded to 40 positions: what a tokenizer with ``padding='max_length'`` gives."""

    def __init__(self, data: Tokenised, length: int) -> None:
        self.data, self.length = data, length

    def batch(self, index: np.ndarray) -> Any:
        batch = self.data.batch(index)
        for name, fill in (("input_ids", 0), ("attention_mask", 0)):
            missing = self.length - batch.inputs[name].shape[1]
            batch.inputs[name] = torch.nn.functional.pad(batch.inputs[name], (0, missing), value=fill)
        return batch


def _steps(model: Any, data: Any, batches: list[np.ndarray]) -> Callable[[], float]:
    def run() -> float:
        started = time.process_time()
        for index in batches:
            batch = data.batch(index)
            task_loss(model(**batch.inputs), batch.labels, model.kind).backward()
            model.zero_grad(set_to_none=True)
        return (time.process_time() - started) / len(batches) * 1e3

    return run


def _padded(model: Any, case: Callable[[], float]) -> Callable[[], float]:
    """The same without shared rows."""

    def run() -> float:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(model.base_model.model, "layered", None)
            return case()

    return run


def _by_default_library(case: Callable[[], float]) -> Callable[[], float]:
    """The same with the products that PyTorch takes by itself."""

    def run() -> float:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(frozen_linear, "wide_products", lambda _: False)
            return case()

    return run


def _forward(model: Any, data: Any, batches: list[np.ndarray]) -> Callable[[], float]:
    def run() -> float:
        started = time.process_time()
        with torch.no_grad():
            for index in batches:
                model(**data.batch(index).inputs)
        return (time.process_time() - started) / len(batches) * 1e3

    return run


def test_what_each_step_of_the_work_brought(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.set_num_threads(1)
    try:
        plain = build_model(
            ModelSettings(), LoraSettings(), num_outputs=2, compute=ComputeSettings(fused_lora=False, device="cpu")
        )
    except ModelError as error:
        pytest.skip(str(error))
    fused = build_model(ModelSettings(), LoraSettings(), num_outputs=2)
    upper = build_model(ModelSettings(), LoraSettings(layers=3), num_outputs=2)
    half = build_model(
        ModelSettings(), LoraSettings(), num_outputs=2, compute=ComputeSettings(dtype="bfloat16", device="cpu")
    )
    data = _phrases()
    batches = sample_batches(EXAMPLES, BATCH, rng=np.random.default_rng(0), steps=STEPS)
    kept = PrefixCache(upper, BlockStore(64, tmp_path, 64)).source(data)
    kept.batch(np.arange(EXAMPLES))
    cases = {
        "PEFT, padded to 40": _padded(plain, _steps(plain, _Fixed(data, 40), batches)),
        "PEFT, padded to the batch's longest": _padded(plain, _steps(plain, data, batches)),
        "fused, padded to the batch's longest": _padded(fused, _steps(fused, data, batches)),
        "PEFT, shared rows": _steps(plain, data, batches),
        "fused, shared rows, PyTorch's products": _by_default_library(_steps(fused, data, batches)),
        "fused, shared rows": _steps(fused, data, batches),
        "fused, shared rows, bfloat16": _steps(half, data, batches),
        "upper 3 layers, fused, shared rows": _steps(upper, data, batches),
        "the same, lower states kept": _steps(upper, kept, batches),
        "forward alone, shared rows": _forward(fused, data, batches),
        "forward alone, bfloat16": _forward(half, data, batches),
    }
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(REPEATS):
        for name, case in cases.items():
            times[name].append(case())
    first = np.array(next(iter(times.values())))
    with capsys.disabled():
        print(f"\nMiniLM, batch {BATCH}, one thread, CPU milliseconds per step, {REPEATS} interleaved repeats")
        for name, values in times.items():
            low, high = np.percentile(values, [10, 90])
            ratio = np.median(np.array(values) / first)
            print(f"  {name:38s} {np.median(values):7.1f} ({low:.1f} to {high:.1f}) · {ratio:.2f} of the first")
        against = np.median(
            np.array(times["fused, padded to the batch's longest"]) / times["PEFT, padded to the batch's longest"]
        )
        print(f"  fused / PEFT, all layers, padded: {against:.3f} (target 0.95)")
        against = np.median(np.array(times["fused, shared rows"]) / times["PEFT, shared rows"])
        print(f"  fused / PEFT, all layers, shared rows: {against:.3f}")
    assert np.median(times["fused, shared rows"]) < np.median(times["PEFT, padded to 40"])
