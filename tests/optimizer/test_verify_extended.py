"""What goes beyond the plain problem is proven when it is honest, and refused when it is not."""

from __future__ import annotations

import copy
import json
import re
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flint import ctx
from scipy.stats import ncx2

import optimizer.verify
from optimizer.__main__ import main
from optimizer.allocator import METHODS
from optimizer.fdma import exact
from optimizer.fdma.exact import solve_fdma
from optimizer.files import problem_from_dict
from optimizer.multi_round import choices as ways
from optimizer.multi_round import goals
from optimizer.multi_round.geometric import GeometricProgram
from optimizer.objective import GeneralizationBound
from optimizer.problem import Goal, ResourceProblem, Solution
from optimizer.verify import Proof, Refused, Unusable
from optimizer.verify_extended import outage_margin, verify
from tests.optimizer.fleets import extreme_fleet, random_fleet
from tests.optimizer.honest import as_files, solve, wild_cell, wild_fleet
from tests.optimizer.multi_round.test_access import shared
from tests.optimizer.multi_round.test_choices import choosing
from tests.optimizer.ofdma_instances import random_problem
from tests.optimizer.test_cpu_clock import freed
from tests.support.cases import first

QUICK = sorted(name for name in METHODS if name != "scip")
TRADEOFF = Goal("tradeoff", energy_weight_per_j=0.02, time_weight_per_s=0.05)
GOALS = {"bound": None, "time": Goal("time", max_bound=0.6), "tradeoff": TRADEOFF}
Change = Callable[[ResourceProblem], ResourceProblem]
KINDS: dict[str, Change] = {
    "plain": lambda cell: cell,
    "shared": lambda cell: shared(cell),
    "choices": lambda cell: choosing(cell),
    "clocks": lambda cell: freed(cell, 0.3, 1.5),
}
ROWS = [(access, kind, goal) for access in ("fdma", "tdma", "ofdma") for kind in KINDS for goal in GOALS]
OLD = {("fdma", "plain", "bound"), ("ofdma", "plain", "bound")}  # of `optimizer.verify` alone


def _case(access: str, kind: str, goal: str, cell: ResourceProblem | None = None) -> ResourceProblem:
    if cell is None:
        cell = random_problem(2, 6, seed=1) if access == "ofdma" else random_fleet(3, 5)
    cell = cell if access == "ofdma" else replace(cell, access=access)
    return replace(KINDS[kind](cell), goal=GOALS[goal])


def _gap(proof: Proof) -> float:
    return (proof.objective - proof.lower_bound) / max(abs(proof.objective), 1e-12)


def _proven(problem: ResourceProblem, solution: Solution) -> Proof:
    proof = verify(*as_files(problem, solution))
    assert proof.lower_bound >= solution.lower_bound - 1e-9 * abs(solution.lower_bound)
    return proof


QUICKLY = {("tdma", "plain", "bound"), ("fdma", "choices", "bound"), ("fdma", "clocks", "bound")}
QUICKLY |= {("fdma", "plain", "time"), ("tdma", "plain", "tradeoff"), ("fdma", "shared", "bound")}
METHOD_ROWS = [(name, *row) for name in ("exact", *(name for name in QUICK if name != "exact")) for row in ROWS]


@pytest.mark.parametrize(
    ("method", "access", "kind", "goal"),
    first(len(QUICKLY), sorted(METHOD_ROWS, key=lambda row: (row[0] != "exact", row[1:] not in QUICKLY))),
)
def test_honest_answers_of_every_method_are_proven(method: str, access: str, kind: str, goal: str) -> None:
    problem, whole = _case(access, kind, goal), method == "exact" and access != "ofdma"
    solution = solve(problem, method, gap=1e-3, time_limit_s=60.0 if whole else 1.0)
    proof = _proven(problem, solution)
    if whole and solution.scheduled.any() and (kind, goal) != ("choices", "tradeoff"):
        assert _gap(proof) <= 1e-3


