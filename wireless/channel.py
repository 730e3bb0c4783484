"""Where devices stand and how their channels look: placement, 3GPP path loss, block fading, outage.

Every function takes its own `numpy.random.Generator`. A caller that derives it from (seed, purpose) for what stays
(places, shadowing) and from (seed, purpose, round) for what changes (fading) gets the same channel for a round whatever
ran before it.

References
----------
[TR38901] 3GPP TR 38.901 V17, Study on channel model for frequencies from 0.5 to 100 GHz: table 7.4.1-1 (UMa path loss
and shadowing), table 7.4.2-1 (UMa line-of-sight probability). Device heights up to 13 m.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wireless.units import FloatArray, db_to_lin

_SHADOWING_DB = (4.0, 6.0)  # with and without line of sight, [TR38901] table 7.4.1-1
_SPEED_OF_LIGHT_M_PER_S = 299_792_458.0
_BASE_M, _DEVICE_M = 25.0, 1.5  # heights of the antennas, [TR38901] table 7.2-1
_EFFECTIVE_M2 = (_BASE_M - 1.0) * (_DEVICE_M - 1.0)  # above the environment's height, table 7.4.1-1 note 1
_ANTENNA_DB = 8.0  # gain of one element of the base station, [TR38901] table 7.3-1; 0 dBi at the device


@dataclass(frozen=True)
class Cell:
    """An urban macro cell: ground distances of the devices [m], carrier [Hz]."""

    radius_m: float = 500.0
    min_distance_m: float = 35.0  # [TR38901] table 7.2-1, smallest ground distance in UMa
    carrier_hz: float = 3.5e9

    def __post_init__(self) -> None:
        """Refuse a geometry outside the model's range."""
        if not 10.0 <= self.min_distance_m <= self.radius_m <= 5000.0:
            found = f"min_distance_m={self.min_distance_m!r}, radius_m={self.radius_m!r}"
            raise ValueError(f"a cell needs 10 m <= min_distance_m <= radius_m <= 5000 m, found {found}")
        if not 0.5e9 <= self.carrier_hz <= 100e9:
            raise ValueError(f"carrier_hz must lie in [0.5e9, 100e9] for TR 38.901, found {self.carrier_hz!r}")


def place_devices(rng: np.random.Generator, num_devices: int, cell: Cell) -> FloatArray:
    """Ground distances (K,) [m] of devices spread uniformly over the annulus of ``cell``."""
    inner, outer = cell.min_distance_m**2, cell.radius_m**2
    return np.sqrt(rng.uniform(inner, outer, num_devices))


def line_of_sight_probability(distance_m: npt.ArrayLike) -> FloatArray:
    """UMa line-of-sight probability at ground distance d [m] for devices up to 13 m, [TR38901] table 7.4.2-1.

    1 up to 18 m, then 18/d + exp(-d/63) (1 - 18/d).
    """
    distance = np.maximum(np.asarray(distance_m, dtype=np.float64), 18.0)
    return 18.0 / distance + np.exp(-distance / 63.0) * (1.0 - 18.0 / distance)


def path_loss_db(distance_m: npt.ArrayLike, line_of_sight: npt.ArrayLike, cell: Cell) -> FloatArray:
    """UMa path loss [dB] without shadowing, [TR38901] table 7.4.1-1.

    With d the slant distance [m], f the carrier [GHz] and d_BP = 4 h'_BS h'_UT f/c the breakpoint:
    LOS  28 + 22 lg d + 20 lg f up to d_BP, then 28 + 40 lg d + 20 lg f - 9 lg(d_BP^2 + (h_BS - h_UT)^2);
    NLOS the larger of LOS and 13.54 + 39.08 lg d + 20 lg f - 0.6 (h_UT - 1.5), where h_UT is 1.5 m.

    The distances given are on the ground.
    """
    ground, height = np.asarray(distance_m, dtype=np.float64), _BASE_M - _DEVICE_M
    slant, carrier_db = np.log10(np.hypot(ground, height)), 20.0 * np.log10(cell.carrier_hz / 1e9)
    breakpoint_m = 4.0 * _EFFECTIVE_M2 * cell.carrier_hz / _SPEED_OF_LIGHT_M_PER_S
    near_db = 28.0 + 22.0 * slant + carrier_db
    far_db = 28.0 + 40.0 * slant + carrier_db - 9.0 * np.log10(breakpoint_m**2 + height**2)
    los_db = np.where(ground <= breakpoint_m, near_db, far_db)
    nlos_db = np.maximum(los_db, 13.54 + 39.08 * slant + carrier_db)
    return np.where(line_of_sight, los_db, nlos_db)


