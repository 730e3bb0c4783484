"""Honest answers are proven, and proven tightly; the command says so."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from flint import arb, ctx

from optimizer.__main__ import main
from optimizer.fdma.exact import solve_fdma
from optimizer.files import read_solution, write_problem, write_solution
from optimizer.instances import sample_problem
from optimizer.ofdma.branch_and_bound import solve_bnb_ofdma
from optimizer.ofdma.model import OfdmaModel
from optimizer.ofdma.waterfilling import set_rates
from optimizer.problem import ResourceProblem, Solution
from optimizer.solver_interface import Arguments, Limits
from optimizer.verify import Claim, Proof, Refused, Unusable, verify
from tests.optimizer.fleets import Rippled, random_fleet, shared_instance
from tests.optimizer.honest import FDMA_METHODS, OFDMA_METHODS, as_files, solve, wild_cell, wild_fleet
from tests.optimizer.ofdma.test_bounds import brute_force, wild_problem
from tests.optimizer.ofdma_instances import random_problem
from tests.support.cases import first


def _gap(proof: Proof) -> float:
    return (proof.objective - proof.lower_bound) / max(abs(proof.objective), 1e-12)


def _proven(problem: ResourceProblem, solution: Solution) -> float:
    proof = verify(*as_files(problem, solution))
    assert proof.lower_bound >= solution.lower_bound - 1e-9 * abs(solution.lower_bound)
    return _gap(proof)


@pytest.mark.parametrize(
    "name", ["fdma_k3", "fdma_k10", "fdma_k100", "fdma_k1000", "fdma_k20_energy_tight", "fdma_k10_two_deep_fades"]
)
def test_the_exact_method_is_proven_to_rounding(name: str) -> None:
    problem = shared_instance(name)
    assert _proven(problem, solve_fdma(problem)) <= 1e-12


@pytest.mark.parametrize(
    ("name", "gap"), [("ofdma_k3_m8", 1e-9), ("ofdma_k5_m24", 1e-4), ("ofdma_k10_m64", 1e-4), ("ofdma_k10_m64", 1e-7)]
)
def test_the_set_bound_is_proven(name: str, gap: float) -> None:
    problem = shared_instance(name)
    assert _proven(problem, solve(problem, "bnb", gap=gap, time_limit_s=60)) <= gap


def _honest_fdma(seeds: Iterable[int]) -> None:
    for seed in seeds:
        fleet = wild_fleet(seed)
        for method in FDMA_METHODS if seed % 5 == 0 else ("exact",):
            solution = solve(fleet, method)
            gap = _proven(fleet, solution)
            assert not (method == "exact" and solution.scheduled.any()) or gap <= 1e-9, seed


def _honest_ofdma(seeds: range) -> None:
    for seed in seeds:
        cell = wild_cell(seed)
        for method in OFDMA_METHODS if seed % 5 == 0 else ("bnb",):
            _proven(cell, solve(cell, method, gap=1e-7 if seed % 2 else 1e-4))


def test_honest_answers_of_every_method() -> None:
    _honest_fdma([*range(60), 3383])  # 3383: energy and P tau cross where no time is left
    _honest_ofdma(range(6))


@pytest.mark.parametrize(("rounds", "list_length"), first(1, [(2, 300), (0, 400_000), (1, 400_000)]))
def test_a_weak_bound_over_channels_that_are_close_is_proven(rounds: int, list_length: int) -> None:
    """Channels of neighbouring subcarriers are alike, so many sets cost nearly the same: one by one is too long."""
    cell = sample_problem(20, 0, access="ofdma", num_subcarriers=100)
    _proven(cell, solve_bnb_ofdma(cell, Arguments(limits=Limits(max_nodes=1, rounds=rounds, list_length=list_length))))


@pytest.mark.slow
@pytest.mark.parametrize("part", range(100))
def test_ten_thousand_honest_answers(part: int) -> None:
    _honest_fdma(range(90 * part, 90 * (part + 1)))
    _honest_ofdma(range(10 * part, 10 * (part + 1)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("problem", "gap", "most_s"),
    [
        (lambda: random_fleet(0, 10_000), 1e-9, 3.0),
        (lambda: random_problem(50, 256, 0), 1e-3, 60.0),
        (lambda: sample_problem(50, 0, access="ofdma", num_subcarriers=256), 1e-3, 60.0),
    ],
    ids=["fdma_k10000", "ofdma_k50_m256", "ofdma_k50_m256_near_channels"],
)
def test_large_answers_are_proven_quickly_from_small_files(
    problem: Callable[[], ResourceProblem], gap: float, most_s: float, tmp_path: Path
) -> None:
    """CPU time of the verification alone; sizes: at most 1 MB for a certificate under FDMA, 20 MB for a whole file."""
    cell = problem()
    solution = solve(cell, "exact", gap=gap, time_limit_s=120.0)
    write_solution(tmp_path / "solution.json", solution)
    size, own = (tmp_path / "solution.json").stat().st_size, len(json.dumps(solution.certificate))
    files = as_files(cell, solution)
    began = time.process_time()
    proof = verify(*files)
    spent_s = time.process_time() - began
    print(f"gap {_gap(proof):.2g}, verified in {spent_s:.2f} CPU s, certificate {own} bytes, file {size} bytes")
    assert _gap(proof) <= gap and spent_s <= most_s and own < 1e6 and size < 20e6


@pytest.mark.slow
@pytest.mark.parametrize("part", range(5))
def test_no_proven_bound_crosses_the_optimum_over_all_ownerships(part: int) -> None:
    """500 random cells of up to 4 devices and 8 subcarriers."""
    for seed in range(100 * part, 100 * (part + 1)):
        cell = wild_problem(seed)
        solution = solve(cell, "bnb", gap=1e-6)
        if solution.scheduled.any():
            best = brute_force(OfdmaModel(cell).subset(solution.scheduled))
            proof = verify(*as_files(cell, solution))
            assert proof.lower_bound <= best * (1 + 1e-12) <= proof.objective * (1 + 2e-12), seed


@pytest.mark.parametrize("rates", [None, True])
@pytest.mark.parametrize("seeds", first(1, [[3], [0, 1, 2, 3]]))
def test_a_search_tree_is_proven(seeds: list[int], rates: bool | None) -> None:
    """Lists cut short make the bound weak and the tree large."""
    seen = 0
    for seed in seeds:
        cell = random_problem(3, 7, seed)
        limits = Limits(max_nodes=12 if len(seeds) == 1 else 60, rounds=2, list_length=15, keep=5, split_rates=rates)
        solution = solve_bnb_ofdma(cell, Arguments(gap=1e-6, limits=limits))
        seen += "parts" in (solution.certificate or {})
        assert solution.certificate is not None
        _proven(cell, solution)
        assert solution.lower_bound <= solve_bnb_ofdma(cell, Arguments(gap=1e-9)).objective * (1 + 1e-9)
    assert seen >= 1


def test_weights_of_a_part_of_a_fleet_travel() -> None:
    part = random_fleet(0, 8).subset(np.arange(3))
    assert _proven(part, solve_fdma(part)) <= 1e-12


def test_the_command_proves_refuses_and_says_what_is_unusable(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet = random_fleet(0, 4)
    problem, solution = tmp_path / "problem.json", tmp_path / "solution.json"
    write_problem(problem, fleet)
    write_solution(solution, solve_fdma(fleet))
    arguments = ["verify", str(problem), str(solution)]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "29 of 29 constraints hold" in said and said.endswith("proven\n")
    data = json.loads(solution.read_text())
    solution.write_text(json.dumps(data | {"lower_bound": data["lower_bound"] * 1.0001}))
    assert main(arguments) == 1
    assert capsys.readouterr().err.startswith("refused: the lower bound is said to be")
    for text in (
        "{",
        "[]",
        '{"schema": 1, "schema": 2}',
        json.dumps(data | {"scheduled": 5}),
        "[" * 100_000,
        "1" * 5000,
    ):
        solution.write_text(text)
        assert main(arguments) == 2 and capsys.readouterr().err.startswith("error: ")
    assert main(["verify", str(problem), str(tmp_path / "nowhere.json")]) == 2


def test_a_file_has_the_earliest_version_that_can_say_it_and_all_are_read(tmp_path: Path) -> None:
    """Version 3 tells a certificate's rates by `shift`, which a reader of version 2 does not know."""
    fleet, cell = random_fleet(0, 4), random_problem(3, 8, 1)
    problem, data = as_files(fleet, solve_fdma(fleet))
    assert data["schema"] == "fedlodrop/solution/3" and "shift" in data["certificate"]
    assert as_files(cell, solve(cell, "bnb"))[1]["schema"] == "fedlodrop/solution/2"
    rates = {"price_per_hz": data["certificate"]["price_per_hz"], "dropout_rate": data["dropout_rate"]}
    second = data | {"schema": "fedlodrop/solution/2", "certificate": rates}
    first = {key: value for key, value in data.items() if key not in ("certificate", "admission")}
    for old in (second, first | {"schema": "fedlodrop/solution/1"}):
        (tmp_path / "old.json").write_text(json.dumps(old))
        assert read_solution(tmp_path / "old.json").certificate == old.get("certificate")
    assert _gap(verify(problem, second)) <= 1e-9
    with pytest.raises(Refused, match="no certificate"):
        verify(problem, first | {"schema": "fedlodrop/solution/1"})
    with pytest.raises(Unusable):
        verify(problem, data | {"schema": "fedlodrop/solution/5"})


