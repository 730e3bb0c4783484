"""Decibels, milliwatts, thermal noise, and shares of a whole number."""

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

_TEMPERATURE_K = 290.0  # standard noise temperature (IEEE definition of noise figure)


def db_to_lin(value_db: npt.ArrayLike) -> FloatArray:
    """Power ratio of ``value_db``, 10^(x/10)."""
    return np.power(10.0, np.asarray(value_db, dtype=np.float64) / 10.0)


def dbm_to_w(power_dbm: npt.ArrayLike) -> FloatArray:
    """Watts of ``power_dbm``; 30 dBm is 1 W."""
    return db_to_lin(np.asarray(power_dbm, dtype=np.float64) - 30.0)


def noise_psd_w_per_hz(noise_figure_db: float = 0.0) -> float:
    """Noise density N0 = k_B T F [W/Hz]; about -174 dBm/Hz at 290 K before the receiver's noise figure F."""
    from scipy import constants  # a slow import, for one number

    return float(constants.Boltzmann * _TEMPERATURE_K * db_to_lin(noise_figure_db))


def largest_remainder(share: FloatArray, total: int) -> npt.NDArray[np.int64]:
    """Split ``total`` things in proportion to ``share`` (K,), whole ones to each."""
    exact = share / share.sum() * total
    count = np.floor(exact).astype(np.int64)
    count[np.argsort(-(exact - count), kind="stable")[: total - int(count.sum())]] += 1
    return count