def large_scale(rng: np.random.Generator, num_devices: int, cell: Cell, *, shadowing: bool = True) -> FloatArray:
    """Mean power gains (K,) before fading, linear: places, line of sight and log-normal shadowing, drawn once per run.

    Without ``shadowing`` its values are 0 dB; everything else stays as it would be with it.
    """
    distance = place_devices(rng, num_devices, cell)
    sight = rng.random(num_devices) < line_of_sight_probability(distance)
    shadowing_db = rng.standard_normal(num_devices) * np.where(sight, *_SHADOWING_DB) * shadowing
    return db_to_lin(_ANTENNA_DB - path_loss_db(distance, sight, cell) - shadowing_db)


def ofdma_gain(
    rng: np.random.Generator,
    mean_gain: FloatArray,
    num_subcarriers: int,
    subcarrier_hz: float,
    *,
    delay_spread_s: float = 363e-9,  # [TR38901] table 7.7.3-2, UMa normal delay at 2 to 6 GHz, rounded
    num_taps: int = 16,
    rician_k: npt.ArrayLike = 0.0,
) -> FloatArray:
    """Power gains (K, M) of one round under frequency-selective block fading with an exponential power-delay profile.

    Taps at delays l D, D = 5 delay_spread / num_taps, have mean power ~ exp(-l D / delay_spread), sum 1;
    g_km = mean_k |sum_l h_kl exp(-2 pi i f_m l D)|^2.

    ``mean_gain`` (K,) and the Rician factor ``rician_k`` of the first tap (scalar or (K,), 0: Rayleigh) are linear; the
    delay spread is the root mean square (0 gives a flat channel), M is ``num_subcarriers`` and L ``num_taps``.
    """
    delay = 5.0 * delay_spread_s / num_taps * np.arange(num_taps)  # (L,)
    power = np.exp(-delay / delay_spread_s) if delay_spread_s > 0 else np.ones(num_taps)
    power /= power.sum()
    kappa = np.broadcast_to(np.asarray(rician_k, dtype=np.float64), mean_gain.shape)  # steady over scattered power
    parts = rng.standard_normal((2, mean_gain.size, num_taps))
    steady = np.exp(2j * np.pi * rng.random(mean_gain.size)) * np.sqrt(power.sum())  # (K,)
    taps = (parts[0] + 1j * parts[1]) * np.sqrt(power / 2.0) / np.sqrt(1.0 + kappa)[:, None]  # (K, L)
    taps[:, 0] += steady * np.sqrt(kappa / (1.0 + kappa))
    frequency = (np.arange(num_subcarriers) - (num_subcarriers - 1) / 2) * subcarrier_hz  # (M,)
    response = taps @ np.exp(-2j * np.pi * np.outer(delay, frequency))  # (K, L) (L, M) -> (K, M)
    return mean_gain[:, None] * np.abs(response) ** 2


def fdma_gain(rng: np.random.Generator, mean_gain: FloatArray, rician_k: npt.ArrayLike = 0.0) -> FloatArray:
    """Power gains (K,) of one round under flat block fading; a linear Rician factor of 0 is Rayleigh."""
    return ofdma_gain(rng, mean_gain, 1, 0.0, delay_spread_s=0.0, num_taps=1, rician_k=rician_k)[:, 0]


def outage_margin(probability: float, rician_k: npt.ArrayLike = 0.0) -> FloatArray:
    """Share of the mean power gain that flat fading falls short of with probability q in (0, 1).

    Under Rayleigh fading (``rician_k`` 0) the gain is exponential, the margin is -ln(1 - q); under Rician fading with
    linear factor kappa it is the q-quantile of a noncentral chi-squared variable with 2 degrees of freedom and
    noncentrality 2 kappa, over 2 (1 + kappa). Returned in the shape of ``rician_k``.
    """
    if not 0 < probability < 1:
        raise ValueError(f"outage_probability must lie in (0, 1), found {probability!r}")
    from scipy.stats import ncx2  # a command that plans nothing starts without it

    kappa = np.asarray(rician_k, dtype=np.float64)
    scattered = np.full(kappa.shape, -np.log1p(-probability))
    steady = ncx2.ppf(probability, 2, 2 * np.maximum(kappa, 1e-12)) / (2 * (1 + kappa))
    return np.where(kappa > 0, steady, scattered)