def test_an_unknown_objective_has_no_certificate() -> None:
    assert solve(random_fleet(0, 4), "bnb", objective=Rippled()).certificate is None


@pytest.mark.parametrize("seed", range(6))
def test_sets_that_are_said_to_carry_too_little_do(seed: int) -> None:
    """Many at once in floats, each alone in balls, and by the solver: near the rate at which a set just serves."""
    cell = random_problem(1, 10, seed)
    rng, model = np.random.default_rng(seed), OfdmaModel(cell)
    with ctx.workprec(128):
        device = Claim(*as_files(cell, solve(cell, "equal"))).fleet[0]
        for size in (1, 4, 9):
            sets = np.array([rng.choice(10, size, replace=False) for _ in range(12)])
            serves = set_rates(model, np.zeros(12, int), sets)
            for rate in serves[np.isfinite(serves)][:4]:
                for factor in (0.9, 1 - 1e-9, 1 - 1e-13, 1.0, 1 + 1e-9, 1.1):
                    at = arb(float(min(rate * factor, device.top)))
                    together = device.waterfilling(sets, at)[0]
                    alone = np.array([device.waterfilling(one[None], at)[0][0] for one in sets])
                    assert np.all(alone | ~together)
                    assert np.all(together | (serves <= float(at) * (1 + 1e-11)) | (serves <= model.rate_low[0]))
                    assert not np.any(alone & (serves <= float(at) * (1 - 1e-11)))
