"""Files that nobody should have written: one clear line that names the place and a non-zero exit, never a traceback."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optimizer.__main__ import main
from optimizer.fdma.exact import solve_fdma
from optimizer.files import problem_from_dict, problem_to_dict, read_problem, solution_to_dict
from optimizer.instances import sample_problem
from optimizer.ofdma.schemes import equal
from optimizer.problem import ProblemError
from tests.optimizer.fleets import random_fleet
from tests.optimizer.ofdma_instances import random_problem
from tests.support.cases import first

Command = Callable[..., tuple[int, str]]
NASTY: dict[str, Any] = {
    "nothing": None,
    "a bool": True,
    "a text": "4",
    "a list": [],
    "a list of lists": [[1.0], [2.0, 3.0]],
    "an object": {"a": 1},
    "NaN": float("nan"),
    "infinity": float("inf"),
    "401 digits": 10**400,
    "a huge number": 1e308,
    "a number whose square is none": 1e200,
    "a negative number": -1.0,
    "a tiny number": 5e-324,
}


@pytest.fixture
def command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    def run(name: str, *contents: Any) -> tuple[int, str]:
        """Run a command on files with these contents (text as it is, bytes too); return exit status and complaint."""
        paths = []
        for number, content in enumerate(contents):
            path = tmp_path / f"{number}.json"
            raw = content if isinstance(content, str | bytes) else json.dumps(content)
            path.write_bytes(raw if isinstance(raw, bytes) else raw.encode())
            paths.append(str(path))
        status = main([name, *paths, *(["--out", str(tmp_path / "s.json")] if name == "solve" else [])])
        return status, capsys.readouterr().err

    return run


def _one_line(complaint: str) -> bool:
    return complaint.startswith("error: ") and complaint.count("\n") == 1 and len(complaint) < 400


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "5",
        '"text"',
        "[" * 100_000,
        '{"a":' * 100_000,
        "1" * 5000,
        '{"schema": "fedlodrop/resource-problem/1", "deadline_s": ' + "9" * 5000 + "}",
        '{"schema": 1, "schema": 2}',
        '{"bound": {"a": 1, "a": 1}}',
        b"\xff\xfe{}",
        "\ufeff{}",
        '{"schema": "fedlodrop/resource-problem/1\u0000"}',
    ],
    ids=lambda text: repr(text[:24]),
)
def test_what_is_no_json_object_of_ours(command: Command, text: str | bytes) -> None:
    good = problem_to_dict(random_fleet(0, 3))
    for name, contents in (
        ("solve", [text]),
        ("check", [text, text]),
        ("check", [good, text]),
        ("verify", [good, text]),
    ):
        status, complaint = command(name, *contents)
        assert status == 2 and _one_line(complaint), (name, complaint[:300])


def _numbers(content: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    if isinstance(content, dict | list):
        for key, value in content.items() if isinstance(content, dict) else list(enumerate(content))[:1]:
            yield from _numbers(value, (*path, key))
    elif isinstance(content, int | float) and not isinstance(content, bool):
        yield path


def _put(content: dict[str, Any], path: tuple[str | int, ...], value: Any) -> dict[str, Any]:
    changed: Any = copy.deepcopy(content)
    inner = changed
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    return changed


PROBLEMS = {"fdma": problem_to_dict(random_fleet(0, 2)), "ofdma": problem_to_dict(random_problem(2, 3, 0))}
OPTIONAL = {"total_examples": 1e4, "payload": {"droppable_bits": [1e6, 1e6], "fixed_bits": 1e5}}


@pytest.mark.parametrize("kind", NASTY)
@pytest.mark.parametrize("access", PROBLEMS)
def test_every_number_of_a_problem(access: str, kind: str, command: Command) -> None:
    problem = PROBLEMS[access] | OPTIONAL
    for path in _numbers(problem):
        if path == ("max_dropout_rate",) and kind == "a tiny number":
            continue  # a rate like any other
        status, complaint = command("solve", _put(problem, path, NASTY[kind]))
        named = [str(step) for step in path if isinstance(step, str)][-1]
        assert status == 2 and _one_line(complaint) and named in complaint, (path, status, complaint)


@pytest.mark.parametrize("value", first(2, [1e-50, 1e50, 1e-30, 1e30]))
@pytest.mark.parametrize("access", PROBLEMS)
def test_every_extreme_number_that_is_let_in(access: str, value: float, command: Command) -> None:
    """Solved, hopeless, or refused in a line: products of such numbers stay in the range of float64."""
    problem = PROBLEMS[access] | OPTIONAL
    for path in _numbers(problem):
        status, complaint = command("solve", _put(problem, path, value))
        assert status in (0, 3) or (status == 2 and _one_line(complaint)), (path, status, complaint)


@pytest.mark.parametrize("path", [(), ("payload",), ("bound",), ("devices", 1)])
def test_unknown_and_misspelt_keys(path: tuple[str | int, ...]) -> None:
    misspelt = {(): "deadline", ("payload",): "fixed_bit", ("bound",): "lipshitz", ("devices", 1): "energy_budget"}
    for key in ("colour", misspelt[path]):
        with pytest.raises(ProblemError, match=f"{key} is unknown") as caught:
            problem_from_dict(_put(PROBLEMS["fdma"], (*path, key), 1.0))
        assert ("did you mean" in str(caught.value)) == (key != "colour")


@pytest.mark.parametrize(
    "name", [{}, {"a": 1}, [], ["a"], None, True, 1.5, "a\nb", "a\x00", "\u202e", "\x1b[31m"], ids=repr
)
def test_ids_are_printable_names(name: Any) -> None:
    with pytest.raises(ProblemError, match=r"devices\[1\]\.id must be a name"):
        problem_from_dict(_put(PROBLEMS["fdma"], ("devices", 1, "id"), name))


def test_ids_that_read_alike_are_one(command: Command) -> None:
    problem = _put(_put(PROBLEMS["fdma"], ("devices", 0, "id"), 1), ("devices", 1, "id"), "1")
    assert command("solve", problem) == (2, "error: devices[1].id must be unique, found '1' again\n")


def _solved(access: str) -> dict[str, Any]:
    problem = problem_from_dict(PROBLEMS[access])
    return json.loads(json.dumps(solution_to_dict(solve_fdma(problem) if access == "fdma" else equal(problem))))


@pytest.mark.parametrize("kind", NASTY)
@pytest.mark.parametrize("access", PROBLEMS)
def test_every_field_of_a_solution(access: str, kind: str, command: Command) -> None:
    problem, solution = PROBLEMS[access], _solved(access)
    fields = {(key,) for key in solution} | set(_numbers(solution))
    for path in sorted(fields, key=str):
        for name in ("check", "verify"):
            status, complaint = command(name, problem, _put(solution, path, NASTY[kind]))
            assert status in (0, 1, 2) and (status != 2 or _one_line(complaint)), (name, path, complaint)
            structural = kind in ("a list of lists", "an object", "401 digits") and path != ("certificate",)
            assert not (structural and path[0] != "certificate" and name == "check") or status == 2, (
                name,
                path,
                status,
            )


@pytest.mark.parametrize("key", ["colour", "dropout_rates", "lowerbound"])
def test_unknown_keys_of_a_solution(command: Command, key: str) -> None:
    status, complaint = command("check", PROBLEMS["fdma"], _solved("fdma") | {key: 1})
    assert status == 2 and f"{key} is unknown" in complaint


def test_a_violated_solution_and_an_unusable_file_have_different_codes(command: Command) -> None:
    problem, solution = PROBLEMS["fdma"], _solved("fdma")
    assert command("check", problem, solution)[0] == 0
    assert command("check", problem, _put(solution, ("bandwidth_hz", 0), 1e9))[0] == 1
    assert command("check", problem, _put(solution, ("nodes",), float("nan")))[0] == 2
    assert command("check", problem, _put(solution, ("reasons",), 5))[0] == 2
    assert command("check", problem, problem)[0] == 2


def test_reading_is_linear_in_the_number_of_devices(tmp_path: Path) -> None:
    """30,000 devices in seconds; ten times as many devices take about ten times as long."""
    spent = []
    for count in (3_000, 30_000):
        data = problem_to_dict(sample_problem(count, 0))
        (tmp_path / "p.json").write_text(json.dumps(data))
        began = time.process_time()
        problem = read_problem(tmp_path / "p.json")
        spent.append(time.process_time() - began)
        assert problem.num_devices == count and np.isfinite(problem.channel_gain).all()
    assert spent[1] < 5.0 and spent[1] < 40 * max(spent[0], 0.02)
