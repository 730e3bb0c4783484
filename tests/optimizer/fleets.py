"""Fleets for the optimizer's tests: seeded random ones, extreme ones and the shared instances."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optimizer.files import read_problem
from optimizer.objective import GeneralizationBound
from optimizer.problem import BoundConstants, FloatArray, ResourceProblem
from tests.support.cases import first

CONSTANTS = BoundConstants(
    empirical_scale=0.05, loss_bound=1.0, lipschitz=1.0, curvature_min=0.5, sparsity_regularization=2.0, confidence=0.1
)
SHARED = Path(__file__).parents[2] / ".." / "shared" / "instances"


def shared_instance(name: str) -> ResourceProblem:
    """Return a shared instance; skip the test where the folder is absent."""
    path = SHARED / f"{name}.json"
    if not path.exists():
        pytest.skip(f"shared instance {name} is not there")
    return read_problem(path)


def contract_cases(*kinds: str) -> list[Any]:
    """Every kind of problem with every objective; goals take their time and are slow tests of all but the first kind."""
    bounds = [(kind, "bound") for kind in kinds]
    return first(len(kinds) + 2, [*bounds, *((kind, goal) for kind in kinds for goal in ("time", "tradeoff"))])


def random_fleet(seed: int, num_devices: int, **changes: Any) -> ResourceProblem:
    """Return an FDMA fleet in which bandwidth, energy and time all matter; ``changes`` override fields."""
    rng = np.random.default_rng(seed)
    data: dict[str, Any] = {
        "access": "fdma",
        "deadline_s": 4.0,
        "noise_psd_w_per_hz": 4e-21,
        "max_dropout_rate": 0.9,
        "bound": CONSTANTS,
        "device_ids": tuple(f"device-{k}" for k in range(num_devices)),
        "num_examples": rng.integers(200, 1000, num_devices).astype(float),
        "channel_gain": 10 ** rng.uniform(-12.5, -9, num_devices),
        "downlink_rate_bps": 5e7,
        "cpu_hz": rng.uniform(5e8, 2e9, num_devices),
        "capacitance": 1e-28,
        "fixed_cycles": 2e9 / 3,
        "adapter_cycles": 4e8,
        "max_tx_power_w": 0.2,
        "energy_budget_j": rng.uniform(0.45, 1.35, num_devices),
        "droppable_bits": 12582912.0,
        "fixed_bits": 65600.0,
        "total_bandwidth_hz": 7e4 * num_devices,
    }
    return ResourceProblem(**(data | changes))


def more_of_each_resource(fleet: ResourceProblem) -> dict[str, Any]:
    """Return, for every resource, a field and a value that can only help."""
    return {
        "total_bandwidth_hz": fleet.total_bandwidth_hz * 1.2,
        "deadline_s": fleet.deadline_s * 1.1,
        "energy_budget_j": fleet.energy_budget_j * 1.1,
        "max_tx_power_w": fleet.max_tx_power_w * 1.5,
        "channel_gain": fleet.channel_gain * 1.5,
        "downlink_rate_bps": fleet.downlink_rate_bps * 2,
        "max_dropout_rate": 0.95,
        "noise_psd_w_per_hz": fleet.noise_psd_w_per_hz / 2,
        "capacitance": fleet.capacitance / 2,
    }


def extreme_fleet(seed: int) -> ResourceProblem:
    """Return a fleet near every boundary at once: gains 1e-20 to 1, dead devices, empty batteries, silent radios."""
    rng = np.random.default_rng([seed, 99])
    count = int(rng.integers(1, 25))
    return random_fleet(
        seed,
        count,
        channel_gain=10 ** rng.uniform(-20, 0, count) * (rng.random(count) > 0.05),
        energy_budget_j=rng.uniform(0.05, 1.35, count) * (rng.random(count) > 0.1),
        deadline_s=rng.uniform(0.5, 8.0),
        max_tx_power_w=10 ** rng.uniform(-3, 0, count) * (rng.random(count) > 0.05),
        max_dropout_rate=float(rng.choice([0.0, 0.5, 0.9, 0.99])),
        total_bandwidth_hz=count * 10 ** rng.uniform(3, 6),
    )


class Rippled:
    """Deliberately non-convex: the bound plus a weighted sine with several minima per device."""

    def __init__(self, height: float = 0.05, frequency: float = 25.0) -> None:
        self.base, self.height, self.frequency = GeneralizationBound(), height, frequency

    def _phase(self, problem: ResourceProblem) -> FloatArray:
        return np.arange(problem.num_devices) * 1.3

    def value(self, problem: ResourceProblem, dropout_rate: FloatArray) -> FloatArray:
        ripple = self.height * np.sin(self.frequency * dropout_rate + self._phase(problem))
        return self.base.value(problem, dropout_rate) + problem.weights * ripple

    def derivative(self, problem: ResourceProblem, dropout_rate: FloatArray) -> FloatArray:
        ripple = self.height * self.frequency * np.cos(self.frequency * dropout_rate + self._phase(problem))
        return self.base.derivative(problem, dropout_rate) + problem.weights * ripple

    def curvature_floor(self, problem: ResourceProblem, low: FloatArray, high: FloatArray) -> FloatArray:
        """-height frequency^2 times the largest value of sin on the interval."""
        start, end = (self.frequency * end + self._phase(problem) for end in (low, high))
        crest = np.ceil((start - np.pi / 2) / (2 * np.pi)) * 2 * np.pi + np.pi / 2
        largest = np.where(crest <= end, 1.0, np.maximum(np.sin(start), np.sin(end)))
        return -problem.weights * self.height * self.frequency**2 * np.maximum(largest, 0.0)
