"""Seeded resource problems of any size, for measurements and figures."""

import numpy as np

from optimizer.problem import BoundConstants, ResourceProblem
from wireless.channel import Cell, fdma_gain, large_scale, ofdma_gain
from wireless.units import noise_psd_w_per_hz


def sample_problem(
    num_devices: int, seed: int, *, access: str = "fdma", num_subcarriers: int = 0, subcarrier_hz: float = 90e3
) -> ResourceProblem:
    """A seeded fleet in a 250 m cell where all resources bind: 60 kHz per device or subcarriers of that width."""
    rng = np.random.default_rng([seed, num_devices])
    mean_gain = large_scale(rng, num_devices, Cell(radius_m=250.0))
    ofdma = access == "ofdma"
    gain = ofdma_gain(rng, mean_gain, num_subcarriers, subcarrier_hz) if ofdma else fdma_gain(rng, mean_gain)
    per_device_hz = subcarrier_hz * num_subcarriers / num_devices if ofdma else 60e3
    return ResourceProblem(
        access=access,
        deadline_s=4.0,
        noise_psd_w_per_hz=noise_psd_w_per_hz(7.0),
        max_dropout_rate=0.9,
        bound=BoundConstants(0.05, 1.0, 1.0, 0.5, 2.0, 0.1),
        device_ids=tuple(f"device-{k}" for k in range(num_devices)),
        num_examples=rng.integers(200, 1000, num_devices).astype(np.float64),
        channel_gain=gain,
        downlink_rate_bps=np.array(5e7),
        cpu_hz=rng.uniform(0.5e9, 2e9, num_devices),
        capacitance=np.array(1e-28),
        fixed_cycles=np.array(2e9 / 3),
        adapter_cycles=np.array(4e8),
        max_tx_power_w=np.array(0.2),
        energy_budget_j=rng.uniform(0.45, 1.35, num_devices),
        droppable_bits=np.array(210.0 * per_device_hz),
        fixed_bits=np.array(65600.0),
        total_bandwidth_hz=60e3 * num_devices,
        subcarrier_hz=subcarrier_hz if ofdma else 0.0,
    )
