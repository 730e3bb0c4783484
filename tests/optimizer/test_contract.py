"""What every FDMA method must keep, one table for all of them (the contract of docs/formulation.md)."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from optimizer.allocator import METHODS, make_allocator
from optimizer.feasibility import check_solution
from optimizer.problem import ResourceProblem, Solution, SolverStatus
from tests.optimizer.fleets import extreme_fleet, more_of_each_resource, random_fleet

QUICK = sorted(name for name, table in METHODS.items() if "fdma" in table and name != "scip")
SOLVERS = ("exact", "bnb", "psca")


def _solve(name: str, problem: ResourceProblem, **options: Any) -> Solution:
    return make_allocator(name, **options).allocate(problem, rng=np.random.default_rng(0))


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize("seed", range(8))
def test_feasible_deterministic_and_never_below_a_certificate(name: str, seed: int) -> None:
    fleet = random_fleet(seed, 8, total_bandwidth_hz=2e6) if seed % 2 else extreme_fleet(seed)
    solution, again, exact = _solve(name, fleet), _solve(name, fleet), _solve("exact", fleet)
    assert check_solution(fleet, solution) == [] and solution.method == name
    assert isinstance(solution.status, SolverStatus) and len(solution.reasons) == fleet.num_devices
    for field in ("dropout_rate", "bandwidth_hz", "tx_power_w", "scheduled"):
        np.testing.assert_array_equal(getattr(solution, field), getattr(again, field))
    assert solution.lower_bound <= solution.objective
    if (solution.scheduled == exact.scheduled).all():
        assert solution.objective >= exact.lower_bound - 1e-12
        assert exact.objective >= solution.lower_bound - 1e-12


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("seed", range(4))
def test_more_of_any_resource_never_hurts(name: str, seed: int) -> None:
    fleet = random_fleet(seed, 6)
    base = _solve(name, fleet, gap=1e-7)
    assert base.scheduled.all()
    for field, value in more_of_each_resource(fleet).items():
        better = _solve(name, replace(fleet, **{field: value}), gap=1e-7)
        assert better.scheduled.all() and better.objective <= base.objective * (1 + 2e-7), field


EXTREMES: dict[str, dict[str, Any]] = {
    "one device": {"num_devices": 1},
    "no energy": {"num_devices": 4, "energy_budget_j": 0.0},
    "one without energy": {"num_devices": 4, "energy_budget_j": np.array([0.0, 1.0, 1.0, 1.0])},
    "no power": {"num_devices": 3, "max_tx_power_w": 0.0},
    "dead channels": {"num_devices": 3, "channel_gain": 0.0},
    "gains from 1e-20 to 1": {"num_devices": 5, "channel_gain": np.array([1e-20, 1e-15, 1e-10, 1e-5, 1.0])},
    "identical devices": {
        "num_devices": 4,
        "channel_gain": 1e-11,
        "cpu_hz": 1e9,
        "energy_budget_j": 1.0,
        "num_examples": 300.0,
    },
    "no dropout allowed": {"num_devices": 3, "max_dropout_rate": 0.0, "total_bandwidth_hz": 1e8},
    "nearly everything may be dropped": {"num_devices": 3, "max_dropout_rate": 0.999999},
    "nothing droppable": {"num_devices": 3, "droppable_bits": 0.0, "adapter_cycles": 0.0},
    "nothing to send": {"num_devices": 3, "droppable_bits": 0.0, "fixed_bits": 0.0},
    "nothing to send and no radio": {"num_devices": 3, "droppable_bits": 0.0, "fixed_bits": 0.0, "max_tx_power_w": 0.0},
    "endless time": {"num_devices": 3, "deadline_s": 1e6, "energy_budget_j": 1e6},
    "hardly any time": {"num_devices": 3, "deadline_s": 1e-9},
    "hardly any bandwidth": {"num_devices": 3, "total_bandwidth_hz": 1e-3},
    "bandwidth without end": {"num_devices": 3, "total_bandwidth_hz": 1e15},
}


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize("case", EXTREMES)
def test_extreme_inputs_get_an_answer(name: str, case: str) -> None:
    changes = dict(EXTREMES[case])
    fleet = random_fleet(1, changes.pop("num_devices"), **changes)
    solution = _solve(name, fleet)
    assert check_solution(fleet, solution) == []
    exact = _solve("exact", fleet)
    if name in SOLVERS:
        np.testing.assert_array_equal(solution.scheduled, exact.scheduled)
        assert solution.objective == pytest.approx(exact.objective, rel=1e-4)
