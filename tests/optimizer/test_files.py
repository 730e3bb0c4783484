import json
import os
import time
from copy import deepcopy
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optimizer.__main__ import main
from optimizer.fdma.exact import solve_fdma
from optimizer.feasibility import check_solution
from optimizer.files import (
    problem_from_dict,
    problem_to_dict,
    read_problem,
    read_solution,
    write_problem,
    write_solution,
)
from optimizer.instances import sample_problem
from optimizer.problem import ProblemError, ResourceProblem
from optimizer.verify import verify
from tests.optimizer.fleets import random_fleet
from tests.optimizer.honest import as_files


@pytest.fixture
def data() -> dict[str, Any]:
    return problem_to_dict(random_fleet(0, 3))


def _same(ours: Any, theirs: Any) -> None:
    for item in fields(ours):
        a, b = getattr(ours, item.name), getattr(theirs, item.name)
        if isinstance(a, np.ndarray):
            np.testing.assert_array_equal(a, b, err_msg=item.name)
        else:
            assert a == b, item.name


def test_problem_round_trip(tmp_path: Path) -> None:
    fleets = [random_fleet(0, 3), random_fleet(0, 3, droppable_bits=np.array([1e6, 2e6, 3e6]))]
    fleets.append(replace(fleets[0], access="ofdma", channel_gain=np.full((3, 4), 1e-10), subcarrier_hz=9e4))
    for fleet in fleets:
        write_problem(tmp_path / "p.json", fleet)
        _same(read_problem(tmp_path / "p.json"), fleet)


def test_solution_round_trip(tmp_path: Path) -> None:
    fleet = random_fleet(0, 5, energy_budget_j=np.array([0.01, 1, 1, 1, 1]))
    solution = solve_fdma(fleet)
    write_solution(tmp_path / "s.json", solution)
    again = read_solution(tmp_path / "s.json")
    _same(again, solution)
    assert check_solution(fleet, again) == [] and again.reasons == solution.reasons
    raw = json.loads((tmp_path / "s.json").read_text())
    assert raw["dropout_rate"][0] is None and raw["scheduled"][0] is False


def test_ten_thousand_devices_fit_into_a_megabyte_and_keep_every_bit(tmp_path: Path) -> None:
    """The certificate tells its rates by how far they are from the solution's; files with whole rates are still read."""
    fleet = sample_problem(10_000, 0)
    solution = solve_fdma(fleet)
    write_solution(tmp_path / "s.json", solution)
    assert (tmp_path / "s.json").stat().st_size < 1e6
    again = read_solution(tmp_path / "s.json")
    _same(again, solution)
    problem, short = as_files(fleet, solution)
    rates = solution.dropout_rate[solution.scheduled] * (1 + 1e-13 * np.array(short["certificate"]["shift"]))
    whole = {"price_per_hz": short["certificate"]["price_per_hz"], "dropout_rate": rates.tolist()}
    proof = verify(problem, short)
    assert verify(problem, short | {"certificate": whole}) == proof
    assert proof.lower_bound >= solution.objective * (1 - 1e-12)


def test_a_hundred_thousand_devices_are_read_in_linear_time() -> None:
    data = problem_to_dict(random_fleet(0, 1))
    spent_s = []
    for count in (10_000, 100_000):
        data["devices"] = [data["devices"][0] | {"id": f"device-{k}"} for k in range(count)]
        began = time.process_time()
        assert problem_from_dict(data).num_devices == count
        spent_s.append(time.process_time() - began)
    assert spent_s[1] < min(30 * spent_s[0], 10.0), spent_s  # 100 times if each device looked at all others


def _damage(data: dict[str, Any], path: tuple[str | int, ...], value: Any) -> dict[str, Any]:
    copy: Any = deepcopy(data)
    target = copy
    for step in path[:-1]:
        target = target[step]
    if value is KeyError:
        del target[path[-1]]
    else:
        target[path[-1]] = value
    return copy


