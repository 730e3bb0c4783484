import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.special import lambertw

from wireless.link import (
    LN2,
    fdma_rate_bps,
    log_mean_exp,
    ofdma_rate_bps,
    spectral_efficiency_nats,
    tx_power_for_rate_w,
)

NOISE = 4e-21


def _bandwidth_hz(rate_bps: float, power_w: float, gain: float) -> float:
    """Least bandwidth for a rate, b = R ln2 / L."""
    log_margin = np.log(power_w) + np.log(gain) - np.log(rate_bps) - np.log(NOISE * LN2)
    return rate_bps * LN2 / spectral_efficiency_nats(log_margin)


@given(st.floats(1e3, 1e8), st.floats(-6, 1), st.floats(-16, -4))
def test_power_inverts_rate(bandwidth: float, log_power: float, log_gain: float) -> None:
    power, gain = 10**log_power, 10**log_gain
    rate = fdma_rate_bps(bandwidth, power, gain, NOISE)
    assert tx_power_for_rate_w(rate, bandwidth, gain, NOISE) == pytest.approx(power, rel=1e-9)


@given(st.floats(1e3, 1e8), st.floats(-6, 1), st.floats(-12, -4))
def test_bandwidth_inverts_rate(bandwidth: float, log_power: float, log_gain: float) -> None:
    power, gain = 10**log_power, 10**log_gain
    rate = fdma_rate_bps(bandwidth, power, gain, NOISE)
    found = _bandwidth_hz(rate, power, gain)
    assert fdma_rate_bps(found, power, gain, NOISE) == pytest.approx(rate, rel=1e-12)


@pytest.mark.parametrize("c", [0.999, 0.9, 0.5, 1e-3, 1e-8])
def test_spectral_efficiency_is_lamberts_w(c: float) -> None:
    """Reference: L = -W_{-1}(-c e^-c) - c, where SciPy's W is accurate, and a bracketed root of ln(1+y) = c y."""
    ours = spectral_efficiency_nats(-np.log(c))
    assert ours == pytest.approx(-lambertw(-c * np.exp(-c), -1).real - c, rel=1e-9)
    root = np.exp(brentq(lambda log_y: np.log1p(np.exp(log_y)) - c * np.exp(log_y), -9.0, 28.0))
    assert ours == pytest.approx(np.log1p(root), rel=1e-9)


@given(st.floats(-15, 2.8))
def test_spectral_efficiency_solves_its_equation(log_margin: float) -> None:
    margin = 10**log_margin
    root = spectral_efficiency_nats(margin)
    series = root / 2 + root**2 / 24
    value = series if root < 1e-4 else root + np.log(-np.expm1(-root) / root)
    assert value == pytest.approx(margin, rel=1e-10)
    assert 0.5 <= log_mean_exp(root)[1] <= 1.0


def test_impossible_rates_have_no_efficiency_and_need_infinite_power_without_warnings() -> None:
    with np.errstate(all="raise"):
        assert spectral_efficiency_nats(-0.1) == spectral_efficiency_nats(0.0) == 0.0
        assert np.isinf(tx_power_for_rate_w(1e6, 0.0, 1e-9, NOISE)) and tx_power_for_rate_w(0.0, 0.0, 0.0, NOISE) == 0.0
        assert fdma_rate_bps(0.0, 0.1, 1e-9, NOISE) == 0.0
        assert fdma_rate_bps(np.inf, 0.1, 1e-9, NOISE) == pytest.approx(0.1 * 1e-9 / (NOISE * np.log(2)))


def test_rate_at_the_least_power_per_bit_is_approached_safely() -> None:
    """C -> 1 from below: the bandwidth grows without bound but stays finite and still carries the rate."""
    gain, power = 1e-12, 0.1
    limit = power * gain / (NOISE * np.log(2.0))
    for short in 10.0 ** -np.arange(1, 13):
        need = _bandwidth_hz(limit * (1 - short), power, gain)
        assert np.isfinite(need)
        assert fdma_rate_bps(need, power, gain, NOISE) == pytest.approx(limit * (1 - short), rel=1e-9)


def test_ofdma_rate_is_the_sum_over_powered_subcarriers() -> None:
    power, gain = np.array([[0.1, 0.0, 0.2], [0.0, 0.3, 0.0]]), np.full((2, 3), 1e-10)
    single = fdma_rate_bps(9e4, power, gain, NOISE).sum(axis=1)
    np.testing.assert_allclose(ofdma_rate_bps(power, gain, 9e4, NOISE), single)
