"""Problem data of version 2: circuit energy, outage margins and goals in files."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from optimizer.allocator import METHODS, make_allocator
from optimizer.checker import check_solution
from optimizer.problem import ResourceProblem
from tests.optimizer.fleets import random_fleet
from tests.optimizer.ofdma_instances import random_problem

QUICK = sorted(name for name in METHODS if name not in ("scip", "psca"))


@pytest.mark.parametrize("access", ["fdma", "ofdma"])
@pytest.mark.parametrize("name", QUICK)
def test_circuit_energy_is_a_smaller_budget_and_nothing_else(name: str, access: str) -> None:
    if access not in METHODS[name]:
        pytest.skip("the method does not know this access")
    fleet = random_fleet(2, 5) if access == "fdma" else random_problem(3, 8, seed=2)
    circuit = np.linspace(0.01, 0.1, fleet.num_devices)
    with_circuit = replace(fleet, circuit_energy_j=circuit)
    smaller = replace(fleet, energy_budget_j=fleet.energy_budget_j - circuit)
    found, expected = _solve(name, with_circuit), _solve(name, smaller)
    assert check_solution(with_circuit, found) == []
    np.testing.assert_array_equal(found.dropout_rate, expected.dropout_rate)
    np.testing.assert_array_equal(found.tx_power_w, expected.tx_power_w)
    on = found.scheduled
    np.testing.assert_allclose(found.energy_j[on], expected.energy_j[on] + circuit[on], rtol=1e-14)


@pytest.mark.parametrize("access", ["fdma", "ofdma"])
def test_a_device_below_its_circuit_energy_sits_out_with_the_reason(access: str) -> None:
    fleet = random_fleet(2, 3) if access == "fdma" else random_problem(3, 8, seed=2)
    spent = np.array([0.0, 1.01, 0.0]) * fleet.energy_budget_j
    found = _solve("exact", replace(fleet, circuit_energy_j=spent))
    assert found.scheduled.tolist() == [True, False, True] and "energy budget" in found.reasons[1]


def _solve(name: str, problem: ResourceProblem):  # noqa: ANN202
    return make_allocator(name).allocate(problem, rng=np.random.default_rng(0))
