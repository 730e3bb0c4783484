"""Problem data of version 2: circuit energy, outage margins and goals in files."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedlodrop
from optimizer.__main__ import main
from optimizer.allocator import METHODS, make_allocator
from optimizer.fdma.bandwidth_curve import BandwidthCurve
from optimizer.feasibility import check_solution
from optimizer.files import problem_from_dict, problem_to_dict, read_problem, read_solution, write_problem
from optimizer.problem import Goal, ProblemError, ResourceProblem, Solution
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


def _solve(name: str, problem: ResourceProblem) -> Solution:
    return make_allocator(name).allocate(problem, rng=np.random.default_rng(0))


def test_files_of_version_2_are_read_written_checked_and_solved(tmp_path: Path) -> None:
    fleet = replace(random_fleet(1, 4), circuit_energy_j=np.full(4, 0.02), goal=Goal("time", max_bound=0.6))
    write_problem(tmp_path / "p.json", fleet)
    again = read_problem(tmp_path / "p.json")
    assert again.goal == fleet.goal and (again.circuit_energy_j == fleet.circuit_energy_j).all()
    out = str(tmp_path / "s.json")
    assert main(["solve", str(tmp_path / "p.json"), "--out", out]) == 0
    assert main(["check", str(tmp_path / "p.json"), out]) == 0
    assert read_solution(out).deadline_s == read_solution(out).objective
    assert main(["verify", str(tmp_path / "p.json"), out]) == 0
    write_problem(tmp_path / "p.json", replace(fleet, goal=None))
    assert main(["solve", str(tmp_path / "p.json"), "--out", out]) == 0
    assert json.loads((tmp_path / "p.json").read_text())["schema"] == "fedlodrop/resource-problem/2"
    assert main(["verify", str(tmp_path / "p.json"), out]) == 0
    weighed = Goal("tradeoff", energy_weight_per_j=0.01, time_weight_per_s=0.1)
    write_problem(tmp_path / "p.json", replace(fleet, goal=weighed))
    assert main(["solve", str(tmp_path / "p.json"), "--out", out]) == 0
    write_problem(tmp_path / "old.json", random_fleet(1, 4))
    assert json.loads((tmp_path / "old.json").read_text())["schema"] == "fedlodrop/resource-problem/1"


def test_an_outage_probability_plans_with_the_gain_that_holds() -> None:
    fleet = random_fleet(1, 4)
    data = problem_to_dict(fleet) | {"schema": "fedlodrop/resource-problem/2", "outage_probability": 0.1}
    np.testing.assert_allclose(problem_from_dict(data).channel_gain, -np.log(0.9) * fleet.channel_gain)
    data["devices"][2]["rician_k"] = 5.0
    gain = problem_from_dict(data).channel_gain / fleet.channel_gain
    assert gain[2] > 2 * gain[0] == pytest.approx(-2 * np.log(0.9))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": "fedlodrop/resource-problem/1", "outage_probability": 0.1}, "outage_probability is unknown"),
        ({"outage_probability": 1.5}, "outage_probability must lie in"),
        ({"outage_probability": "often"}, "outage_probability must be a number"),
        ({"objective": "time"}, "objective must be an object"),
        ({"objective": {"objective": 3}}, "objective must be one of time, tradeoff"),
        ({"objective": {"objective": "time", "max_bond": 1}}, "objective.max_bond is unknown, did you mean max_bound"),
        ({"objective": {"objective": "time", "max_bound": "low"}}, "objective.max_bound must be a number"),
    ],
)
def test_bad_files_are_refused_in_one_line(change: dict[str, Any], message: str) -> None:
    data = problem_to_dict(random_fleet(1, 2)) | {"schema": "fedlodrop/resource-problem/2"} | change
    with pytest.raises(ProblemError, match=message) as caught:
        problem_from_dict(data)
    assert "\n" not in str(caught.value)


def test_the_python_door_takes_a_goal() -> None:
    found = fedlodrop.solve(random_fleet(1, 3), goal=Goal("tradeoff", time_weight_per_s=0.1))
    assert found.deadline_s is not None and found.gap <= 1e-6


@pytest.mark.parametrize("spare", [1e-9, 1e-12])
def test_bare_margins_know_the_circuit_energy(spare: float) -> None:
    """Where the energy hardly carries the payload the curve looks again in extended precision, at the same budget."""
    fleet = random_fleet(2, 3)
    curve = BandwidthCurve(fleet)
    kept = 1 - fleet.max_dropout_rate
    need_j = curve.noise_to_gain * np.log(2) * (fleet.fixed_bits + fleet.droppable_bits * kept)
    computing_j = fleet.energy_budget_j - curve.energy_j + curve.energy_slope_j * kept
    bare = computing_j + need_j * (1 + spare)
    plain = replace(fleet, energy_budget_j=bare, max_tx_power_w=10.0)
    with_circuit = replace(plain, energy_budget_j=2 * bare, circuit_energy_j=bare)
    top = np.full(3, fleet.max_dropout_rate)
    hertz = [BandwidthCurve(problem).bandwidth_hz(top) for problem in (plain, with_circuit)]
    np.testing.assert_array_equal(hertz[0], hertz[1])