def _wild(seed: int) -> tuple[ResourceProblem, str]:
    """Ordinary, scarce and extreme fleets and cells, of every kind and with every goal, and a method."""
    rng = np.random.default_rng([seed, 13])
    access, kind, goal = ROWS[seed % len(ROWS)]
    if access == "ofdma":
        cell = wild_cell(seed)
    else:
        cell = extreme_fleet(seed) if rng.random() < 0.3 else random_fleet(seed, int(rng.integers(1, 8)))
        cell = wild_fleet(seed).subset(np.arange(min(6, wild_fleet(seed).num_devices))) if rng.random() < 0.3 else cell
        cell = replace(cell, access=access)
    problem = KINDS[kind](cell)
    if goal == "time":
        share = float(rng.choice([1.0, 1.0, 0.5]))
        found = solve(problem, "equal", time_limit_s=2.0)
        weight = float(problem.weights[found.scheduled].sum()) or 1.0
        limit = float(rng.uniform(0.9, 1.3)) * max(found.objective / weight, 1e-3)
        return replace(problem, goal=Goal("time", max_bound=limit, min_weight=share)), "exact"
    return replace(problem, goal=GOALS[goal]), str(rng.choice(["exact", "exact", "equal", "psca", "common"]))


def _honest(seeds: Iterable[int]) -> None:
    for seed in seeds:
        problem, method = _wild(seed)
        solution = solve(problem, method, gap=1e-3, time_limit_s=5.0)
        if solution.certificate is not None or not solution.scheduled.any():
            _proven(problem, solution)
        else:
            assert seed in UNPROVEN, (seed, method)


UNPROVEN: set[int] = set()


@pytest.mark.slow
@pytest.mark.parametrize("part", range(12))
def test_hundreds_of_honest_answers(part: int) -> None:
    _honest(range(36 * part, 36 * (part + 1)))


Files = tuple[dict[str, Any], dict[str, Any]]
Forge = Callable[[dict[str, Any]], Any]


@cache
def _files(name: str) -> Files:
    """Honest files of one kind."""
    fleet = random_fleet(0, 5)
    if name in ("outage", "rician"):
        data = as_files(fleet, solve(fleet, "exact"))[0]
        data |= {"schema": "fedlodrop/resource-problem/2", "outage_probability": 0.1}
        data["devices"][2]["rician_k"] = 5.0 * (name == "rician")
        return data, as_files(fleet, solve(problem_from_dict(data), "exact"))[1]
    goal = Goal("time", max_bound=0.6) if "time" in name else TRADEOFF if "tradeoff" in name else None
    problem = {
        "tdma": lambda: replace(fleet, access="tdma"),
        "shared": lambda: shared(fleet),
        "scarce shared": lambda: shared(random_fleet(5, 8, total_bandwidth_hz=1e5)),
        "choices": lambda: choosing(random_fleet(3, 3, total_bandwidth_hz=9e4), (0.0, 0.02, 0.2, 1.0)),
        "clocks": lambda: freed(fleet, 0.3, 1.5),
        "cell time": lambda: random_problem(2, 6, seed=1),
        "cell tradeoff": lambda: random_problem(2, 6, seed=1),
        "part time": lambda: replace(fleet, channel_gain=fleet.channel_gain * np.array([1e-3, 1, 1, 1, 1])),
    }.get(name, lambda: fleet)()
    if name == "part time":
        goal = Goal("time", max_bound=0.6, min_weight=0.5)
    return as_files(replace(problem, goal=goal), solve(replace(problem, goal=goal), "exact", gap=1e-6, time_limit_s=20))


@cache
def _tree() -> Files:
    """Ways to send whose proof needs one split."""
    fleet = choosing(random_fleet(7, 3, total_bandwidth_hz=9e4), (0.0, 0.02, 0.2, 1.0))
    problem, solution = as_files(fleet, solve(fleet, "exact"))
    assert "ways" in solution["certificate"]
    return problem, solution


