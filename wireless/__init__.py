"""The radio and the device: channel, rate, latency and energy, in SI units and float64."""

from wireless.channel import Cell, LargeScale, fdma_gain, large_scale, ofdma_gain
from wireless.cost import RoundCost, compute_cycles, payload_bits, round_cost
from wireless.device import DeviceProfile, cycles_for, device_arrays, draw_devices
from wireless.link import bandwidth_for_rate_hz, fdma_rate_bps, ofdma_rate_bps, tx_power_for_rate_w
from wireless.units import db_to_lin, dbm_to_w, lin_to_db, noise_psd_w_per_hz, w_to_dbm

__all__ = [
    "Cell",
    "DeviceProfile",
    "LargeScale",
    "RoundCost",
    "bandwidth_for_rate_hz",
    "compute_cycles",
    "cycles_for",
    "db_to_lin",
    "dbm_to_w",
    "device_arrays",
    "draw_devices",
    "fdma_gain",
    "fdma_rate_bps",
    "large_scale",
    "lin_to_db",
    "noise_psd_w_per_hz",
    "ofdma_gain",
    "ofdma_rate_bps",
    "payload_bits",
    "round_cost",
    "tx_power_for_rate_w",
    "w_to_dbm",
]
