"""One training step on a GPU: RoBERTa-large's shape with random weights, bfloat16, batch 32, 128 tokens.

Ratios of medians of interleaved repeats within one process. Run with `make bench` on a machine with an NVIDIA GPU.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tasks.data.batches import Batch
from tasks.models.build import build_model
from tasks.models.lora import trainable_parameters
from tasks.scoring.evaluation import task_loss
from tasks.settings import ComputeSettings, LoraSettings, ModelSettings

pytestmark = pytest.mark.benchmark

BATCH, TOKENS, REPEATS, WARM_UP = 32, 128, 15, 5


@pytest.fixture(scope="module")
def roberta_large(tmp_path_factory: pytest.TempPathFactory) -> ModelSettings:
    if not torch.cuda.is_available():
        pytest.skip("no GPU that PyTorch can use")
    from transformers import AutoModel, RobertaConfig

    config = RobertaConfig(
        vocab_size=50265,
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
        max_position_embeddings=514,
        type_vocab_size=1,
        pad_token_id=1,
    )
    folder = tmp_path_factory.mktemp("roberta-large")
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(folder)
    return ModelSettings(name="hub", path=str(folder), max_tokens=TOKENS)


def _model(settings: ModelSettings, fused: bool) -> Any:
    compute = ComputeSettings(fused_lora=fused, dtype="bfloat16", device="cuda")
    return build_model(settings, LoraSettings(r=8), num_outputs=2, compute=compute).train()


def _batch() -> Batch:
    rng = np.random.default_rng(0)
    ids = torch.from_numpy(rng.integers(4, 50000, (BATCH, TOKENS)))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return Batch(inputs, torch.from_numpy(rng.integers(0, 2, BATCH))).to("cuda")


def _training_step(model: Any, batch: Batch) -> Callable[[], None]:
    parameters = list(trainable_parameters(model).values())
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        task_loss(model(**batch.inputs), batch.labels, model.kind).backward()
        optimizer.step()

    return step


def _frozen_step(model: Any, batch: Batch) -> Callable[[], None]:
    """The limit: no factor, no optimizer; forward, and the gradient of every activation down to the embeddings."""
    base = model.base_model.model
    hidden: list[torch.Tensor] = []

    def keep(module: Any, args: Any, out: torch.Tensor) -> torch.Tensor:
        hidden[:] = [out.detach().requires_grad_(True)]
        return hidden[0]

    base.encoder.embeddings.register_forward_hook(keep)

    def step() -> None:
        with model.disable_adapter():
            loss = task_loss(model(**batch.inputs), batch.labels, model.kind)
        torch.autograd.grad(loss, hidden[0])

    return step


def _milliseconds(step: Callable[[], None]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    step()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end)


def test_step_against_peft_and_against_the_limit(
    roberta_large: ModelSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    batch, peak = _batch(), {}
    steps: dict[str, Callable[[], None]] = {}
    for name, fused in (("fused", True), ("peft", False), ("frozen", False)):
        before = torch.cuda.memory_allocated()
        model = _model(roberta_large, fused)
        steps[name] = (_frozen_step if name == "frozen" else _training_step)(model, batch)
        torch.cuda.reset_peak_memory_stats()
        for _ in range(WARM_UP):
            steps[name]()
        peak[name] = (torch.cuda.max_memory_allocated() - before) / 2**30
        gc.collect()
    times = {name: np.array([]) for name in steps}
    for _ in range(REPEATS):
        for name, step in steps.items():
            times[name] = np.append(times[name], _milliseconds(step))
    ratio = {name: np.median(times["fused"] / times[name]) for name in ("peft", "frozen")}
    with capsys.disabled():
        print(
            f"\n{torch.cuda.get_device_name()}, PyTorch {torch.__version__}, bfloat16, batch {BATCH}, {TOKENS} tokens, r = 8"
        )
        for name, values in times.items():
            low, middle, high = np.percentile(values, [10, 50, 90])
            rate = BATCH * TOKENS / middle * 1e3
            print(
                f"  {name:7s} {middle:7.2f} ms ({low:.2f} to {high:.2f}) · {rate:9.0f} tokens/s · peak {peak[name]:.2f} GiB"
            )
        print(f"  fused / PEFT {ratio['peft']:.3f} (target 0.95) · fused / frozen {ratio['frozen']:.3f} (target 1.06)")
    assert ratio["peft"] < 1.0


def test_losses_follow_pefts(roberta_large: ModelSettings) -> None:
    batch, losses = _batch(), []
    for fused in (True, False):
        model = _model(roberta_large, fused)
        step = _training_step(model, batch)
        course = []
        for _ in range(8):
            with torch.no_grad():
                course.append(float(task_loss(model(**batch.inputs), batch.labels, model.kind)))
            step()
        losses.append(course)
        del model, step
        gc.collect()
    np.testing.assert_allclose(losses[0], losses[1], atol=0.03)  # bfloat16 keeps three digits
