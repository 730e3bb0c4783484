"""Latency and energy of one device's round, from real bits and cycles.

    T_k = S^down / D + C / f + S^up / R             E_k = kappa f^2 C + p S^up / R + xi

The optimizer's constraints, its checker and the round's ledger all call `round_cost`, so they agree to the last digit.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from wireless.units import FloatArray


class RoundCost(NamedTuple):
    """Latency [s] of download, computation and upload in a row, and energy [J]; reception is not modelled."""

    latency_s: FloatArray
    energy_j: FloatArray


def payload_bits(fixed_bits: npt.ArrayLike, droppable_bits: npt.ArrayLike, dropout_rate: npt.ArrayLike) -> FloatArray:
    """Size of a sub-adapter on the wire, S = s0 + s1 (1 - gamma) [bit]."""
    fixed, droppable, gamma = np.asarray(fixed_bits), np.asarray(droppable_bits), np.asarray(dropout_rate)
    return np.asarray(fixed + droppable * (1.0 - gamma), dtype=np.float64)


def round_cost(
    *,
    uplink_bits: FloatArray | float,
    downlink_bits: FloatArray | float,
    cycles: FloatArray | float,
    cpu_hz: FloatArray | float,
    capacitance: FloatArray | float,
    downlink_rate_bps: FloatArray | float,
    uplink_rate_bps: FloatArray | float,
    tx_power_w: FloatArray | float,
    circuit_j: FloatArray | float = 0.0,
) -> RoundCost:
    """Return latency and energy of a round, elementwise.

    ``cycles`` C of the local update cost kappa f^2 [J] each, kappa [W s^3] being the switched ``capacitance``;
    ``tx_power_w`` is the total power p during the upload, ``circuit_j`` the constant energy xi of taking part. An
    upload at zero rate takes inf seconds unless there is nothing to send.
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        upload_s = np.where(np.greater(uplink_bits, 0), np.divide(uplink_bits, uplink_rate_bps), 0.0)
        upload_j = np.where(np.greater(tx_power_w, 0), tx_power_w * upload_s, 0.0)
    busy_s = np.divide(downlink_bits, downlink_rate_bps) + np.divide(cycles, cpu_hz)
    return RoundCost(busy_s + upload_s, capacitance * np.square(cpu_hz) * cycles + upload_j + circuit_j)
