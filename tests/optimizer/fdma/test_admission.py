from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from scipy.optimize import Bounds, LinearConstraint, milp

from optimizer.fdma.admission import admit_fdma, heaviest_fitting, individual_reasons
from tests.optimizer.fleets import random_fleet, shared_instance


@pytest.mark.parametrize(
    ("name", "count", "weight"), [("fdma_k20_energy_tight", 19, 0.97058824), ("fdma_k10_two_deep_fades", 8, 0.75930076)]
)
def test_known_admissions(name: str, count: int, weight: float) -> None:
    problem = shared_instance(name)
    admission = admit_fdma(problem)
    assert admission.exact and int(admission.scheduled.sum()) == count
    assert problem.weights[admission.scheduled].sum() == pytest.approx(weight, abs=1e-8)


@pytest.mark.parametrize("seed", range(10))
def test_the_knapsack_is_exact(seed: int) -> None:
    """Reference: every subset of ten items."""
    rng = np.random.default_rng(seed)
    weight, size = rng.integers(1, 50, 10).astype(float), rng.uniform(1, 20, 10)
    size[rng.integers(10)] = np.inf
    chosen, exact = heaviest_fitting(weight, size, 40.0)
    masks = np.array(list(product([False, True], repeat=10)))
    best = max(weight[mask].sum() for mask in masks if size[mask].sum() <= 40.0)
    assert exact and size[chosen].sum() <= 40.0 and weight[chosen].sum() == best


def test_deciding_items_early_changes_nothing() -> None:
    """Reference: HiGHS on the whole knapsack of 300 items, weights whole numbers as examples are."""
    rng = np.random.default_rng(0)
    weight, size = rng.integers(200, 1000, 300).astype(float), rng.uniform(1, 20, 300)
    chosen, exact = heaviest_fitting(weight, size, 900.0)
    row = LinearConstraint(size[None, :] / 900.0, ub=1.0)
    whole = milp(-weight, constraints=row, integrality=np.ones(300), bounds=Bounds(0, 1), options={"mip_rel_gap": 0.0})
    assert exact and size[chosen].sum() <= 900.0 and weight[chosen].sum() == pytest.approx(-whole.fun)


def test_scarce_bandwidth_keeps_the_heaviest_set_and_says_who_did_not_fit() -> None:
    problem = random_fleet(5, 10, total_bandwidth_hz=1.2e5)
    admission = admit_fdma(problem)
    assert 0 < admission.scheduled.sum() < 10
    for reason, on in zip(admission.reasons, admission.scheduled, strict=True):
        assert (reason == "") if on else ("does not fit beside the others" in reason or "needs" in reason)


def test_reasons_are_in_plain_words() -> None:
    base = random_fleet(0, 5)
    problem = replace(
        base,
        cpu_hz=np.array([1e8, *base.cpu_hz[1:]]),
        energy_budget_j=np.array([1, 1e-3, 1, 1, 1.0]),
        channel_gain=np.array([1e-9, 1e-9, 1e-18, 2e-13, 1e-9]),
        total_bandwidth_hz=2e4,
    )
    reasons = individual_reasons(problem, np.full(5, 0.9))
    assert "time to download and compute alone exceeds the deadline" in reasons[0]
    assert "energy budget below computing energy" in reasons[1]
    assert "channel too weak" in reasons[2]
    assert reasons[3].startswith("needs") and "Hz of 20000 Hz at dropout 0.9" in reasons[3]
    assert reasons[4] == ""


def test_nobody_fits() -> None:
    admission = admit_fdma(random_fleet(0, 3, deadline_s=0.01))
    assert not admission.scheduled.any() and all(admission.reasons)
