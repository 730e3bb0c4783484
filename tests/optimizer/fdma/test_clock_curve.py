from dataclasses import replace

import numpy as np
import pytest

from optimizer.fdma.bandwidth_curve import BandwidthCurve
from optimizer.fdma.clock_curve import ClockCurve
from tests.optimizer.fleets import random_fleet


@pytest.mark.parametrize("seed", range(5))
def test_the_best_clock_beats_a_grid_of_clocks(seed: int) -> None:
    fleet = random_fleet(seed, 20)
    low, high = np.full(20, 2e8), 1.5 * fleet.cpu_hz
    curve = ClockCurve(fleet, low, high)
    for gamma in (0.6, 0.9):
        rate = np.full(20, gamma)
        ours = curve.bandwidth_hz(rate)
        grid = [
            BandwidthCurve.of(replace(fleet, cpu_hz=low + t * (high - low))).bandwidth_hz(rate)
            for t in np.linspace(0, 1, 400)
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
