"""The algebra of every method against literal NumPy: products written out, no shared code with the product."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from adapter import AdapterSpec, AdapterState, ModuleShape, gather, sample_mask
from adapter.base_update import apply_update
from strategy.aggregation import Answer
from strategy.aggregation.products import (
    WholeAnswers,
    as_update,
    exact_mean,
    mean_factors,
    measured_mean,
    residual,
    stack,
    truncated,
)
from strategy.methods.hetlora import product_norm
from tasks.models.lora import set_base
from tests.support.adapters import random_state, small_spec

M, N, S = 20, 12, 2.0  # not square: a transposed residual cannot hide behind equal shapes
SPEC = AdapterSpec((ModuleShape("q", M, N, 4),))


def _pairs(ranks: tuple[int, ...], seed: int = 0) -> tuple[list[tuple[np.ndarray, np.ndarray]], np.ndarray]:
    rng = np.random.default_rng(seed)
    weights = rng.integers(1, 50, len(ranks)).astype(float)
    return [(rng.standard_normal((M, r)), rng.standard_normal((r, N))) for r in ranks], weights / weights.sum()


def _mean_product(pairs: Any, shares: np.ndarray) -> np.ndarray:
    return sum(p * B @ A for p, (B, A) in zip(shares, pairs, strict=True))


@pytest.mark.parametrize("count", [2, 3, 7])
def test_fedex_residual_makes_the_product_exact(count: int) -> None:
    pairs, shares = _pairs((4,) * count)
    mean_B, mean_A = mean_factors(pairs, shares)
    np.testing.assert_allclose(mean_B, sum(p * B for p, (B, _) in zip(shares, pairs, strict=True)), atol=1e-12)
    left, right = residual(pairs, shares, mean_B, S)
    assert left.shape == (M, 4 * (count - 1)) and right.shape == (4 * (count - 1), N)
    wanted = S * _mean_product(pairs, shares)
    got = S * mean_B @ mean_A + left @ right
    assert np.abs(got - wanted).max() <= 1e-6 * np.abs(wanted).max()
    # Plain averaging of the factors, without the residual, is far off: there is something to correct.
    assert np.linalg.norm(S * mean_B @ mean_A - wanted) > 0.3 * np.linalg.norm(wanted)


def test_what_averaging_both_factors_loses_is_measured_and_nothing_is_repaired() -> None:
    spec, mask = small_spec(), sample_mask(small_spec(), 0, 0.0)
    state, changes = random_state(spec), [random_state(spec, seed) for seed in (1, 2, 3)]
    answers = WholeAnswers(spec, measured_mean)
    for device, change in enumerate(changes):
        answers.add(Answer(change, mask, 1.0 + device, device, lambda: state))
    found, shares = answers.finish(state), np.array([1, 2, 3]) / 6
    lost = whole = 0.0
    for name in state.lora_A:
        pairs = [(state.lora_B[name] + c.lora_B[name], state.lora_A[name] + c.lora_A[name]) for c in changes]
        mean_B, mean_A = mean_factors(pairs, shares)
        np.testing.assert_allclose(found.state.lora_B[name], mean_B, rtol=1e-5, atol=1e-6)
        lost += np.linalg.norm(_mean_product(pairs, shares) - mean_B @ mean_A) ** 2
        whole += np.linalg.norm(_mean_product(pairs, shares)) ** 2
    assert found.base_update is None
    assert found.averaging_error == pytest.approx(np.sqrt(lost / whole), rel=1e-5) and found.averaging_error > 0.1
    alone = WholeAnswers(spec, measured_mean)
    alone.add(Answer(changes[0], mask, 1.0, 0, lambda: state))
    assert alone.finish(state).averaging_error == pytest.approx(0, abs=1e-12)


class _Layer(nn.Module):
    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def get_base_layer(self) -> nn.Module:
        return self.base


@pytest.mark.parametrize("kind", ["linear", "conv1d", "square linear"])
def test_fedex_in_the_orientation_of_the_layer(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trap 2: FedEx-LoRA's released code adds the transposed residual to nn.Linear; its error is larger than FedIT's."""
    m, n = (M, M) if kind.startswith("square") else (M, N)
    rng, r = np.random.default_rng(1), 3
    pairs = [(rng.standard_normal((m, r)), rng.standard_normal((r, n))) for _ in range(3)]
    shares = np.array([0.2, 0.3, 0.5])
    layer = _Layer(Conv1D(m, n) if kind == "conv1d" else nn.Linear(n, m, bias=False))
    x = torch.randn(5, n)
    before = layer.base(x).detach().double().numpy()
    monkeypatch.setattr("tasks.models.lora.lora_layers", lambda model: iter([("q", layer)]))
    mean_B, mean_A = mean_factors(pairs, shares)
    delta = apply_update({}, as_update({"q": residual(pairs, shares, mean_B, S)}))  # type: ignore[arg-type]
    set_base(layer, delta)
    moved = layer.base(x).detach().double().numpy() - before + S * (x.double().numpy() @ mean_A.T) @ mean_B.T
    wanted = S * x.double().numpy() @ _mean_product(pairs, shares).T
    np.testing.assert_allclose(moved, wanted, atol=2e-5 * np.abs(wanted).max())
    if m == n:
        transposed = S * mean_B @ mean_A + delta["q"].T
        exact = S * _mean_product(pairs, shares)
        wrong = np.linalg.norm(transposed - exact)
        assert wrong > np.linalg.norm(S * mean_B @ mean_A - exact)


