"""The curve b_min(gamma): definition, limits, and the hidden convexity that docs/formulation.md proves."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer.checker import evaluate
from optimizer.fdma.bandwidth_curve import BandwidthCurve
from tests.optimizer.fleets import extreme_fleet, random_fleet


@pytest.mark.parametrize("seed", range(155))
def test_hidden_convexity_on_random_fleets(seed: int) -> None:
    """Every second difference of b_min is positive: 155 fleets of 50 devices on 200 points each."""
    curve = BandwidthCurve.of(random_fleet(seed, 50))
    start = np.maximum(curve.feasible_from(), 0.0)
    usable = start < 0.9 - 1e-3
    grid = start + np.linspace(1e-3, 1.0, 200)[:, None] * (0.9 - start)  # (200, K), equidistant per device
    band = np.stack([curve.bandwidth_hz(row) for row in grid])[:, usable]
    assert np.isfinite(band).all()
    assert (np.diff(band, axis=0) < 0).all()
    second = np.diff(band, n=2, axis=0)
    assert (second >= -1e-9 * band[1:-1]).all() and (second[:, 0] > 0).all()


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 1))
def test_b_min_serves_its_device_and_less_does_not(seed: int, position: float) -> None:
    fleet = random_fleet(seed % 1000, 8)
    curve = BandwidthCurve.of(fleet)
    low = np.maximum(curve.feasible_from(), 0.0)
    gamma = np.minimum(low + (0.02 + 0.98 * position) * (0.9 - low), 0.9)
    band = curve.bandwidth_hz(gamma)
    usable = np.isfinite(band) & (low < 0.9)
    power = curve.uplink_energy_j(gamma) / curve.uplink_time_s(gamma)  # all energy over all the time
    for factor, late in ((1.0, False), (0.999, True)):
        cost = evaluate(fleet, gamma, power, np.where(usable, band * factor, 1.0)).cost
        assert ((cost.latency_s > fleet.deadline_s * (1 + 1e-9))[usable] == late).all()
        assert late or (cost.energy_j <= fleet.energy_budget_j * (1 + 1e-9))[usable].all()


def test_slope_is_the_difference_quotient() -> None:
    curve = BandwidthCurve.of(random_fleet(5, 30))
    low = np.maximum(curve.feasible_from(), 0.0)
    for position in (0.1, 0.5, 0.9):
        gamma = low + position * (0.9 - low)
        away = np.abs(gamma - curve.kink()) > 1e-4
        quotient = (curve.bandwidth_hz(gamma + 1e-7) - curve.bandwidth_hz(gamma - 1e-7)) / 2e-7
        np.testing.assert_allclose(curve.bandwidth_and_slope(gamma)[1][away], quotient[away], rtol=1e-5)


@pytest.mark.parametrize("seed", range(60))
def test_extremes_raise_no_warnings_and_agree_with_the_feasible_range(seed: int) -> None:
    fleet = extreme_fleet(seed)
    curve = BandwidthCurve.of(fleet)
    start = curve.feasible_from()
    for gamma in np.linspace(0, fleet.max_dropout_rate, 7):
        rate = np.full(fleet.num_devices, gamma)
        with np.errstate(all="raise"):
            band, slope = curve.bandwidth_and_slope(rate)
        assert not np.isnan(band).any() and (slope <= 0).all()
        clear = np.abs(gamma - start) > 1e-9
        assert (np.isfinite(band) == (gamma > start))[clear].all()


@pytest.mark.parametrize("seed", range(40))
def test_smallest_dropout_rate_inverts_the_curve(seed: int) -> None:
    fleet = extreme_fleet(seed) if seed % 2 else random_fleet(seed, 20)
    curve = BandwidthCurve.of(fleet)
    budget = np.full(fleet.num_devices, fleet.total_bandwidth_hz / fleet.num_devices)
    gamma = curve.smallest_dropout_rate(budget)
    top = curve.bandwidth_hz(np.full(fleet.num_devices, fleet.max_dropout_rate))
    np.testing.assert_array_equal(np.isnan(gamma), top > budget)
    served = np.flatnonzero(~np.isnan(gamma))
    assert (curve.bandwidth_hz(np.nan_to_num(gamma))[served] <= budget[served] * (1 + 1e-12)).all()
    inner = served[gamma[served] > 1e-6]
    shorter = np.nan_to_num(gamma) - 1e-6
    assert (curve.bandwidth_hz(np.maximum(shorter, 0))[inner] > budget[inner] * (1 - 1e-9)).all()


def test_nothing_to_send_needs_no_bandwidth() -> None:
    curve = BandwidthCurve.of(random_fleet(0, 3, droppable_bits=0.0, fixed_bits=0.0))
    np.testing.assert_array_equal(curve.bandwidth_hz(np.zeros(3)), 0.0)
