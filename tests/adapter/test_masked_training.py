import numpy as np
import pytest
import torch

from adapter import AdapterSpec, AdapterState, ModuleShape, gather, sample_mask
from adapter.masked_training import masked_adapter
from tests.support.adapters import LoraLinear, random_state

SPEC = AdapterSpec((ModuleShape("q", 12, 10, 3),))
RATE = 0.5


def _train(layer: LoraLinear, steps: int, optimizer: str) -> None:
    parameters = [p for p in layer.parameters() if p.requires_grad]
    kind = {"adamw": torch.optim.AdamW, "sgd": lambda p, **k: torch.optim.SGD(p, momentum=0.9, **k)}[optimizer]
    step = kind(parameters, lr=0.05 if optimizer == "adamw" else 1e-3, weight_decay=0.1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        x = torch.randn(8, 10, generator=generator)
        step.zero_grad()
        layer(x).square().mean().backward()
        step.step()


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_dropped_entries_never_regrow_and_kept_ones_move(optimizer: str) -> None:
    # Trap 1 of the released code: masked once, then every entry regrew and was uploaded.
    torch.manual_seed(0)
    layer, dense = LoraLinear(12, 10, 3), random_state(SPEC)
    mask = sample_mask(SPEC, 5, RATE)
    sub = gather(SPEC, dense, mask)
    kept = mask.modules[0]
    with masked_adapter({"q": layer}, SPEC, sub, mask, scale=4.0, factors=("A", "B")):
        _train(layer, 6, optimizer)
        A, B = layer.lora_A["default"].weight.detach().numpy(), layer.lora_B["default"].weight.detach().numpy()
        assert np.count_nonzero(np.delete(A, kept.columns, axis=1)) == 0
        assert np.count_nonzero(np.delete(B, kept.rows, axis=0)) == 0
    after = gather(SPEC, AdapterState({"q": A}, {"q": B}), mask)
    assert (after.lora_A["q"] != sub.lora_A["q"]).all() and (after.lora_B["q"] != sub.lora_B["q"]).all()


def test_forward_is_the_scaled_masked_product() -> None:
    torch.manual_seed(0)
    layer, dense = LoraLinear(12, 10, 3), random_state(SPEC)
    mask = sample_mask(SPEC, 5, RATE)
    kept = mask.modules[0]
    m_a, m_b = np.zeros(10), np.zeros(12)
    m_a[kept.columns], m_b[kept.rows] = 1, 1
    a_hat = dense.lora_A["q"] * m_a / (1 - RATE)
    b_hat = m_b[:, None] * dense.lora_B["q"] / (1 - RATE)
    x = torch.randn(5, 10)
    expected = layer.base(x).detach().numpy() + 2.0 * x.numpy() @ a_hat.T @ b_hat.T
    with masked_adapter(
        {"q": layer}, SPEC, gather(SPEC, dense, mask), mask, scale=1 / (1 - RATE) ** 2, factors=("A", "B")
    ):
        np.testing.assert_allclose(layer(x).detach().numpy(), expected, rtol=1e-4, atol=1e-5)
    assert layer.scaling["default"] == 2.0


def test_mean_of_the_masked_product_is_the_full_product() -> None:
    # E[B̂Â] = BA for independent masks: the reason for 1/(1-gamma) on each factor.
    dense, total = random_state(SPEC), np.zeros((12, 10))
    draws = 3000
    for seed in range(draws):
        kept = sample_mask(SPEC, seed, RATE).modules[0]
        total[np.ix_(kept.rows, kept.columns)] += (
            dense.lora_B["q"][kept.rows] @ dense.lora_A["q"][:, kept.columns]
        ) * 4
    full = dense.lora_B["q"] @ dense.lora_A["q"]
    assert np.abs(total / draws - full).max() < 6 * np.abs(full).max() * np.sqrt(3 / draws)


def test_gradient_of_kept_entries_is_that_of_the_compact_matrices() -> None:
    torch.manual_seed(0)
    layer, dense = LoraLinear(12, 10, 3), random_state(SPEC)
    mask = sample_mask(SPEC, 9, RATE)
    kept, sub = mask.modules[0], gather(SPEC, dense, mask)
    x = torch.randn(5, 10)
    with masked_adapter({"q": layer}, SPEC, sub, mask, scale=4.0, factors=("A", "B")):
        layer(x).pow(2).sum().backward()
        ours_A = layer.lora_A["default"].weight.grad.numpy()[:, kept.columns]
        ours_B = layer.lora_B["default"].weight.grad.numpy()[kept.rows]
    A = torch.tensor(sub.lora_A["q"], requires_grad=True)
    B = torch.tensor(sub.lora_B["q"], requires_grad=True)
    rows = torch.from_numpy(kept.rows)
    compact = layer.base(x).index_add(1, rows, 2.0 * 4.0 * x[:, kept.columns] @ A.T @ B.T)
    compact.pow(2).sum().backward()
    np.testing.assert_allclose(ours_A, A.grad.numpy(), rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(ours_B, B.grad.numpy(), rtol=1e-4, atol=1e-3)


def test_a_frozen_factor_stays_and_everything_is_restored() -> None:
    layer, dense = LoraLinear(12, 10, 3), random_state(SPEC)
    mask = sample_mask(SPEC, 5, 0.0)
    with masked_adapter({"q": layer}, SPEC, dense, mask, scale=1.0, factors=("B",)):
        _train(layer, 2, "adamw")
        np.testing.assert_array_equal(layer.lora_A["default"].weight.detach().numpy(), dense.lora_A["q"])
    assert layer.lora_A["default"].weight.requires_grad and not layer.lora_A["default"].weight._backward_hooks
