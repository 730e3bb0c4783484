"""Ways to send chosen per device: against brute force, for every method and access, in files, and switched off."""

import functools
import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optimizer.__main__ import main
from optimizer.allocator import METHODS, RIGID_RULES, AllocationError, make_allocator
from optimizer.fdma.exact import solve_fdma
from optimizer.feasibility import check_solution
from optimizer.files import problem_from_dict, problem_to_dict, read_problem, read_solution, write_problem
from optimizer.multi_round.choices import search_choices
from optimizer.problem import Goal, ProblemError, ResourceProblem, Solution
from tests.optimizer.fleets import Rippled, contract_cases, extreme_fleet, more_of_each_resource, random_fleet
from tests.optimizer.ofdma_instances import random_problem
from tests.support.cases import first

QUICK = sorted(name for name in METHODS if name != "scip")
NOISE = (0.0, 1e-7, 1e-4, 0.03)  # of fp32, fp16, int8 and int4, about


def choosing(fleet: ResourceProblem, noise: tuple[float, ...] = NOISE) -> ResourceProblem:
    """The fleet with four number types: a half, a quarter and an eighth of the bits, and scales beside the codes."""
    ways = {
        name: {
            "noise": q,
            "fixed_bits": fleet.fixed_bits * share + scales,
            "droppable_bits": fleet.droppable_bits * share,
        }
        for name, q, share, scales in zip(
            ("fp32", "fp16", "int8", "int4"), noise, (1, 0.5, 0.25, 0.125), (0, 0, 5e4, 5e4), strict=True
        )
    }
    return replace(fleet, choices=ways)


def _ranks(fleet: ResourceProblem) -> ResourceProblem:
    """Half and a quarter of the rank components, drawn at random: payload and work shrink, the variance grows."""
    ways = {}
    for share in (1.0, 0.5, 0.25):
        bits, cycles = share * fleet.droppable_bits, share * fleet.adapter_cycles
        parts = {"droppable_bits": bits, "downlink_droppable_bits": bits, "adapter_cycles": cycles}
        ways[f"rank {share:g}"] = parts | {"noise": 1 / share - 1}
    return replace(fleet, choices=ways)


def _solve(name: str, problem: ResourceProblem, **options: Any) -> Solution:
    return make_allocator(name, **{"time_limit_s": 60.0} | options).allocate(problem, rng=np.random.default_rng(0))


@pytest.mark.parametrize("kind", ["bits", "noisy bits", "ranks"])
@pytest.mark.parametrize(("seed", "count"), first(3, [(0, 1), (1, 2), (2, 3), *((k, 4) for k in range(3, 9))]))
def test_brute_force_over_choices_is_never_crossed(seed: int, count: int, kind: str) -> None:
    fleet = random_fleet(seed, count, total_bandwidth_hz=3e4 * count)
    fleet = _ranks(fleet) if kind == "ranks" else choosing(fleet, NOISE if kind == "bits" else (0.0, 0.02, 0.2, 1.0))
    found, best = _solve("exact", fleet, gap=1e-6), np.inf
    assert check_solution(fleet, found) == [] and found.choice is not None
    for way in product(range(len(fleet.choices)), repeat=count):
        one = solve_fdma(fleet.chosen(np.array(way)))
        if (one.scheduled == found.scheduled).all():
            best = min(best, one.objective)
    assert found.lower_bound <= best * (1 + 1e-12)
    assert found.objective <= best * (1 + 1e-6) and found.gap <= 1e-6


@pytest.mark.parametrize("seed", range(3))
def test_twenty_devices_are_certified_to_a_thousandth(seed: int) -> None:
    fleet = choosing(random_fleet(seed, 20, total_bandwidth_hz=6e5))
    found = _solve("exact", fleet, gap=1e-3, time_limit_s=5.0)
    assert check_solution(fleet, found) == [] and found.gap <= 1e-3
    assert found.choice is not None and len(set(found.choice[found.scheduled].tolist())) > 1


@pytest.mark.parametrize("seed", range(6))
def test_extreme_fleets_get_an_answer_and_choices_never_hurt(seed: int) -> None:
    fleet = extreme_fleet(seed)
    plain, found = _solve("exact", fleet), _solve("exact", choosing(fleet))
    assert check_solution(choosing(fleet), found) == [] and found.lower_bound <= found.objective
    weights = [float(fleet.weights[one.scheduled].sum()) for one in (plain, found)]
    assert weights[1] >= weights[0] * (1 - 1e-12)
    if (plain.scheduled == found.scheduled).all():
        assert found.objective <= plain.objective * (1 + 1e-4)


@functools.cache
def _solved(name: str, access: str, objective: str) -> tuple[ResourceProblem, Solution]:
    fleet = random_problem(2, 6, seed=1) if access == "ofdma" else random_fleet(3, 4, access=access)
    goals = {"time": Goal("time", max_bound=0.5), "tradeoff": Goal("tradeoff", time_weight_per_s=0.05)}
    problem = replace(choosing(fleet), goal=goals.get(objective))
    limit = 2.0 if access == "ofdma" or objective != "bound" else 30.0
    return problem, _solve(name, problem, gap=1e-3, time_limit_s=limit)