def _claim(bound: float, objective: float | None = None) -> Forge:
    """Raise the bound by a share of what is left and a little, or lower the objective, and make the gap fit."""

    def forge(solution: dict[str, Any]) -> None:
        value = solution["objective"] = solution["objective"] * (objective or 1.0)
        solution["lower_bound"] += bound * (value - solution["lower_bound"]) + 1e-7 * value * (bound > 0)
        solution["gap"] = (value - solution["lower_bound"]) / value

    return forge


def _sooner(factor: float) -> Forge:
    def forge(solution: dict[str, Any]) -> None:
        solution["deadline_s"] *= factor
        _claim(0.0, factor)(solution)

    return forge


def _leaf(node: dict[str, Any]) -> dict[str, Any]:
    """The first record with prices in a certificate."""
    for key in ("bound", "relaxed", "logarithms"):
        node = node.get(key) or node
    return _leaf(node["parts"][0]) if "parts" in node else node


def _price(factor: float) -> Forge:
    return lambda solution: _leaf(solution["certificate"]).__setitem__(
        "price_per_hz", _leaf(solution["certificate"])["price_per_hz"] * factor
    )


def _set(path: str, value: Any) -> Forge:
    """Put ``value``, or what it makes of the old one, where the path leads."""

    def forge(solution: dict[str, Any]) -> None:
        *way, last = [int(step) if step.isdigit() else step for step in path.split("/")]
        place: Any = solution
        for step in way:
            place = place[step]
        place[last] = value(place[last]) if callable(value) else value

    return forge


def _both(*forges: Forge) -> Forge:
    return lambda solution: [forge(solution) for forge in forges]


COMMON = {
    "bound raised": _claim(1.0),
    "objective lowered": _claim(0.0, 1 - 1e-5),
    "no certificate": _set("certificate", None),
}
FORGERIES: dict[str, dict[str, Forge]] = {
    "tdma": {
        "price halved": _price(0.5),
        "louder": _set("tx_power_w/0", lambda p: p * 1.01),
        "band": _set("bandwidth_hz/1", lambda b: b * 1.01),
        "price of nothing": _price(0.0),
    },
    "shared": {
        "price doubled": _price(2.0),
        "late": _set("dropout_rate/0", lambda g: 0.98 * g),
        "price negative": _price(-1.0),
    },
    "scarce shared": {"price doubled": _price(2.0), "late": _set("dropout_rate/1", lambda g: 0.98 * g)},
    "outage": {
        "price halved": _price(0.5),
        "quiet": _set("tx_power_w/1", lambda p: 0.99 * p),
        "price of nothing": _price(0.0),
    },
    "rician": {
        "price halved": _price(0.5),
        "quiet": _set("tx_power_w/2", lambda p: 0.99 * p),
        "price of nothing": _price(0.0),
    },
    "choices": {
        "price doubled": _price(2.0),
        "another way": _set("choice/0", lambda way: (way + 1) % 4),
        "no such way": _set("choice/0", 4),
        "nobody chooses": _set("choice", None),
    },
    "tree": {
        "a way left out": lambda s: s["certificate"]["ways"][1].pop(),
        "a part dropped": lambda s: s["certificate"]["parts"].pop(),
        "parts in another order": _set("certificate/parts", lambda parts: parts[::-1]),
        "no parts": lambda s: s["certificate"].update(parts=[], ways=[]),
        "prices of nothing": _set("certificate/parts", [{"price_per_hz": 0.0}] * 2),
    },
    "time": {
        "deadline lowered": _sooner(0.999),
        "floor raised": _both(_set("certificate/deadline_s", lambda t: t * 1.001), _claim(1.0)),
        "price doubled": _price(2.0),
        "bound left out": lambda s: s["certificate"].pop("bound"),
        "deadline of the problem": _set("deadline_s", 4.0),
        "beyond the longest": _sooner(2.0),
    },
    "part time": {
        "deadline lowered": _sooner(0.99),
        "floor invented": _both(
            _set("certificate", lambda old: {"deadline_s": 1.2}), _set("lower_bound", 1.2), _claim(0.0)
        ),
        "heaviest": _set("admission", "heaviest"),
    },
    "cell time": {
        "deadline lowered": _sooner(0.9),
        "floor raised": _both(_set("certificate/deadline_s", lambda t: t * 1.1), _claim(1.0)),
        "prices doubled": _set("certificate/bound/price", lambda prices: [2 * price for price in prices]),
    },
    "tradeoff": {
        "deadline lowered": _set("deadline_s", lambda t: t * 0.999),
        "energies lowered": _set("energy_j/0", lambda e: e * 0.9),
        "everything at its least": _set("certificate", {}),
        "a point moved": _set("certificate/logarithms/point/0/0", lambda x: x - 0.1),
        "a price doubled": _set("certificate/logarithms/price/1/2", lambda x: 2 * x),
        "a price of nothing": _set("certificate/logarithms/price/1", [0.0] * 4),
        "a price negative": _set("certificate/logarithms/price/1/0", -1.0),
        "a device dropped": lambda s: s["certificate"]["logarithms"]["point"].pop(),
    },
    "cell tradeoff": {
        "price": _price(3.0),
        "everything at its least": _set("certificate", {}),
        "a later deadline": _set("certificate/logarithms/log_deadline", 9.0),
    },
    "clocks": {
        "clock above its range": _set("cpu_hz/0", 1e10),
        "clock changed": _set("cpu_hz/1", lambda f: 0.9 * f),
        "no clocks": _set("cpu_hz", None),
        "a price doubled": _set("certificate/logarithms/price/1/2", lambda x: 2 * x),
        "a point moved": _set("certificate/logarithms/point/0/4", lambda x: x + 0.3),
        "price halved": _price(0.5),
    },
}
FORGED = [(case, name) for case, forges in FORGERIES.items() for name in (*COMMON, *forges)]
QUICK_FORGED = [pair for pair in FORGED if pair[0] not in ("cell time", "cell tradeoff", "scarce shared")]


