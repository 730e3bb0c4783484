"""Random OFDMA problems in the style of the shared instances, made from a seed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from optimizer.problem import BoundConstants, ResourceProblem

CONSTANTS = BoundConstants(
    empirical_scale=0.05, loss_bound=1.0, lipschitz=1.0, curvature_min=0.5, sparsity_regularization=2.0, confidence=0.1
)
SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "instances"


def random_problem(num_devices: int, num_subcarriers: int, seed: int = 0, *, load: float = 6.2e6) -> ResourceProblem:
    """A cell of 20 to 500 m with Rayleigh fading per subcarrier; ``load`` is the bits per device and owned subcarrier."""
    rng = np.random.default_rng(seed)
    distance_km = 0.02 + 0.48 * np.sqrt(rng.random(num_devices))
    loss_db = 128.1 + 37.6 * np.log10(distance_km) + rng.normal(0.0, 6.0, num_devices)
    gain = 10 ** (-loss_db[:, None] / 10) * rng.exponential(1.0, (num_devices, num_subcarriers))
    cpu = rng.uniform(0.6e9, 2.0e9, num_devices)
    computing = 1e-28 * cpu**2 * (2e9 / 3 + 4e8)
    return ResourceProblem(
        access="ofdma",
        deadline_s=4.0,
        noise_psd_w_per_hz=10 ** (-17.4) * 1e-3,
        max_dropout_rate=0.9,
        bound=CONSTANTS,
        device_ids=tuple(f"device-{k}" for k in range(num_devices)),
        num_examples=rng.integers(300, 1001, num_devices).astype(float),
        channel_gain=np.maximum(gain, 1e-14),
        downlink_rate_bps=5e7,
        cpu_hz=cpu,
        capacitance=1e-28,
        fixed_cycles=2e9 / 3,
        adapter_cycles=4e8,
        max_tx_power_w=0.2,
        energy_budget_j=computing + rng.uniform(0.25, 0.8, num_devices),
        droppable_bits=load * num_subcarriers / num_devices,
        fixed_bits=65600.0,
        subcarrier_hz=90e3,
    )


def shared_problem(name: str) -> ResourceProblem:
    """Read one of the shared OFDMA instances; `FileNotFoundError` where they are not at hand."""
    data = json.loads((SHARED / f"{name}.json").read_text(encoding="utf-8"))
    devices = data["devices"]
    column = {key: np.array([device[key] for device in devices]) for key in devices[0] if key != "id"}
    return ResourceProblem(
        access="ofdma",
        deadline_s=data["deadline_s"],
        noise_psd_w_per_hz=data["noise_psd_w_per_hz"],
        max_dropout_rate=data["max_dropout_rate"],
        bound=BoundConstants(**data["bound"]),
        device_ids=tuple(device["id"] for device in devices),
        droppable_bits=data["payload"]["droppable_bits"],
        fixed_bits=data["payload"]["fixed_bits"],
        subcarrier_hz=data["subcarrier_hz"],
        **column,
    )
