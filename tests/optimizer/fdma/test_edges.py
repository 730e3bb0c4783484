"""Where resources are met to the last digit, scales are far apart, or nothing is left to decide."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from optimizer.fdma.bandwidth_curve import BandwidthCurve
from optimizer.problem import ResourceProblem
from optimizer.verify import verify
from tests.optimizer.fleets import random_fleet
from tests.optimizer.honest import as_files, solve, wild_cell, wild_fleet
from tests.support.cases import first


def _fleet(examples: tuple[float, ...], gains: tuple[float, ...], total_hz: float, **changes: Any) -> ResourceProblem:
    same = {"cpu_hz": 1e9, "fixed_cycles": 1e9, "adapter_cycles": 0.0, "droppable_bits": 1e6, "fixed_bits": 1e5}
    data = same | {"num_examples": np.array(examples), "channel_gain": np.array(gains), "total_bandwidth_hz": total_hz}
    return random_fleet(0, len(gains), **(data | {"energy_budget_j": 5.0} | changes))


def test_a_band_equal_to_the_demand_serves_everyone() -> None:
    assert solve(_fleet((100, 200, 300), (1e-9, 1e-9, 3e-9), 8127.141355753003), "exact").scheduled.all()


@pytest.mark.parametrize("seed", range(40))
def test_bands_at_or_just_above_the_demand_are_proven(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 5))
    fleet = _fleet(tuple(np.round(10 ** rng.uniform(0, 4, count))), tuple(10 ** rng.uniform(-11, -7, count)), 1e5)
    need = float(BandwidthCurve(fleet).bandwidth_hz(np.full(count, 0.9)).sum())
    more = 1.0 if seed % 2 else 1 + 10 ** rng.uniform(-15, -3)
    fleet = replace(fleet, total_bandwidth_hz=need * more)
    proof = verify(*as_files(fleet, solve(fleet, "exact")))
    assert proof.objective - proof.lower_bound <= 1e-9 * proof.objective


def test_the_heavier_of_two_that_do_not_fit_together_is_served() -> None:
    solution = solve(_fleet((200, 300), (1e-9, 1e-12), 7795.982654095442), "exact")
    assert solution.scheduled.tolist() == [False, True] and solution.admission == "heaviest"


@pytest.mark.parametrize(("droppable_bits", "fixed_bits"), [(1e-6, 1e8), (1e8, 1e-6)])
def test_a_bound_is_no_better_than_its_rounding(droppable_bits: float, fixed_bits: float) -> None:
    sizes = {"droppable_bits": droppable_bits, "fixed_bits": fixed_bits, "downlink_rate_bps": 1e9}
    fleet = _fleet((1000,), (1e-9,), 2403932.293196532, **sizes)
    solution = solve(fleet, "exact")
    assert verify(*as_files(fleet, solution)).lower_bound >= solution.lower_bound - 1e-9


def test_optimal_means_the_gap_that_was_asked_for() -> None:
    fleet = _fleet((1000, 500), (1e-9, 1e-10), 34127.65172101288, fixed_bits=1e-5)
    solution = solve(fleet, "bnb", gap=1e-4)
    assert solution.gap <= 1e-4 or solution.status.value != "optimal"


@pytest.mark.parametrize("seed", range(30))
def test_a_bound_claims_no_more_than_exact_arithmetic_proves(seed: int) -> None:
    """Fixed and droppable payloads up to 17 orders of magnitude apart, the band from scarce to ample."""
    rng = np.random.default_rng([seed, 7])
    count = int(rng.integers(1, 4))
    sizes = {
        "droppable_bits": 10 ** rng.uniform(-9, 8),
        "fixed_bits": 10 ** rng.uniform(-9, 8),
        "downlink_rate_bps": 1e9,
    }
    fleet = _fleet(
        tuple(np.ceil(10 ** rng.uniform(0, 4, count))), tuple(10 ** rng.uniform(-10, -8, count)), 1e9, **sizes
    )
    need = float(BandwidthCurve(fleet).bandwidth_hz(np.full(count, 0.9)).sum())
    fleet = replace(fleet, total_bandwidth_hz=need * (1 + 10 ** rng.uniform(-6, 1)))
    solution = solve(fleet, "exact")
    proof = verify(*as_files(fleet, solution))
    assert solution.scheduled.any() and proof.lower_bound >= solution.lower_bound - 1e-9


@pytest.mark.parametrize("method", ["exact", "bnb", "psca"])
@pytest.mark.parametrize("gap", first(1, [1e-6, 1e-2, 1e-12]))
def test_optimal_always_means_the_gap_that_was_asked_for(method: str, gap: float) -> None:
    problems = [*map(wild_fleet, range(12)), *(map(wild_cell, range(8)) if method != "exact" else ())]
    for solution in (solve(problem, method, gap=gap) for problem in problems):
        assert solution.status.value != "optimal" or solution.gap <= max(gap, 1e-12) * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(12))
def test_free_clocks_have_a_tight_certificate_everywhere(seed: int) -> None:
    rng = np.random.default_rng([seed, 5])
    fleet = random_fleet(seed, int(rng.integers(1, 9)), channel_gain=10 ** rng.uniform(-11.5, -8))
    free = replace(
        fleet, min_cpu_hz=fleet.cpu_hz * rng.uniform(0.1, 0.9), max_cpu_hz=fleet.cpu_hz * rng.uniform(1.1, 4)
    )
    solution = solve(free, "exact")
    assert solution.scheduled.any() and -1e-9 <= solution.gap <= 1e-6


def test_free_clocks_have_a_tight_certificate() -> None:
    fleet = _fleet((1000, 10), (1e-9, 1e-10), 5000.0, adapter_cycles=6e8, min_cpu_hz=2e8, max_cpu_hz=4e9)
    assert solve(fleet, "exact").gap <= 1e-6
