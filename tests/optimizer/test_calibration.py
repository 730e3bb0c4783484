"""The fit of the bound's constants: recovers what made the data, says honestly how well it predicts."""

from __future__ import annotations

import numpy as np
import pytest

from optimizer.calibration import Sweep, bootstrap, fit, judge, leave_one_seed_out
from optimizer.objective import bound_value, empirical_part, stability_gap
from optimizer.problem import BoundConstants, ProblemError

TRUE = BoundConstants(
    empirical_scale=0.06, loss_bound=1.3, lipschitz=0.7, curvature_min=0.5, sparsity_regularization=3.0, confidence=0.1
)
RATES = np.arange(0.0, 0.95, 0.1)
KEPT = {"curvature_min": 0.5, "confidence": 0.1}


def sweep(noise: float = 0.0, seeds: int = 3, examples: float = 50.0, constants: BoundConstants = TRUE) -> Sweep:
    rng = np.random.default_rng(1)
    rates, seed = np.tile(RATES, seeds), np.repeat(np.arange(seeds), RATES.size)
    train = 0.1 + empirical_part(rates, constants) + noise * rng.normal(size=rates.size)
    gap = stability_gap(rates, examples, constants) + noise * rng.normal(size=rates.size)
    return Sweep(rates, train, gap, seed, examples)


def test_exact_data_give_the_constants_back() -> None:
    found = fit(sweep(), **KEPT)
    for name in ("empirical_scale", "loss_bound", "lipschitz", "sparsity_regularization"):
        assert getattr(found.constants, name) == pytest.approx(getattr(TRUE, name), rel=1e-3), name
    assert found.offset == pytest.approx(0.1)
    np.testing.assert_allclose(found.predict(RATES, 50.0), 0.1 + bound_value(RATES, 50.0, TRUE), rtol=1e-5)


def test_the_predicted_best_rate_is_the_minimum_of_the_prediction() -> None:
    found = fit(sweep(), **KEPT)
    grid = np.linspace(0, 0.9, 2001)
    assert found.best_rate(50.0, 0.9) == pytest.approx(grid[found.predict(grid, 50.0).argmin()], abs=1e-3)


def test_noise_is_averaged_out_and_its_size_is_seen() -> None:
    noisy = sweep(noise=0.02, seeds=5)
    found = judge(fit(noisy, **KEPT), noisy)
    assert found.distance <= 0.15 and found.rank_correlation >= 0.8
    fits = bootstrap(noisy, **KEPT, repeats=20, rng=np.random.default_rng(0))
    spread = np.std([each.constants.empirical_scale for each in fits])
    assert 0 < spread < 0.01
    assert len(leave_one_seed_out(noisy, **KEPT)) == 5


def test_a_gap_that_does_not_fall_gives_no_dropout() -> None:
    flat = Sweep(RATES, 0.1 + RATES / (1 - RATES), np.full(RATES.size, 0.3), np.zeros(RATES.size), 50.0)
    found = fit(flat, **KEPT)
    assert found.best_rate(50.0, 0.9) == pytest.approx(0.0, abs=1e-6)
    assert found.predict(np.array([0.0]), 50.0)[0] == pytest.approx(0.4, rel=1e-3)


def test_underfitting_that_never_comes_has_no_cost() -> None:
    falling = Sweep(RATES, 0.3 - 0.1 * RATES, 1.0 - RATES, np.zeros(RATES.size), 50.0)
    found = fit(falling, **KEPT)
    assert found.constants.empirical_scale == 0.0
    assert found.best_rate(50.0, 0.9) == pytest.approx(0.9)


def test_one_seed_has_no_spread() -> None:
    assert bootstrap(sweep(seeds=1), **KEPT, repeats=5, rng=np.random.default_rng(0)) == []
    assert leave_one_seed_out(sweep(seeds=1), **KEPT) == []


def test_a_constant_prediction_has_no_rank_correlation() -> None:
    flat = Sweep(RATES, np.full(RATES.size, 0.2), np.full(RATES.size, 0.3), np.zeros(RATES.size), 50.0)
    assert np.isnan(judge(fit(flat, **KEPT), flat).rank_correlation)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dropout_rate": np.array([0.0, 0.5, 0.5])}, "three dropout rates or more"),
        ({"dropout_rate": np.array([0.0, 0.5, 1.0])}, r"in \[0, 1\)"),
        ({"gap": np.array([0.1, np.nan, 0.1])}, "finite losses"),
        ({"num_examples": 0.0}, "num_examples must be positive"),
    ],
)
def test_bad_sweeps_are_refused(change: dict, message: str) -> None:
    values = {
        "dropout_rate": np.array([0.0, 0.3, 0.6]),
        "train_loss": np.zeros(3),
        "gap": np.ones(3),
        "seed": np.zeros(3),
        "num_examples": 10.0,
    }
    with pytest.raises(ProblemError, match=message):
        Sweep(**(values | change))
