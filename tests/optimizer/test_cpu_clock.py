from dataclasses import replace

import numpy as np
import pytest

from optimizer.bandwidth import BandwidthCurve
from optimizer.constraints import check_solution
from optimizer.cpu_clock import ClockCurve, solve_with_clock
from optimizer.fdma import solve_fdma
from optimizer.problem import SolverStatus
from tests.optimizer.fleets import random_fleet, shared_instance


@pytest.mark.parametrize("seed", range(5))
def test_the_best_clock_beats_a_grid_of_clocks(seed: int) -> None:
    fleet = random_fleet(seed, 20)
    low, high = np.full(20, 2e8), 1.5 * fleet.cpu_hz
    curve = ClockCurve(fleet, low, high)
    for gamma in (0.6, 0.9):
        rate = np.full(20, gamma)
        ours = curve.bandwidth_hz(rate)
        grid = [
            BandwidthCurve.of(replace(fleet, cpu_hz=low + t * (high - low))).bandwidth_hz(rate) for t in np.linspace(0, 1, 400)
        ]
        theirs = np.min(grid, axis=0)
        finite = np.isfinite(theirs)
        assert (ours[finite] <= theirs[finite] * (1 + 1e-9)).all()
        np.testing.assert_allclose(ours[finite], theirs[finite], rtol=1e-3)


@pytest.mark.parametrize("seed", range(20))
def test_the_envelope_is_convex_on_random_fleets(seed: int) -> None:
    """Numerical support for what is not proven: every second difference over 100 points is positive."""
    fleet = random_fleet(seed, 30)
    curve = ClockCurve(fleet, np.full(30, 2e8), fleet.cpu_hz)
    low = np.nan_to_num(curve.smallest_dropout_rate(np.full(30, 1e8)), nan=0.9)
    grid = low + np.linspace(1e-3, 1, 100)[:, None] * (0.9 - low)
    band = np.stack([curve.bandwidth_hz(row) for row in grid])[:, low < 0.89]
    assert (np.diff(band, axis=0) < 0).all() and (np.diff(band, n=2, axis=0) >= -1e-9 * band[1:-1]).all()


def test_a_free_clock_never_hurts_and_is_certified() -> None:
    fleet = random_fleet(6, 10)
    fixed = solve_fdma(fleet)
    solution, clocked = solve_with_clock(fleet, np.full(10, 2e8), 1.5 * fleet.cpu_hz, intervals=150)
    assert check_solution(clocked, solution) == []
    assert solution.objective < fixed.objective and 0 <= solution.gap < 1e-2
    pinned, same = solve_with_clock(fleet, fleet.cpu_hz, fleet.cpu_hz, intervals=10)
    assert pinned.objective == pytest.approx(fixed.objective, rel=1e-9)
    np.testing.assert_allclose(same.cpu_hz, fleet.cpu_hz)


def test_a_slower_clock_admits_a_device_whose_battery_is_nearly_empty() -> None:
    problem = shared_instance("fdma_k20_energy_tight")
    solution, clocked = solve_with_clock(problem, np.full(20, 2e8), problem.cpu_hz, intervals=10)
    assert solution.scheduled.all() and solve_fdma(problem).scheduled.sum() == 19
    assert check_solution(clocked, solution) == []


def test_nobody_fits() -> None:
    fleet = random_fleet(0, 3, deadline_s=0.01)
    assert solve_with_clock(fleet, fleet.cpu_hz, fleet.cpu_hz)[0].status is SolverStatus.INFEASIBLE
