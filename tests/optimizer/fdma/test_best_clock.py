from dataclasses import replace

import numpy as np
import pytest

from optimizer.fdma.bandwidth_curve import BandwidthCurve, best_clock_hz
from optimizer.objective import GeneralizationBound
from optimizer.problem import FloatArray, ResourceProblem
from tests.optimizer.fleets import random_fleet


def least_hz(problem: ResourceProblem, rate: FloatArray) -> FloatArray:
    return BandwidthCurve(problem, best_clock_hz(problem, rate)).bandwidth_hz(rate)


@pytest.mark.parametrize("seed", range(5))
def test_the_best_clock_beats_a_grid_of_clocks(seed: int) -> None:
    fleet = random_fleet(seed, 20)
    low, high = np.full(20, 2e8), 1.5 * fleet.cpu_hz
    free = replace(fleet, cpu_hz=high, min_cpu_hz=low, max_cpu_hz=high)
    for gamma in (0.6, 0.9):
        rate = np.full(20, gamma)
        ours = least_hz(free, rate)
        grid = [
            BandwidthCurve(replace(fleet, cpu_hz=low + t * (high - low))).bandwidth_hz(rate)
            for t in np.linspace(0, 1, 400)
        ]
        theirs = np.min(grid, axis=0)
        finite = np.isfinite(theirs)
        assert (ours[finite] <= theirs[finite] * (1 + 1e-9)).all()
        np.testing.assert_allclose(ours[finite], theirs[finite], rtol=1e-3)


@pytest.mark.parametrize("seed", range(20))
def test_envelope_and_bound_are_convex_in_the_logarithm(seed: int) -> None:
    """The proof of docs/formulation.md in numbers: every second difference over 100 points is positive."""
    fleet = random_fleet(seed, 30)
    free = replace(fleet, min_cpu_hz=2e8, max_cpu_hz=fleet.cpu_hz)
    curve = BandwidthCurve(free, best_clock_hz(free, fleet.highest_rates))
    low = np.nan_to_num(curve.smallest_dropout_rate(np.full(30, 1e8)), nan=0.9)
    logs = np.linspace(np.log(1 - low), np.log(0.1), 101)[1:]  # (100, K), evenly spaced in ln(1 - gamma)
    usable = low < 0.89
    for function in (lambda rate: least_hz(free, rate), lambda rate: GeneralizationBound().value(fleet, rate)):
        values = np.stack([function(row) for row in -np.expm1(logs)])[:, usable]
        assert (np.diff(values, n=2, axis=0) >= -1e-9 * np.abs(values[1:-1])).all()
