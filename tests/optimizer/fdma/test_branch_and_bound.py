from itertools import product

import numpy as np
import pytest

from optimizer.allocator import make_allocator
from optimizer.fdma.bandwidth_curve import BandwidthCurve
from optimizer.fdma.branch_and_bound import search_rates, solve_bnb_fdma
from optimizer.fdma.exact import solve_fdma
from optimizer.feasibility import check_solution
from optimizer.objective import ConvexUnderestimator, free_bound
from optimizer.problem import ProblemError, SolverStatus
from optimizer.solver_interface import Arguments
from optimizer.timing import time_limit
from tests.optimizer.fleets import Rippled, random_fleet, shared_instance


@pytest.mark.parametrize("name", ["fdma_k3", "fdma_k10", "fdma_k100", "fdma_k20_energy_tight"])
def test_a_convex_objective_closes_at_the_root(name: str) -> None:
    problem = shared_instance(name)
    solution, exact = solve_bnb_fdma(problem, Arguments(gap=1e-8)), solve_fdma(problem)
    assert solution.nodes == 1 and solution.status is SolverStatus.OPTIMAL
    assert solution.objective == pytest.approx(exact.objective, rel=1e-9)


@pytest.mark.parametrize("seed", range(2))
def test_the_global_minimum_of_a_non_convex_objective(seed: int) -> None:
    """Reference: a grid over two devices, the third taking the best rate that then fits."""
    fleet, objective = random_fleet(seed, 3, total_bandwidth_hz=3e5), Rippled()
    solution = solve_bnb_fdma(fleet, Arguments(objective=objective, gap=1e-4))
    assert solution.scheduled.all() and solution.status is SolverStatus.OPTIMAL and solution.nodes > 1
    assert check_solution(fleet, solution, objective) == []
    curve = BandwidthCurve(fleet)
    grid = np.linspace(0, 0.9, 241)
    value = np.stack([objective.value(fleet, np.full(3, g)) for g in grid])  # (241, 3)
    band = np.stack([curve.bandwidth_hz(np.full(3, g)) for g in grid])
    best_last = np.minimum.accumulate(value[::-1, 2])[::-1]  # the best value at this rate or above
    least = np.inf
    for i, j in product(range(241), repeat=2):
        first = np.searchsorted(-band[:, 2], -(fleet.total_bandwidth_hz - band[i, 0] - band[j, 1]))
        if first < 241 and band[i, 0] + band[j, 1] < fleet.total_bandwidth_hz:
            least = min(least, value[i, 0] + value[j, 1] + best_last[first])
    assert solution.lower_bound <= least + 1e-12
    assert solution.objective <= least * (1 + 2e-4) and solution.objective >= least - 2e-3


@pytest.mark.parametrize("count", [6, 40])
def test_many_devices_do_not_loosen_the_bound(count: int) -> None:
    """What under-estimators lack adds up over devices (a gap of 3.3 with 40); the dual value's gap does not."""
    fleet, objective = random_fleet(0, count), Rippled()
    found = search_rates(fleet, objective, gap=1e-4, max_nodes=60)
    assert found.finished and found.value - found.lower_bound <= 1e-4 * found.value
    assert found.answer is not None
    assert BandwidthCurve(fleet).bandwidth_hz(found.answer).sum() <= fleet.total_bandwidth_hz * (1 + 1e-12)
    rng = np.random.default_rng(count)
    for _ in range(200):  # no allocation near the best one lies below the bound
        rates = np.clip(found.answer + rng.normal(0, 0.02, count), 0, fleet.max_dropout_rate)
        if BandwidthCurve(fleet).bandwidth_hz(rates).sum() <= fleet.total_bandwidth_hz:
            assert objective.value(fleet, rates).sum() >= found.lower_bound


def test_local_methods_are_never_below_the_certificate() -> None:
    fleet, objective = random_fleet(3, 3, total_bandwidth_hz=3e5), Rippled()
    solution = make_allocator("bnb", objective=objective, gap=3e-3, time_limit_s=60).allocate(fleet)
    for name in ("psca", "equal", "fixed"):
        local = make_allocator(name, objective=objective).allocate(fleet)
        assert local.lower_bound <= local.objective
        if local.scheduled.all():
            assert local.objective >= solution.lower_bound
    with pytest.raises(ProblemError, match="use bnb"):
        make_allocator("exact", objective=objective).allocate(fleet)


def test_stopped_early_the_bound_still_holds() -> None:
    fleet, objective = random_fleet(1, 6), Rippled(frequency=60.0)
    part = search_rates(fleet, objective, gap=1e-9, max_nodes=20)
    more = search_rates(fleet, objective, gap=1e-9, max_nodes=100)
    assert not part.finished and part.nodes <= 21
    assert part.lower_bound <= more.lower_bound <= more.value <= part.value
    with time_limit(0.05):
        limited = solve_bnb_fdma(fleet, Arguments(objective=objective, gap=1e-9))
    assert limited.status is SolverStatus.TIME_LIMIT and check_solution(fleet, limited, objective) == []


def test_a_warm_start_is_the_first_incumbent() -> None:
    fleet, objective = random_fleet(2, 3), Rippled()
    cold = solve_bnb_fdma(fleet, Arguments(objective=objective, gap=3e-3))
    warm = solve_bnb_fdma(fleet, Arguments(objective=objective, gap=3e-3, warm_start=cold))
    assert warm.nodes <= cold.nodes and warm.objective <= cold.objective
    other = random_fleet(5, 7)
    assert check_solution(other, solve_bnb_fdma(other, Arguments(warm_start=cold))) == []


def test_the_under_estimator_is_convex_below_and_exact_at_the_ends() -> None:
    fleet, objective = random_fleet(0, 5), Rippled()
    low, high = np.full(5, 0.2), np.full(5, 0.7)
    convex = ConvexUnderestimator(fleet, objective, low, high)
    grid = low + np.linspace(0, 1, 300)[:, None] * (high - low)
    under, true = convex.value(fleet, grid), objective.value(fleet, grid)
    assert (under <= true + 1e-15).all() and (np.diff(under, n=2, axis=0) >= -1e-12).all()
    np.testing.assert_allclose(under[[0, -1]], true[[0, -1]], rtol=1e-14)
    slope = np.diff(convex.derivative(fleet, grid), axis=0)
    assert (slope >= -1e-12).all()
    full = np.linspace(0, 0.9, 2000)[:, None] * np.ones(5)
    assert free_bound(fleet, objective) <= objective.value(fleet, full).min(axis=0).sum()