BAD = [
    (("deadline_s",), KeyError, "deadline_s is missing"),
    (("deadline_s",), -1.0, "deadline_s must be finite and > 0"),
    (("deadline_s",), "4", "deadline_s must be a number"),
    (("schema",), "other", "schema must be"),
    (("access",), "tdma", "access must be"),
    (("max_dropout_rate",), 1.0, "max_dropout_rate must lie in"),
    (("noise_psd_w_per_hz",), 0.0, "noise_psd_w_per_hz must be finite and > 0"),
    (("total_bandwidth_hz",), float("nan"), "total_bandwidth_hz must be finite"),
    (("payload",), [1], "payload must be an object"),
    (("payload", "fixed_bits"), KeyError, "payload.fixed_bits is missing"),
    (("payload", "droppable_bits"), -5.0, "payload.droppable_bits must be finite and >= 0"),
    (("bound", "confidence"), 2.0, "bound.confidence must be below 1"),
    (("bound", "lipschitz"), None, "bound.lipschitz must be a number"),
    (("devices",), [], "devices must be a list"),
    (("devices", 1, "cpu_hz"), KeyError, "devices[1].cpu_hz is missing"),
    (("devices", 1, "cpu_hz"), 0.0, "devices[1].cpu_hz must be finite and > 0"),
    (("devices", 2, "channel_gain"), float("nan"), "devices[2].channel_gain must be finite and >= 0"),
    (("devices", 2, "channel_gain"), [1e-9], "devices[2].channel_gain must be a number"),
    (("devices", 0, "energy_budget_j"), -1.0, "devices[0].energy_budget_j must be finite and >= 0"),
    (("devices", 0, "num_examples"), True, "devices[0].num_examples must be a number"),
    (("devices", 0, "num_examples"), 10**400, "devices[0].num_examples is too large"),
    (("devices", 2, "id"), "device-0", "devices[2].id must be unique"),
]


@pytest.mark.parametrize(("path", "value", "message"), BAD, ids=[row[2] for row in BAD])
def test_unusable_input_names_the_field(
    data: dict[str, Any], path: tuple[str | int, ...], value: Any, message: str
) -> None:
    with pytest.raises(ProblemError) as caught:
        problem_from_dict(_damage(data, path, value))
    assert message in str(caught.value)


def test_ofdma_gains_must_match_the_subcarriers(data: dict[str, Any]) -> None:
    data |= {"access": "ofdma", "num_subcarriers": 2, "subcarrier_hz": 9e4}
    del data["total_bandwidth_hz"]
    with pytest.raises(ProblemError, match=r"devices\[0\]\.channel_gain must be a list of 2 numbers"):
        problem_from_dict(data)


def _write(folder: Path, problem: ResourceProblem) -> str:
    write_problem(folder / "p.json", problem)
    return str(folder / "p.json")


def test_command_line_solves_and_checks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    problem, out = _write(tmp_path, random_fleet(0, 5)), str(tmp_path / "s.json")
    for method in ("exact", "equal", "random", "fixed"):
        assert main(["solve", problem, "--method", method, "--out", out, "--seed", "3"]) == 0
        assert main(["check", problem, out]) == 0
    damaged = json.loads(Path(out).read_text())
    damaged["bandwidth_hz"][1] *= 3
    Path(out).write_text(json.dumps(damaged))
    assert main(["check", problem, out]) == 1
    assert "total_bandwidth_hz" in capsys.readouterr().out
    assert os.listdir(tmp_path) and not [name for name in os.listdir(tmp_path) if name.startswith(".")]


def test_exit_status_of_unusable_input_and_of_a_hopeless_round(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, out = _write(tmp_path, random_fleet(0, 3)), str(tmp_path / "s.json")
    (tmp_path / "broken.json").write_text("{")
    for arguments in (
        ["solve", str(tmp_path / "absent.json"), "--out", out],
        ["solve", str(tmp_path / "broken.json"), "--out", out],
        ["solve", good, "--out", out, "--method", "exat"],
        ["solve", good, "--out", out, "--time-limit", "0"],
        ["solve", good, "--out", out, "--gap", "small"],
        ["solve", good],
        ["solve", good, "--out", str(tmp_path / "no" / "s.json")],
        ["check", good, good],
    ):
        assert main(arguments) == 2
        stderr = capsys.readouterr().err
        assert stderr.startswith("error: ") and stderr.count("\n") == 1
    hopeless = _write(tmp_path, random_fleet(0, 3, deadline_s=0.01))
    assert main(["solve", hopeless, "--out", out]) == 3
    assert "sits out" in capsys.readouterr().out and json.loads(Path(out).read_text())["status"] == "infeasible"