@pytest.mark.parametrize(
    ("case", "name"), first(len(QUICK_FORGED), sorted(FORGED, key=lambda pair: pair not in QUICK_FORGED))
)
def test_forgeries_are_refused(case: str, name: str) -> None:
    problem, solution = _tree() if case == "tree" else _files(case)
    verify(problem, solution)
    forged = copy.deepcopy(solution)
    (COMMON | FORGERIES[case])[name](forged)
    assert forged != solution
    with pytest.raises((Refused, Unusable)) as caught:
        verify(problem, forged)
    assert type(caught.value) is Refused or name in UNUSABLE, caught.value


UNUSABLE = {"price negative", "no such way", "a price negative", "a device dropped", "a part dropped"}


def test_an_allocation_is_proven_for_its_own_access_and_outage_only() -> None:
    """The same numbers under another access, a rarer outage, steadier fading or another slowest downlink."""
    (timed, shares), (faded, planned) = _files("tdma"), _files("rician")
    for problem, solution in ((timed | {"access": "fdma"}, shares), (faded | {"outage_probability": 0.05}, planned)):
        with pytest.raises(Refused):
            verify(problem, solution)
    for key, value in (("rician_k", 4.9), ("rician_k", -1.0), ("rician_k", 1e9), ("channel_gain", 0.0)):
        changed = copy.deepcopy(faded)
        changed["devices"][2][key] = value
        with pytest.raises((Refused, Unusable)):
            verify(changed, planned)


def _shaken(record: Any, rng: np.random.Generator, key: str = "") -> Any:
    """The record with every number moved a little or a lot: points by a difference, prices by a factor."""
    if isinstance(record, dict):
        return {name: _shaken(part, rng, name) for name, part in record.items()}
    if isinstance(record, list):
        return [_shaken(part, rng, key) for part in record]
    if not isinstance(record, float):
        return record
    move = rng.normal(0, rng.choice([1e-6, 1e-3, 0.1, 1.0]))
    return record + move if key in ("point", "log_deadline") else abs(record) * float(np.exp(move))


