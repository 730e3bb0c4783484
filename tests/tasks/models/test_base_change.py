"""Changes of the frozen weights take effect whatever number type the weights have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tasks.models.build import build_model
from tasks.models.lora import linear_shape, lora_layers, set_base
from tasks.settings import ComputeSettings, LoraSettings
from tests.support.encoders import loss_and_gradients, random_encoder, random_texts


def _model(folder: Path, architecture: str, dtype: Any = "bfloat16", fused: bool = True) -> Any:
    compute = ComputeSettings(dtype=dtype, device="cpu", fused_lora=fused)
    return build_model(random_encoder(architecture, folder), LoraSettings(r=2), num_outputs=3, compute=compute)


def _layer(model: Any) -> tuple[str, Any]:
    return next(iter(lora_layers(model)))


@pytest.mark.parametrize("size", [1e-2, 1e-5, 2e-6])
@pytest.mark.parametrize(("architecture", "fused"), [("bert", True), ("bert", False), ("gpt2", True)])
def test_a_small_change_of_a_base_in_half_precision_is_not_lost(
    tmp_path: Path, architecture: str, fused: bool, size: float
) -> None:
    # Added to a weight in bfloat16, a change below 1/256 of the weight is rounded away: 92 % of it at a learning rate
    # of 1e-4.
    model = _model(tmp_path, architecture, fused=fused)
    name, layer = _layer(model)
    m, n = linear_shape(layer.get_base_layer())
    rng = np.random.default_rng(0)
    delta = size * rng.standard_normal((m, n)).astype(np.float32)
    x = torch.tensor(rng.standard_normal((4000, n))).to(torch.bfloat16)
    before = layer(x).double()
    set_base(model, {name: delta})
    moved = (layer(x).double() - before).detach().numpy()
    wanted = x.double().numpy() @ delta.T.astype(np.float64)
    # Outputs are rounded to bfloat16, change or no change; over many of them that averages out, a lost change does not.
    assert np.sum(moved * wanted) / np.sum(wanted * wanted) == pytest.approx(1, abs=0.1)
    set_base(model, {})
    assert torch.equal(layer(x).double(), before), "the pristine base comes back bit for bit"


def test_gradients_pass_through_the_change(tmp_path: Path) -> None:
    half, whole = (_model(tmp_path, "bert", dtype) for dtype in ("bfloat16", "float32"))
    rng = np.random.default_rng(1)
    deltas = {
        name: 0.3 * rng.standard_normal(linear_shape(layer.get_base_layer())) for name, layer in lora_layers(half)
    }
    batch, found = random_texts(8).batch(np.arange(8)), []
    for model in (half, whole):
        for _, layer in lora_layers(model):
            torch.nn.init.ones_(layer.lora_B["default"].weight)
        set_base(model, {name: value.astype(np.float32) for name, value in deltas.items()})
        found.append(loss_and_gradients(model, batch))
    (loss, gradients), (expected, wanted) = found
    assert loss == pytest.approx(expected, abs=5e-2)
    for name, value in wanted.items():
        assert torch.nn.functional.cosine_similarity(gradients[name].flatten(), value.flatten(), dim=0) > 0.95, name
