"""Products with frozen weights: the same values as PyTorch's, and the choice of library."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tasks.models.build import build_model
from tasks.settings import ComputeSettings, LoraSettings, ModelSettings
from tasks.speed import frozen_linear
from tasks.speed.frozen_linear import FrozenLinear, freeze_products, frozen_product, wide_products
from tests.support.encoders import loss_and_gradients, random_texts, randomise

WIDE = {"cpu_name": "AMD EPYC", "avx2": True, "avx512_f": True}


@pytest.fixture(autouse=True)
def _fresh_decision() -> Iterator[None]:
    frozen_linear._smallest_weight.cache_clear()
    yield
    frozen_linear._smallest_weight.cache_clear()


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor with AVX-512 that is not Intel's; oneDNN takes whatever the real one has."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: WIDE)
    if not wide_products(2**16):
        pytest.skip("this build of PyTorch has no oneDNN product for float32")


@pytest.mark.parametrize(
    "capabilities",
    [
        {"cpu_name": "Intel(R) Xeon(R) Platinum", "avx2": True, "avx512_f": True},
        {"cpu_name": "AMD Opteron", "avx2": False},
        {"architecture": "aarch64"},
        {},
    ],
)
def test_other_processors_keep_pytorchs_choice(monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, Any]) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert not wide_products(2**30)
    freeze_products(model := nn.Sequential(nn.Linear(512, 512).requires_grad_(False)))
    assert type(model[0]) is nn.Linear


def test_with_avx2_alone_only_the_head_of_a_language_model_goes_through_oneDNN(
    monkeypatch: pytest.MonkeyPatch, wide: None
) -> None:
    frozen_linear._smallest_weight.cache_clear()
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: WIDE | {"avx512_f": False})
    assert wide_products(49_152 * 576) and not wide_products(3072 * 1024)


@pytest.mark.parametrize("answer", [AttributeError("gone"), RuntimeError("not built"), torch.zeros(2, 4)])
def test_a_build_without_the_operation_or_with_another_meaning_is_not_used(
    monkeypatch: pytest.MonkeyPatch, answer: Exception | Tensor
) -> None:
    def operation(*_: Any) -> Tensor:
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: WIDE)
    monkeypatch.setattr(frozen_linear, "_one_dnn", operation)
    assert not wide_products(2**30)


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 384), (37, 384), (3, 11, 384)])
def test_values_and_gradients_are_pytorchs(shape: tuple[int, ...], bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(384, 256, bias=bias).requires_grad_(False)
    frozen = nn.Linear(384, 256, bias=bias).requires_grad_(False)
    frozen.load_state_dict(plain.state_dict())
    freeze_products(nn.Sequential(frozen))
    assert isinstance(frozen, FrozenLinear)
    used, one_dnn = [], frozen_linear._one_dnn
    monkeypatch.setattr(frozen_linear, "_one_dnn", lambda *a: used.append(a) or one_dnn(*a))
    inputs = [torch.randn(shape, generator=torch.Generator().manual_seed(1), requires_grad=True) for _ in range(2)]
    outputs = [layer(x) for layer, x in zip((plain, frozen), inputs, strict=True)]
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-5, atol=1e-5)
    direction = torch.randn_like(outputs[0])
    for y in outputs:
        y.backward(direction)
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad, rtol=1e-5, atol=1e-5)
    assert len(used) == 2  # once forward, once backward
    assert torch.equal(frozen(inputs[1]), outputs[1])  # equal bits every time


@pytest.mark.usefixtures("wide")
def test_what_oneDNN_does_not_cover_stays_with_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen_linear, "_one_dnn", lambda *_: pytest.fail("not covered"))
    x = torch.randn(5, 384, dtype=torch.float64)
    torch.testing.assert_close(frozen_product(x, torch.eye(384, dtype=torch.float64)), x)
    small = torch.randn(5, 8)
    torch.testing.assert_close(frozen_product(small, torch.eye(8)), small)
    trained = nn.Linear(384, 384)
    freeze_products(nn.Sequential(trained))
    assert type(trained) is nn.Linear
    trained.requires_grad_(False)
    freeze_products(nn.Sequential(trained))
    assert isinstance(trained, FrozenLinear)
    trained.requires_grad_(True)  # later on: PyTorch's own layer with the weight's gradient
    trained(torch.randn(2, 384)).sum().backward()
    assert trained.weight.grad is not None


@pytest.mark.usefixtures("wide")
def test_a_model_learns_the_same(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4}
    BertModel(BertConfig(vocab_size=1000, **sizes)).save_pretrained(tmp_path)
    settings = ModelSettings(name="hub", path=str(tmp_path))
    models = [
        build_model(settings, LoraSettings(r=4), num_outputs=3, compute=ComputeSettings(fused_lora=fused, device="cpu"))
        for fused in (True, False)
    ]
    kinds = [sum(isinstance(part, FrozenLinear) for part in model.modules()) for model in models]
    assert kinds == [2 * 4, 0]  # key and three dense layers; query and value are LoRA layers
    for model in models:
        randomise(model)
    batch = random_texts(10).batch(np.arange(10))
    (loss, gradients), (expected, wanted) = (loss_and_gradients(model, batch) for model in models)
    assert loss == pytest.approx(expected, abs=1e-6)
    for name, value in wanted.items():
        torch.testing.assert_close(gradients[name], value, rtol=1e-4, atol=1e-6 * float(value.abs().max()), msg=name)


_GROWTH = """
import resource, sys
from tasks.process import prepare_process
prepare_process()
import torch
from tasks.speed import frozen_linear
frozen_linear.wide_products = lambda _: True
weight = torch.zeros(1536, 384)
def peak_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 2**20)
frozen_linear.frozen_product(torch.zeros(400, 384), weight)
before = peak_mib()
for tokens in range(100, 400):
    frozen_linear.frozen_product(torch.zeros(tokens, 384), weight)
print(peak_mib() - before)
"""


@pytest.mark.usefixtures("wide")
def test_batches_of_all_sizes_leave_no_kernels_behind() -> None:
    """Kept for every number of tokens, prepared kernels took 330 MiB of each worker in a default run."""
    done = subprocess.run([sys.executable, "-c", _GROWTH], check=True, capture_output=True, text=True)
    assert float(done.stdout) < 40