@pytest.mark.parametrize(
    ("case", "draws"),
    first(4, [(case, 5) for case in ("tdma", "choices", "tradeoff", "clocks")] + [(case, 100) for case in FORGERIES]),
)
def test_other_certificates_prove_less_and_never_more(case: str, draws: int) -> None:
    problem, solution = _tree() if case == "tree" else _files(case)
    value, bounds = solution["objective"], []
    for seed in range(draws):
        other = solution | {"certificate": _shaken(solution["certificate"], np.random.default_rng(seed))}
        other |= {"lower_bound": -1e9, "gap": (value + 1e9) / value}
        with suppress(Refused):  # a deadline that is not too short, a bound below all that is claimed
            bounds.append(verify(problem, other).lower_bound)
    assert bounds and max(bounds) <= value * (1 + 1e-12)


MUTANTS: dict[str, tuple[Any, str, Callable[[Any], Any]]] = {
    "tdma": (exact, "price_certificate", lambda f: lambda price, rates: f(2 * price, rates)),
    "shared": (GeneralizationBound, "value", lambda f: lambda *a: 0.999 * f(*a)),
    "choices": (ways, "_Node", lambda f: lambda ways, *told: f(ways, *told, ways=([0], [1]), parts=[f(ways, 9.0)] * 2)),
    "time": (goals._Search, "too_short", lambda f: lambda search, deadline, proof: f(search, 1.01 * deadline, proof)),
    "tradeoff": (GeometricProgram, "lower_bound", lambda f: lambda *a: f(*a) + 1e-5),
    "clocks": (GeometricProgram, "lower_bound", lambda f: lambda *a: f(*a) + 1e-5),
}


