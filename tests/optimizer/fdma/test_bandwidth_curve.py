"""The curve b_min(gamma): definition, limits, and the hidden convexity that docs/formulation.md proves."""

from dataclasses import replace

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer.fdma.bandwidth_curve import BandwidthCurve
from optimizer.feasibility import evaluate
from tests.optimizer.fleets import extreme_fleet, random_fleet


@pytest.mark.parametrize("seed", range(155))
def test_hidden_convexity_on_random_fleets(seed: int) -> None:
    """Every second difference of b_min is positive: 155 fleets of 50 devices on 200 points each."""
    curve = BandwidthCurve(random_fleet(seed, 50))
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
    curve = BandwidthCurve(fleet)
    low = np.maximum(curve.feasible_from(), 0.0)
    gamma = np.minimum(low + (0.02 + 0.98 * position) * (0.9 - low), 0.9)
    band = curve.bandwidth_hz(gamma)
    usable = np.isfinite(band) & (low < 0.9)
    time_s = curve.uplink_time_s(gamma)  # all energy over all the time
    power = np.minimum((curve.energy_j - curve.energy_slope_j * (1 - gamma)) / time_s, curve.max_tx_power_w)
    for factor, late in ((1.0, False), (0.999, True)):
        cost = evaluate(fleet, gamma, power, np.where(usable, band * factor, 1.0)).cost
        assert ((cost.latency_s > fleet.deadline_s * (1 + 1e-9))[usable] == late).all()
        assert late or (cost.energy_j <= fleet.energy_budget_j * (1 + 1e-9))[usable].all()


def test_slope_is_the_difference_quotient() -> None:
    curve = BandwidthCurve(random_fleet(5, 30))
    low = np.maximum(curve.feasible_from(), 0.0)
    for position in (0.1, 0.5, 0.9):
        gamma = low + position * (0.9 - low)
        away = np.abs(gamma - curve.kink()) > 1e-4
        quotient = (curve.bandwidth_hz(gamma + 1e-7) - curve.bandwidth_hz(gamma - 1e-7)) / 2e-7
        np.testing.assert_allclose(curve.bandwidth_and_slope(gamma)[1][away], quotient[away], rtol=1e-5)


@pytest.mark.parametrize("seed", range(60))
def test_extremes_raise_no_warnings_and_agree_with_the_feasible_range(seed: int) -> None:
    fleet = extreme_fleet(seed)
    curve = BandwidthCurve(fleet)
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
    curve = BandwidthCurve(fleet)
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
    curve = BandwidthCurve(random_fleet(0, 3, droppable_bits=0.0, fixed_bits=0.0))
    np.testing.assert_array_equal(curve.bandwidth_hz(np.zeros(3)), 0.0)


@pytest.mark.parametrize("seed", range(60))
def test_the_last_digits_of_the_energy_decide_and_are_kept(seed: int) -> None:
    """Energy above what the payload needs over unlimited bandwidth by 1e-9 down to 1e-15 of it, in 50 digits beside ours."""
    rng = np.random.default_rng(seed)
    with mpmath.workdps(50):
        fleet = random_fleet(seed, 1, channel_gain=10 ** rng.uniform(-12, -9), max_tx_power_w=1e3)
        gamma, one = float(rng.uniform(0, 0.9)), mpmath.mpf(1)
        names = ("fixed_bits", "droppable_bits", "fixed_cycles", "adapter_cycles", "cpu_hz", "capacitance")
        s0, s1, c0, c1, clock, kappa = (mpmath.mpf(float(getattr(fleet, name)[0])) for name in names)
        kept = one - mpmath.mpf(gamma)
        bits, cycles = s0 + s1 * kept, c0 + c1 * kept
        need = bits * mpmath.mpf(fleet.noise_psd_w_per_hz) * mpmath.log(2) / mpmath.mpf(float(fleet.channel_gain[0]))
        budget = float(kappa * clock**2 * cycles + need * (1 + mpmath.mpf(10) ** rng.uniform(-15, -9)))
        spent = kappa * clock**2 * cycles
        while mpmath.mpf(budget) <= spent + need:  # the nearest number may be below what is needed
            budget = float(np.nextafter(budget, np.inf))
        margin = mpmath.log((mpmath.mpf(budget) - spent) / need)
        efficiency = mpmath.findroot(lambda x: mpmath.log(mpmath.expm1(x) / x) - margin, 2 * margin)
        time = mpmath.mpf(fleet.deadline_s) - bits / mpmath.mpf(float(fleet.downlink_rate_bps[0])) - cycles / clock
        theirs = float(bits * mpmath.log(2) / (time * efficiency))
    ours = BandwidthCurve(replace(fleet, energy_budget_j=budget)).bandwidth_hz(np.array([gamma]))[0]
    assert ours == pytest.approx(theirs, rel=1e-2 if margin < 1e-14 else 1e-3)
