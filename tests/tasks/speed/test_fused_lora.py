"""The fused layer against numerical gradients and against PEFT's own layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from tasks.export.huggingface import save_adapter
from tasks.models.build import build_base, build_model
from tasks.models.lora import get_adapter
from tasks.settings import ComputeSettings, LoraSettings, ModelSettings
from tasks.speed.frozen_linear import FusedLoraLinear, LoraProduct, fuse, lora_product
from tests.support.encoders import loss_and_gradients, random_encoder, random_texts, randomise


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("needs", [(True, True, True), (False, True, True), (True, False, True), (True, True, False)])
@pytest.mark.parametrize("shape", [(5, 7), (2, 3, 7)])
def test_gradients_are_the_numerical_ones(shape: tuple[int, ...], needs: tuple[bool, ...], bias: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    draw = lambda *size: torch.randn(size, generator=generator, dtype=torch.float64)  # noqa: E731
    x, weight, b = draw(*shape), draw(6, 7), draw(6) if bias else None
    lora_A, lora_B = draw(3, 7), draw(6, 3)
    for tensor, need in zip((x, lora_A, lora_B), needs, strict=True):
        tensor.requires_grad_(need)
    assert torch.autograd.gradcheck(lambda x, a, b_: lora_product(x, weight, b, a, b_, 1.7), (x, lora_A, lora_B))
    expected = nn.functional.linear(x, weight, b) + 1.7 * x @ lora_A.T @ lora_B.T
    torch.testing.assert_close(lora_product(x, weight, b, lora_A, lora_B, 1.7), expected)


def test_nothing_that_nobody_needs_is_kept_or_computed() -> None:
    x, weight = torch.randn(4, 7), torch.randn(6, 7)
    lora_A, lora_B = torch.randn(3, 7), torch.randn(6, 3, requires_grad=True)
    y = LoraProduct.apply(x, weight, None, lora_A, lora_B, 2.0)
    kept = y.grad_fn.saved_tensors
    assert kept[0] is None and kept[1].shape == (3, 4)  # A x for the gradient of B, no x
    y.sum().backward()
    assert lora_A.grad is None and x.grad is None and lora_B.grad is not None


def _pair(settings: ModelSettings, **lora: Any) -> tuple[Any, Any]:
    models = [
        build_model(
            settings, LoraSettings(**lora), num_outputs=3, compute=ComputeSettings(fused_lora=fused, device="cpu")
        )
        for fused in (True, False)
    ]
    for model in models:
        randomise(model)
    return models[0], models[1]


@pytest.mark.parametrize("targets", [("query", "value"), ("query", "key", "value", "dense")])
def test_same_losses_and_gradients_as_peft(targets: tuple[str, ...], tmp_path: Path) -> None:
    fused, plain = _pair(random_encoder("bert", tmp_path), r=4, target_modules=targets)
    assert sum(isinstance(m, FusedLoraLinear) for m in fused.modules()) == 4 * (len(targets) + 2 * ("dense" in targets))
    assert not any(isinstance(m, FusedLoraLinear) for m in plain.modules())
    batch = random_texts(10).batch(np.arange(10))
    (loss, gradients), (expected, wanted) = loss_and_gradients(fused, batch), loss_and_gradients(plain, batch)
    assert loss == pytest.approx(expected, abs=1e-6)
    for name, value in wanted.items():
        torch.testing.assert_close(gradients[name], value, rtol=1e-4, atol=1e-6 * float(value.abs().max()), msg=name)


def test_twenty_steps_of_training_leave_the_same_adapter(tmp_path: Path) -> None:
    fused, plain = _pair(random_encoder("bert", tmp_path), r=4)
    data, losses = random_texts(40), {}
    for key, model in (("fused", fused), ("plain", plain)):
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
        losses[key] = []
        for step in range(20):
            optimizer.zero_grad()
            losses[key].append(loss_and_gradients(model, data.batch(np.arange(step, step + 16)))[0])
            optimizer.step()
    np.testing.assert_allclose(losses["fused"], losses["plain"], atol=1e-5)
    for name, value in get_adapter(fused).lora_A.items():
        np.testing.assert_allclose(value, get_adapter(plain).lora_A[name], atol=1e-4)


def test_saving_and_loading_stay_pefts(tmp_path: Path) -> None:
    settings = random_encoder("bert", tmp_path / "base")
    fused, _ = _pair(settings, r=4)
    batch = random_texts(5).batch(np.arange(5))
    save_adapter(fused, tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(build_base(settings, num_outputs=3), tmp_path / "adapter").eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(**batch.inputs), fused(**batch.inputs), atol=1e-6, rtol=1e-5)
        with fused.disable_adapter():
            without = fused(**batch.inputs)
        assert not torch.allclose(without, loaded(**batch.inputs))
        before = fused(**batch.inputs)
        fused.merge_adapter()
        torch.testing.assert_close(fused(**batch.inputs), before, atol=1e-5, rtol=1e-4)


class _Net(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


@pytest.mark.parametrize(
    "case", ["dropout", "dora", "lora_bias", "embedding", "conv1d", "trained base", "two adapters"]
)
def test_what_is_not_covered_runs_as_before(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(0)
    layer = {"embedding": nn.Embedding(9, 6), "conv1d": Conv1D(5, 6)}.get(case) or nn.Linear(6, 5)
    extra = {"dropout": {"lora_dropout": 0.5}, "dora": {"use_dora": True}, "lora_bias": {"lora_bias": True}}.get(
        case, {}
    )
    config = LoraConfig(
        r=2, target_modules=["layer"], init_lora_weights=False, fan_in_fan_out=case == "conv1d", **extra
    )
    model = get_peft_model(_Net(layer), config).eval()
    if case == "trained base":
        model.base_model.model.layer.base_layer.weight.requires_grad_(True)
    if case == "two adapters":
        model.add_adapter("second", config)
        model.base_model.set_adapter(["default", "second"])
    x = torch.tensor([[1, 2, 3]]) if case == "embedding" else torch.randn(3, 6)
    expected = model(x)
    fuse(model)
    monkeypatch.setattr(LoraProduct, "apply", lambda *_: pytest.fail("the fused operation does not cover this"))
    torch.testing.assert_close(model(x), expected)


def test_a_base_of_half_precision_keeps_factors_in_float32(tmp_path: Path) -> None:
    settings = random_encoder("bert", tmp_path)
    compute = ComputeSettings(dtype="bfloat16", device="cpu")
    half = build_model(settings, LoraSettings(r=4), num_outputs=3, compute=compute)
    whole, _ = _pair(settings, r=4)
    randomise(half)
    assert half.base_model.model.encoder.embeddings.word_embeddings.weight.dtype == torch.bfloat16
    assert all(value.dtype == torch.float32 for value in half.parameters() if value.requires_grad)
    batch = random_texts(8).batch(np.arange(8))
    (loss, gradients), (expected, wanted) = loss_and_gradients(half, batch), loss_and_gradients(whole, batch)
    assert loss == pytest.approx(expected, abs=2e-2)
    for name, value in wanted.items():
        assert gradients[name].dtype == torch.float32
        assert torch.nn.functional.cosine_similarity(gradients[name].flatten(), value.flatten(), dim=0) > 0.98, name


def test_a_device_that_is_not_there_is_refused() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    from tasks.settings import ModelError

    with pytest.raises(ModelError, match="training.device"):
        build_model(ModelSettings(name="tiny"), LoraSettings(), num_outputs=2, compute=ComputeSettings(device="cuda"))
