"""Shannon rate of an uplink, and its inverses: power for a rate, spectral efficiency (hence bandwidth) for a power.

Every function works elementwise and broadcasts; zero bandwidth or zero power carries zero bits, without warnings.
"""

import numpy as np
import numpy.typing as npt

from wireless.units import FloatArray

LN2 = float(np.log(2.0))
_SMALL_EFFICIENCY = 1e-5  # below it a series replaces expm1 quotients that would cancel


def fdma_rate_bps(
    bandwidth_hz: npt.ArrayLike, tx_power_w: npt.ArrayLike, channel_gain: npt.ArrayLike, noise_psd_w_per_hz: float
) -> FloatArray:
    """Rate of a device on its own band, R = b log2(1 + p g / (N0 b)) [bit/s], with p [W] and N0 [W/Hz].

    0 where b = 0, the wideband limit p g / (N0 ln2) where b is infinite.
    """
    bandwidth = np.asarray(bandwidth_hz, dtype=np.float64)
    received_w = np.asarray(tx_power_w, dtype=np.float64) * np.asarray(channel_gain, dtype=np.float64)
    usable = bandwidth > 1e-290  # a subnormal one would make the quotient infinite; log1p(inf) * 0 must be 0
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        snr = np.where(usable, received_w / (noise_psd_w_per_hz * bandwidth), 0.0)
        rate = bandwidth * np.log1p(snr) / LN2
    return np.where(np.isinf(bandwidth), received_w / (noise_psd_w_per_hz * LN2), rate)


def ofdma_rate_bps(
    tx_power_w: npt.ArrayLike, channel_gain: npt.ArrayLike, subcarrier_hz: float, noise_psd_w_per_hz: float
) -> FloatArray:
    """Rate of devices over their subcarriers, R_k = sum_m D log2(1 + p_km g_km / (N0 D)) [bit/s].

    (K, M) powers [W] and gains give (K,) rates; a subcarrier that is not owned carries zero power, hence zero bits.
    """
    received_w = np.asarray(tx_power_w, dtype=np.float64) * np.asarray(channel_gain, dtype=np.float64)
    return np.asarray(subcarrier_hz / LN2 * np.log1p(received_w / (noise_psd_w_per_hz * subcarrier_hz)).sum(axis=-1))


def tx_power_for_rate_w(
    rate_bps: npt.ArrayLike, bandwidth_hz: npt.ArrayLike, channel_gain: npt.ArrayLike, noise_psd_w_per_hz: float
) -> FloatArray:
    """Power that carries ``rate_bps`` on ``bandwidth_hz``, p = N0 b (2^(R/b) - 1) / g; inf where it cannot be done."""
    rate, bandwidth, gain = (np.asarray(a, dtype=np.float64) for a in (rate_bps, bandwidth_hz, channel_gain))
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        power = noise_psd_w_per_hz * bandwidth * np.expm1(rate * LN2 / bandwidth) / gain
    return np.where(rate <= 0, 0.0, np.where((bandwidth > 0) & (gain > 0), power, np.inf))


def log_mean_exp(efficiency_nats: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """F(L) = ln((e^L - 1)/L) for L > 0, its slope 1/(1 - e^-L) - 1/L in (1/2, 1), and its curvature."""
    size = np.maximum(efficiency_nats, _SMALL_EFFICIENCY)
    share, inverse = -np.expm1(-size), 1.0 / size
    rise = 1.0 / share
    value, slope = size + np.log(share * inverse), rise - inverse
    curvature = inverse * inverse - rise * (rise - 1.0)  # cancels for small L, where it no longer matters
    small = efficiency_nats < _SMALL_EFFICIENCY
    if small.any():
        series = efficiency_nats / 2 + efficiency_nats**2 / 24
        value, slope = np.where(small, series, value), np.where(small, 0.5 + efficiency_nats / 12.0, slope)
        curvature = np.where(small, 1.0 / 12.0, curvature)
    return value, slope, curvature


def spectral_efficiency_nats(log_margin: npt.ArrayLike) -> FloatArray:
    """Solve ln(1 + y)/y = c for the spectral efficiency L = ln(1 + y) [nat/s/Hz], given z = -ln c > 0.

    In closed form L = -W_{-1}(-c e^{-c}) - c. Lambert's W loses half its digits near its branch point (c -> 1) and all
    of them when c e^{-c} underflows, so the same root is found from F(L) = ln((e^L - 1)/L) = z, whose slope lies in
    (1/2, 1) and whose curvature lies in (0, 1/12): Halley's method from z + ln(1 + z), exact to first order at both
    ends. z is how far the power exceeds the least power that carries the rate R over unlimited bandwidth; where z <= 0
    no bandwidth is enough and L is 0, elsewhere b = R ln2 / L carries it.
    """
    margin = np.maximum(np.asarray(log_margin, dtype=np.float64), 0.0)
    root = margin + np.log1p(margin)
    for _ in range(2):  # cubic from a start within 4 %: 2e-6 after one step, the last digit after two
        value, slope, curvature = log_mean_exp(root)
        step = (value - margin) / slope
        root = root - step * (1.0 + 0.5 * step * curvature / slope)
    return np.maximum(root, 0.0)