@pytest.mark.parametrize("case", MUTANTS)
def test_a_broken_solver_is_refused(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, name, wrap = MUTANTS[case]
    monkeypatch.setattr(owner, name, wrap(getattr(owner, name)))
    with pytest.raises(Refused):
        verify(*_files.__wrapped__(case))


@pytest.mark.parametrize("probability", [1e-9, 1e-3, 0.1, 0.5, 0.999])
def test_the_outage_margin_is_enclosed(probability: float) -> None:
    """In closed form without a steady path; against SciPy, and against its own probability, with one."""
    with ctx.workprec(128):
        assert float(outage_margin(probability, 0.0)) == pytest.approx(-np.log1p(-probability), rel=1e-14)
        for kappa in (1e-3, 0.5, 5.0, 40.0):
            margin = outage_margin(probability, kappa)
            assert margin.rad() <= 1e-12 * margin.mid()
            theirs = ncx2.ppf(probability, 2, 2 * kappa) / (2 * (1 + kappa))
            assert float(margin) == pytest.approx(theirs, rel=1e-9)


@pytest.mark.parametrize("seeds", first(1, [range(1), *(range(k, k + 10) for k in range(1, 41, 10))]))
def test_brute_force_over_ways_to_send_never_falls_below_what_is_proven(seeds: range) -> None:
    for seed in seeds:
        count = 2 if seed == 0 else 3
        cell = choosing(random_fleet(seed, count, total_bandwidth_hz=3e4 * count), (0.0, 0.02, 0.2, 1.0))
        found = solve(cell, "exact")
        ones = [solve_fdma(cell.chosen(np.array(way))) for way in product(range(4), repeat=count)]
        best = min(one.objective for one in ones if (one.scheduled == found.scheduled).all())
        assert _proven(cell, found).lower_bound <= best * (1 + 1e-12)


@pytest.mark.parametrize("seeds", first(1, [range(1), *(range(k, k + 10) for k in range(1, 41, 10))]))
def test_no_deadline_and_no_clocks_fall_below_what_is_proven(seeds: range) -> None:
    """Bisected deadlines, many deadlines and many clocks, with frequencies or in turns."""
    for seed in seeds:
        fleet, rng = replace(random_fleet(seed, 4), access="tdma" if seed % 2 else "fdma"), np.random.default_rng(seed)

        def at(deadline_s: float, fleet: ResourceProblem = fleet) -> float:
            found = solve_fdma(replace(fleet, deadline_s=deadline_s))
            return found.objective if found.scheduled.all() else np.inf

        limit = 1.05 * at(fleet.deadline_s)
        timed = replace(fleet, goal=Goal("time", max_bound=limit))
        proof, low, high = _proven(timed, solve(timed, "exact")), 0.0, fleet.deadline_s
        for _ in range(20):
            middle = 0.5 * (low + high)
            low, high = (low, middle) if at(middle) <= limit else (middle, high)
        assert proof.lower_bound <= high * (1 + 1e-9) and _gap(proof) <= 1e-6
        traded = replace(fleet, goal=Goal("tradeoff", time_weight_per_s=0.03))
        bound = _proven(traded, solve(traded, "exact")).lower_bound
        for deadline in np.geomspace(0.5, 1.0, 8) * fleet.deadline_s:
            assert bound <= at(deadline) + 0.03 * deadline
        free = freed(fleet, 0.3, 1.5)
        bound = _proven(free, solve(free, "exact")).lower_bound
        assert free.min_cpu_hz is not None and free.max_cpu_hz is not None
        for share in rng.random((8, 4)):
            one = solve_fdma(free.at_clock(free.min_cpu_hz + share * (free.max_cpu_hz - free.min_cpu_hz)))
            assert not one.scheduled.all() or bound <= one.objective


def test_the_command_says_what_is_proven_of_a_deadline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for change, words in (
        ({}, "optimum >= "),
        ({"lower_bound": 0.0, "gap": 1.0}, "whether it is the shortest: not proven"),
    ):
        problem, solution = _files("time")
        solution = solution | change | ({"certificate": {"deadline_s": 0.0}} if change else {})
        for part, content in (("p", problem), ("s", solution)):
            (tmp_path / f"{part}.json").write_text(json.dumps(content))
        assert main(["verify", str(tmp_path / "p.json"), str(tmp_path / "s.json")]) == 0
        assert (said := capsys.readouterr().out).startswith("deadline <= ") and words in said


def test_only_what_needs_it_has_the_new_version() -> None:
    assert {name: _files(name)[1]["schema"][-1] for name in ("tdma", "shared", "outage")} == dict.fromkeys(
        ("tdma", "shared", "outage"), "3"
    )
    assert {_files(name)[1]["schema"][-1] for name in ("choices", "time", "tradeoff", "clocks")} == {"4"}
    fleet = replace(random_fleet(0, 3), goal=TRADEOFF)
    assert as_files(fleet, replace(solve(fleet, "exact"), certificate=None))[1]["schema"][-1] == "2"


NASTY = [None, 5, -1, 1e308, 10**400, float("nan"), "x", [], {}, [[]], True]


@pytest.mark.parametrize(
    "case", first(1, ["rician", "clocks", "tdma", "shared", "choices", "time", "tradeoff", "part time"])
)
def test_nothing_in_the_files_ends_in_a_traceback(case: str) -> None:
    """Every field of both files, and of what they hold, replaced by what it should not be."""
    proven, files = 0, copy.deepcopy(_files(case))
    places = [(part, key) for part in files for key in part]
    inner = [value[0] if isinstance(value, list) and value else value for part in files for value in part.values()]
    places += [(value, key) for value in inner if isinstance(value, dict) for key in value]
    for (place, key), value in product(places, NASTY):
        kept, place[key] = place[key], value
        try:
            verify(*files)
            proven += 1
        except (Refused, Unusable) as error:
            assert "\n" not in str(error)
        place[key] = kept
    assert proven  # notes, reasons and the like are not verified


def test_the_verifier_shares_nothing_with_the_solvers() -> None:
    folder = Path(optimizer.verify.__file__).parent
    for name in ("verify", "verify_extended"):
        imported = re.findall(r"^\s*(?:from|import) (\S+)", (folder / f"{name}.py").read_text(), re.MULTILINE)
        foreign = {module for module in imported if module.partition(".")[0] not in sys.stdlib_module_names}
        assert foreign <= {"numpy", "flint", "optimizer.verify"}, name
