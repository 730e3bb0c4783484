"""Random and extreme problems with honest answers, for the verifier's tests."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np

from optimizer.allocator import make_allocator
from optimizer.files import problem_to_dict, solution_to_dict
from optimizer.problem import ResourceProblem, Solution
from tests.optimizer.fleets import extreme_fleet, random_fleet
from tests.optimizer.ofdma_instances import random_problem

FDMA_METHODS = ("exact", "psca", "equal", "common", "none", "random", "bnb")
OFDMA_METHODS = ("bnb", "psca", "equal", "common", "none")


def as_files(problem: ResourceProblem, solution: Solution) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both in the form in which they are read from files."""
    return json.loads(json.dumps(problem_to_dict(problem))), json.loads(json.dumps(solution_to_dict(solution)))


def wild_fleet(seed: int) -> ResourceProblem:
    """FDMA: ordinary, scarce, extreme, or with every number drawn over many orders of magnitude."""
    rng = np.random.default_rng([seed, 7])
    count = int(rng.integers(1, 200 if seed % 50 == 0 else 30))
    if seed % 4 == 0:
        return extreme_fleet(seed)
    if seed % 4 == 1:
        return random_fleet(seed, count)
    total_hz, deadline_s = count * 10 ** rng.uniform(2, 7), 10 ** rng.uniform(-3, 4)
    if seed % 4 == 2:
        return random_fleet(seed, count, total_bandwidth_hz=total_hz, deadline_s=deadline_s)
    return random_fleet(
        seed,
        count,
        total_bandwidth_hz=total_hz,
        deadline_s=deadline_s,
        num_examples=np.round(10 ** rng.uniform(0, 7, count)),
        channel_gain=10 ** rng.uniform(-20, 0, count),
        energy_budget_j=10 ** rng.uniform(-2, 1, count),
        adapter_cycles=10 ** rng.uniform(0, 9),
        droppable_bits=10 ** rng.uniform(-3, 8),
        fixed_bits=10 ** rng.uniform(-6, 6),
        downlink_rate_bps=10 ** rng.uniform(5, 9),
        max_tx_power_w=10 ** rng.uniform(-4, 1, count),
    )


def wild_cell(seed: int) -> ResourceProblem:
    """OFDMA: small cells, one in three ordinary, the others with gains, energies and examples far apart."""
    rng = np.random.default_rng([seed, 11])
    count, subcarriers = int(rng.integers(1, 6)), int(rng.integers(1, 13))
    cell = random_problem(count, subcarriers, seed, load=10 ** rng.uniform(5, 7.3))
    if seed % 3 == 0:
        return cell
    return replace(
        cell,
        channel_gain=cell.channel_gain * 10 ** rng.uniform(-3, 3, (count, 1)),
        deadline_s=10 ** rng.uniform(0, 1.5),
        energy_budget_j=cell.energy_budget_j * 10 ** rng.uniform(-0.7, 0.7, count),
        total_examples=0.0,
        num_examples=np.round(10 ** rng.uniform(0, 5, count)),
    )


def solve(problem: ResourceProblem, method: str, **options: Any) -> Solution:
    """Return the method's answer with seed 0."""
    return make_allocator(method, **options).allocate(problem, rng=np.random.default_rng(0))
