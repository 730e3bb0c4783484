from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tasks.models.build import build_model, describe_model
from tasks.models.flops import count_flops
from tasks.models.lora import adapter_spec
from tasks.scoring.evaluation import task_loss
from tasks.settings import ComputeSettings, LoraSettings, ModelSettings


def _counted(model: Any, tokens: int, examples: int) -> tuple[float, float]:
    return count_flops(model.base_model.model, adapter_spec(model)).training(tokens=tokens, examples=examples)


def test_formula_by_hand(tiny):
    described = describe_model(tiny, LoraSettings(r=4), 3)
    linear = 2 * (4 * 32 * 32 + 2 * 32 * 64)  # two layers: query, key, value, output and the two of the MLP
    frozen, adapter = described.flops.training(tokens=100)
    assert frozen == 2 * 2 * linear * 100
    assert adapter == 6 * 4 * 4 * (32 + 32) * 100


def test_upper_layers_spare_the_backward_pass_below(tiny):
    every, upper = (describe_model(tiny, LoraSettings(layers=n), 3).flops for n in ("all", 1))
    assert upper.frozen_per_token == 0.75 * every.frozen_per_token
    assert upper.adapter_per_token == 0.5 * every.adapter_per_token


def test_built_model_counts_like_the_description(tiny_model, tiny):
    model = tiny_model()
    theirs = describe_model(tiny, LoraSettings(r=4), 3).flops.training(tokens=320, examples=10)
    assert _counted(model, 320, 10) == theirs


@pytest.mark.parametrize("layers", ["all", 1])
def test_against_pytorch_counter(layers):
    """PyTorch counts what runs; ours is above it by the skipped input gradients of the lowest projections."""
    settings = ModelSettings(name="tiny", max_tokens=64)
    compute = ComputeSettings(fused_lora=False, device="cpu")  # the counter knows no oneDNN
    model = build_model(settings, LoraSettings(r=4, layers=layers), num_outputs=3, compute=compute)
    model.base_model.model.encoder.set_attn_implementation("eager")  # plain matrix products, which the counter sees
    ids = torch.randint(3, 100, (8, 48), generator=torch.Generator().manual_seed(0))
    with FlopCounterMode(display=False) as counter:
        task_loss(
            model(input_ids=ids, attention_mask=torch.ones_like(ids)),
            torch.zeros(8, dtype=torch.int64),
            "classification",
        ).backward()
    ours = sum(_counted(model, 8 * 48, 8))
    # A fifth on two layers, where the lowest one weighs most.
    assert counter.get_total_flops() <= ours <= 1.2 * counter.get_total_flops()
