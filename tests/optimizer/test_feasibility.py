from dataclasses import replace

import numpy as np
import pytest

from optimizer.fdma.exact import solve_fdma
from optimizer.feasibility import check_solution, make_solution, nobody_scheduled
from optimizer.problem import ResourceProblem, Solution, SolverStatus
from tests.optimizer.fleets import random_fleet


def _names(problem: ResourceProblem, solution: Solution) -> set[str]:
    return {item.constraint for item in check_solution(problem, solution)}


@pytest.fixture(scope="module")
def fleet() -> ResourceProblem:
    return random_fleet(3, 6)


@pytest.fixture(scope="module")
def good(fleet: ResourceProblem) -> Solution:
    return solve_fdma(fleet)


def test_an_exact_solution_passes(fleet: ResourceProblem, good: Solution) -> None:
    assert check_solution(fleet, good) == []


def _changed(array: np.ndarray | None, value: float) -> np.ndarray:
    copy = np.array(array)
    copy[1] = value
    return copy


def test_every_kind_of_damage_is_named(fleet: ResourceProblem, good: Solution) -> None:
    band, power, gamma = good.bandwidth_hz, good.tx_power_w, good.dropout_rate
    assert "deadline_s" in _names(fleet, replace(good, bandwidth_hz=_changed(band, band[1] * 0.9)))
    assert "total_bandwidth_hz" in _names(fleet, replace(good, bandwidth_hz=_changed(band, band[1] * 1.1)))
    assert "tx_power_w" in _names(fleet, replace(good, tx_power_w=_changed(power, 1.0)))
    assert "tx_power_w" in _names(fleet, replace(good, tx_power_w=_changed(power, -1e-3)))
    assert "dropout_rate" in _names(fleet, replace(good, dropout_rate=_changed(gamma, 0.95)))
    assert "dropout_rate" in _names(fleet, replace(good, dropout_rate=_changed(gamma, -0.1)))
    assert "finite" in _names(fleet, replace(good, dropout_rate=_changed(gamma, np.nan)))
    assert "finite" in _names(fleet, replace(good, bandwidth_hz=_changed(band, np.nan)))
    assert "bandwidth_hz" in _names(fleet, replace(good, bandwidth_hz=_changed(band, -1.0)))
    assert "reported latency_s" in _names(fleet, replace(good, latency_s=_changed(good.latency_s, 1.0)))
    assert "reported energy_j" in _names(fleet, replace(good, energy_j=_changed(good.energy_j, np.nan)))
    assert "reported objective" in _names(fleet, replace(good, objective=good.objective * 0.99))
    assert "lower_bound" in _names(fleet, replace(good, lower_bound=good.objective * 1.01))
    assert "lower_bound" in _names(fleet, replace(good, lower_bound=np.nan))
    assert "status" in _names(fleet, replace(good, status=SolverStatus.INFEASIBLE))
    assert "scheduled" in _names(fleet, replace(good, scheduled=_changed(good.scheduled, False)))
    assert _names(fleet, replace(good, bandwidth_hz=None)) == {"shape"}
    assert _names(fleet, replace(good, dropout_rate=gamma[:-1])) == {"shape"}


def test_energy_is_checked_from_the_definition(good: Solution, fleet: ResourceProblem) -> None:
    poorer = replace(fleet, energy_budget_j=fleet.energy_budget_j * 0.9)
    assert "energy_budget_j" in _names(poorer, good)


def test_a_round_without_devices_passes(fleet: ResourceProblem) -> None:
    assert check_solution(fleet, nobody_scheduled(fleet, "any")) == []


def _ofdma(num_devices: int = 2, num_subcarriers: int = 3) -> ResourceProblem:
    base = random_fleet(0, num_devices)
    return replace(
        base,
        access="ofdma",
        channel_gain=np.full((num_devices, num_subcarriers), 1e-10),
        subcarrier_hz=4e5,
        energy_budget_j=np.full(num_devices, 2.0),
    )


def test_ofdma_ownership_is_checked() -> None:
    problem = _ofdma()
    owner = np.array([0, 1, 1])
    power = np.array([[0.1, 0.0, 0.0], [0.0, 0.1, 0.1]])
    solution = make_solution(
        problem,
        method="hand",
        status=SolverStatus.FEASIBLE,
        scheduled=np.array([True, True]),
        dropout_rate=np.full(2, 0.5),
        tx_power_w=power,
        subcarrier_owner=owner,
    )
    assert check_solution(problem, solution) == []
    assert "subcarrier_owner" in _names(problem, replace(solution, subcarrier_owner=np.array([0, 0, 1])))
    assert "subcarrier_owner" in _names(problem, replace(solution, subcarrier_owner=np.array([0, 1, 2])))
    assert "scheduled" in _names(problem, replace(solution, scheduled=np.array([False, True])))
    assert "tx_power_w" in _names(problem, replace(solution, tx_power_w=power * 2.1))
    assert check_solution(problem, nobody_scheduled(problem, "any")) == []
