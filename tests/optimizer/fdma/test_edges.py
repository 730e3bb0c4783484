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
from tests.optimizer.honest import as_files, solve


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
    need = float(BandwidthCurve.of(fleet).bandwidth_hz(np.full(count, 0.9)).sum())
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


def test_free_clocks_have_a_tight_certificate() -> None:
    fleet = _fleet((1000, 10), (1e-9, 1e-10), 5000.0, adapter_cycles=6e8, min_cpu_hz=2e8, max_cpu_hz=4e9)
    assert solve(fleet, "exact").gap <= 1e-4