def test_exact_aggregation_with_dropout_counts_dropped_entries_as_unchanged() -> None:
    spec, state, average = (
        small_spec(),
        random_state(small_spec()),
        WholeAnswers(small_spec(), partial(exact_mean, scaling=S)),
    )
    whole: list[tuple[float, AdapterState]] = []
    for device, rate in enumerate((0.0, 0.3, 0.6)):
        mask = sample_mask(spec, device, rate)
        changes, weight = gather(spec, random_state(spec, 10 + device), mask), float(10 + device)
        after = state.copy()
        for module, kept in zip(spec.modules, mask.modules, strict=True):
            for j, column in enumerate(kept.columns):
                after.lora_A[module.name][:, column] += changes.lora_A[module.name][:, j]
            for i, row in enumerate(kept.rows):
                after.lora_B[module.name][row] += changes.lora_B[module.name][i]
        for name in after.head:
            after.head[name] += changes.head[name]
        whole.append((weight, after))
        average.add(Answer(changes, mask, weight, device, lambda: state))
    averaged = average.finish(state)
    new, update = averaged.state, averaged.base_update
    assert update is not None
    delta, total = apply_update({}, update), sum(weight for weight, _ in whole)
    for module in spec.modules:
        name = module.name
        wanted = S * sum(w / total * a.lora_B[name].astype(float) @ a.lora_A[name] for w, a in whole)
        got = S * new.lora_B[name].astype(float) @ new.lora_A[name] + delta[name]
        np.testing.assert_allclose(got, wanted, atol=2e-6 * np.abs(wanted).max())
    for name in new.head:
        np.testing.assert_allclose(
            new.head[name], sum(w / total * a.head[name] for w, a in whole), rtol=1e-5, atol=1e-6
        )


def test_one_answer_needs_no_update_of_the_base() -> None:
    spec, state, average = (
        small_spec(),
        random_state(small_spec()),
        WholeAnswers(small_spec(), partial(exact_mean, scaling=S)),
    )
    mask = sample_mask(spec, 0, 0.0)
    average.add(Answer(gather(spec, random_state(spec, 1), mask), mask, 5.0, 0, lambda: state))
    averaged = average.finish(state)
    new, update = averaged.state, averaged.base_update
    assert update is None and np.allclose(
        new.lora_A["q"], state.lora_A["q"] + random_state(spec, 1).lora_A["q"], atol=1e-6
    )


def test_flora_stack_is_the_weighted_sum_of_products_with_the_share_once() -> None:
    pairs, shares = _pairs((1, 4, 2))
    scalings = [16.0, 4.0, 8.0]
    left, right = stack(pairs, shares, scalings)
    assert left.shape == (M, 7) and right.shape == (7, N)
    wanted = sum(p * s * B @ A for p, s, (B, A) in zip(shares, scalings, pairs, strict=True))
    np.testing.assert_allclose(left @ right, wanted, atol=1e-12)
    squared = sum(p**2 * s * B @ A for p, s, (B, A) in zip(shares, scalings, pairs, strict=True))
    assert np.abs(squared - wanted).max() > 0.1


@pytest.mark.parametrize("ranks", [(1, 4, 2), (4,) * 9, (1,)])
def test_flexlora_truncation_is_the_best_one(ranks: tuple[int, ...]) -> None:
    pairs, shares = _pairs(ranks)
    left, right = stack(pairs, shares, [S] * len(ranks))
    U, singular, Vt = truncated(left, right, 4)
    u, s, vt = np.linalg.svd(left @ right)
    s[4:] = 0
    np.testing.assert_allclose(singular, s[:4], atol=1e-10)
    np.testing.assert_allclose((U * singular) @ Vt, (u[:, :N] * s) @ vt, atol=1e-10)
    for rank in (1, 2, 3):  # a device of lower rank: the first components are its best approximation
        best = (u[:, :rank] * s[:rank]) @ vt[:rank]
        np.testing.assert_allclose((U[:, :rank] * singular[:rank]) @ Vt[:rank], best, atol=1e-10)


def test_hetlora_norm_and_padding() -> None:
    pairs, _ = _pairs((1, 4, 2))
    assert product_norm(pairs) == pytest.approx(np.sqrt(sum(np.linalg.norm(B @ A) ** 2 for B, A in pairs)))
    state = random_state(SPEC)
    cut = state.cut_rank(2)
    assert cut.lora_A["q"].shape == (2, N) and cut.lora_B["q"].shape == (M, 2)
    padded = cut.padded(SPEC)
    np.testing.assert_array_equal(padded.lora_A["q"], np.vstack([state.lora_A["q"][:2], np.zeros((2, N))]))
    np.testing.assert_array_equal(padded.lora_B["q"], np.hstack([state.lora_B["q"][:, :2], np.zeros((M, 2))]))


def test_answers_do_not_depend_on_their_order() -> None:
    spec, state, found = small_spec(), random_state(small_spec()), []
    mask = sample_mask(spec, 0, 0.0)
    for order in ((0, 1, 2), (2, 0, 1)):
        answers = WholeAnswers(spec, partial(exact_mean, scaling=S))
        for device in order:
            answers.add(
                Answer(gather(spec, random_state(spec, device), mask), mask, 1.0 + device, device, lambda: state)
            )
        found.append(stack(answers.pairs("q"), answers.shares(), [1.0] * 3))
    assert all(np.array_equal(a, b) for a, b in zip(*found, strict=True))
