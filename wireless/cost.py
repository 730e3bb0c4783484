"""Latency and energy of one device's round, from real bits and cycles.

    T_k = S^down / D + C / f + S^up / R             E_k = xi + kappa f^2 C + p S^up / R

The optimizer's constraints, its checker and the round's ledger all call `round_cost`, so they agree to the last digit.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wireless.units import FloatArray


@dataclass(frozen=True)
class RoundCost:
    """Parts of a round's latency [s] and energy [J]; arrays of one common shape."""

    download_s: FloatArray
    compute_s: FloatArray
    upload_s: FloatArray
    compute_j: FloatArray
    upload_j: FloatArray
    circuit_j: FloatArray

    @property
    def latency_s(self) -> FloatArray:
        """Download, computation and upload, one after the other [s]."""
        return self.download_s + self.compute_s + self.upload_s

    @property
    def energy_j(self) -> FloatArray:
        """Computation, transmission and what circuits take whatever is sent [J]; reception is not modelled."""
        return self.compute_j + self.upload_j + self.circuit_j


def payload_bits(fixed_bits: npt.ArrayLike, droppable_bits: npt.ArrayLike, dropout_rate: npt.ArrayLike) -> FloatArray:
    """Size of a sub-adapter on the wire, S = s0 + s1 (1 - gamma) [bit]."""
    fixed, droppable, gamma = np.asarray(fixed_bits), np.asarray(droppable_bits), np.asarray(dropout_rate)
    return np.asarray(fixed + droppable * (1.0 - gamma), dtype=np.float64)


def compute_cycles(
    fixed_cycles: npt.ArrayLike, adapter_cycles: npt.ArrayLike, dropout_rate: npt.ArrayLike
) -> FloatArray:
    """Work of a local update, C = c0 + c1 (1 - gamma) [cycle]."""
    return payload_bits(fixed_cycles, adapter_cycles, dropout_rate)  # the same affine law, in cycles


def round_cost(
    *,
    uplink_bits: npt.ArrayLike,
    downlink_bits: npt.ArrayLike,
    cycles: npt.ArrayLike,
    cpu_hz: npt.ArrayLike,
    capacitance: npt.ArrayLike,
    downlink_rate_bps: npt.ArrayLike,
    uplink_rate_bps: npt.ArrayLike,
    tx_power_w: npt.ArrayLike,
    circuit_j: npt.ArrayLike = 0.0,
) -> RoundCost:
    """Return latency and energy of a round, part by part, in one common (broadcast) shape.

    ``cycles`` C of the local update cost kappa f^2 [J] each, kappa [W s^3] being the switched ``capacitance``;
    ``tx_power_w`` is the total power p during the upload, ``circuit_j`` the constant energy xi of taking part. An
    upload at zero rate takes inf seconds unless there is nothing to send.
    """
    given = (uplink_bits, downlink_bits, cycles, cpu_hz, capacitance, downlink_rate_bps, uplink_rate_bps, tx_power_w)
    up, down, work, clock, kappa, down_rate, up_rate, power, circuit = np.broadcast_arrays(
        *(np.asarray(a, dtype=np.float64) for a in (*given, circuit_j))
    )
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        upload_s = np.where(up > 0, up / up_rate, 0.0)
        upload_j = np.where(power > 0, power * upload_s, 0.0)
    return RoundCost(down / down_rate, work / clock, upload_s, kappa * clock**2 * work, upload_j, circuit)