@pytest.mark.parametrize(("access", "objective"), contract_cases("fdma", "tdma", "ofdma"))
@pytest.mark.parametrize("name", QUICK)
def test_contract_of_every_method(name: str, access: str, objective: str) -> None:
    if access not in METHODS[name]:
        pytest.skip("the method does not know this access")
    (problem, found), (_, exact) = (_solved(method, access, objective) for method in (name, "exact"))
    assert check_solution(problem, found) == [] and found.lower_bound <= found.objective
    if name not in RIGID_RULES and objective != "time":
        assert found.scheduled.any()
    if found.scheduled.any() and (found.scheduled == exact.scheduled).all():
        assert found.objective >= exact.lower_bound * (1 - 1e-12)
        assert exact.objective >= found.lower_bound * (1 - 1e-12)


def test_more_of_any_resource_never_hurts() -> None:
    fleet = choosing(random_fleet(0, 6, total_bandwidth_hz=2e5))
    base = _solve("exact", fleet, gap=1e-5)
    for field, value in more_of_each_resource(fleet).items():
        better = _solve("exact", replace(fleet, **{field: value}), gap=1e-5)
        assert better.scheduled.all() and better.objective <= base.objective * (1 + 2e-5), field
    halved = {name: {**way, "noise": way["noise"] / 2} for name, way in fleet.choices.items()}
    quieter = replace(fleet, choices=halved)
    assert _solve("exact", quieter, gap=1e-5).objective <= base.objective * (1 + 2e-5)


def test_a_tree_that_is_cut_short_still_holds_the_optimum() -> None:
    fleet = choosing(random_fleet(1, 3, total_bandwidth_hz=9e4))
    loose, tight = (search_choices(fleet, gap)[0] for gap in (0.5, 1e-6))
    assert loose.lower_bound <= tight.value * (1 + 1e-12) and tight.value <= loose.value and tight.nodes > 1


def test_one_way_without_noise_is_the_plain_problem() -> None:
    fleet = random_fleet(2, 5)
    one = _solve("exact", replace(fleet, choices={"fp32": {"noise": 0.0}}))
    plain = _solve("exact", fleet)
    np.testing.assert_allclose(one.dropout_rate, plain.dropout_rate, rtol=1e-9)
    assert one.objective == pytest.approx(plain.objective, rel=1e-12)


def test_files_hold_the_ways_and_what_was_chosen(tmp_path: Path) -> None:
    fleet = choosing(random_fleet(1, 4, total_bandwidth_hz=6e4))
    problem, out = str(tmp_path / "p.json"), str(tmp_path / "s.json")
    write_problem(problem, fleet)
    assert problem_to_dict(read_problem(problem)) == problem_to_dict(fleet)
    assert json.loads(Path(problem).read_text())["schema"] == "fedlodrop/resource-problem/2"
    assert main(["solve", problem, "--out", out, "--gap", "1e-3"]) == 0 and main(["check", problem, out]) == 0
    assert main(["verify", problem, out]) == 0
    found = read_solution(out)
    assert found.choice is not None and (found.choice >= 0).all()
    for lie in (
        replace(found, choice=np.full(4, 4)),
        replace(found, choice=None),
        replace(found, choice=0 * found.choice),
    ):
        assert check_solution(fleet, lie)
    assert check_solution(replace(fleet, choices={}), found)


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        ([], "payload must be a list of at least one object"),
        ([{"name": "fp32"}], r"payload\[0\].noise is missing"),
        (
            [{"name": "a", "noise": -1.0, "droppable_bits": 1.0, "fixed_bits": 1.0}],
            r"payload\[0\].noise must be finite",
        ),
        ([{"name": 3, "noise": 0.0, "droppable_bits": 1.0, "fixed_bits": 1.0}], r"payload\[0\].name must be text"),
        (
            [{"name": "a", "noise": 0.0, "droppable_bits": 1.0, "fixed_bits": 1.0}] * 2,
            "name must be text that names no other",
        ),
        ([{"name": "a", "noise": 0.0, "droppable_bits": 1.0, "fixed_bits": 1.0, "x": 1}], "x is unknown"),
    ],
)
def test_bad_files_are_refused_in_one_line(payload: Any, message: str) -> None:
    data = problem_to_dict(random_fleet(1, 2)) | {"schema": "fedlodrop/resource-problem/2", "payload": payload}
    with pytest.raises(ProblemError, match=message):
        problem_from_dict(data)


def test_what_choices_cannot_be_combined_with_is_said() -> None:
    fleet = random_fleet(0, 2)
    with pytest.raises(ProblemError, match="need fixed clocks"):
        choosing(replace(fleet, min_cpu_hz=fleet.cpu_hz, max_cpu_hz=fleet.cpu_hz))
    with pytest.raises(AllocationError, match="know the generalization bound only"):
        make_allocator("exact", objective=Rippled()).allocate(choosing(fleet))


# Objectives of `random_fleet(seed, 6)` as they were before there was anything to choose.
BEFORE = {0: "0x1.a4fb6014fdad8p-2", 1: "0x1.843b250b29e33p-2", 2: "0x1.c37740593aa52p-2"}


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize("seed", BEFORE)
def test_everything_off_changes_no_bit(name: str, seed: int) -> None:
    """Defaults said aloud are the problem itself; the exact objective is what it was before there were options."""
    fleet = random_fleet(seed, 6)
    off = replace(fleet, choices={}, shared_downlink=False, noise=None, goal=None)
    plain, again = _solve(name, fleet), _solve(name, off)
    for field in ("scheduled", "dropout_rate", "bandwidth_hz", "tx_power_w", "latency_s", "energy_j"):
        np.testing.assert_array_equal(getattr(plain, field), getattr(again, field))
    if name == "exact":
        assert plain.objective == pytest.approx(float.fromhex(BEFORE[seed]), rel=1e-15)
