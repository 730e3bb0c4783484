"""Solver times and gaps on OFDMA, the table of docs/ofdma.md.

pytest -m benchmark -s tests/optimizer/ofdma/test_benchmark.py
"""

from __future__ import annotations

import time

import pytest

from optimizer.feasibility import check_solution
from optimizer.ofdma.branch_and_bound import solve_bnb_ofdma
from optimizer.ofdma.psca import solve_psca_ofdma
from optimizer.problem import ResourceProblem, Solution
from optimizer.solver_interface import Arguments
from tests.optimizer.ofdma_instances import SHARED, random_problem, shared_problem

CASES = (
    "ofdma_k3_m8",
    "ofdma_k5_m24",
    "ofdma_k10_m64",
    "k4_m12_s0",
    "k8_m12_s1",
    "k20_m128_s0",
    "k20_m128_s1",
    "k50_m256_s0",
    "k50_m256_s1",
    "k50_m256_s2",
)


def problem_of(name: str) -> ResourceProblem:
    """A shared instance by its name, or a random one k<K>_m<M>_s<seed>."""
    if name.startswith("ofdma"):
        if not SHARED.is_dir():
            pytest.skip("shared instances are not at hand")
        return shared_problem(name)
    devices, subcarriers, seed = (int(part[1:]) for part in name.split("_"))
    return random_problem(devices, subcarriers, seed)


def report(name: str, method: str, solution: Solution, cpu_s: float, note: str = "") -> None:
    print(
        f"\n| {name} | {method} | {solution.objective:.8f} | {solution.lower_bound:.8f} | {solution.gap:.1e} | "
        f"{solution.nodes} | {solution.iterations} | {cpu_s:.2f} | {solution.solve_time_s:.2f} | {note}"
    )


@pytest.mark.benchmark
@pytest.mark.parametrize("gap", (1e-4, 1e-7))
@pytest.mark.parametrize("name", CASES)
def test_tree_search(name: str, gap: float) -> None:
    problem = problem_of(name)
    begin = time.process_time()
    solution = solve_bnb_ofdma(problem, Arguments(gap=gap))
    report(name, f"bnb {gap:g}", solution, time.process_time() - begin)
    assert check_solution(problem, solution) == [] and solution.scheduled.all()
    assert solution.gap <= 1e-4


@pytest.mark.benchmark
@pytest.mark.parametrize("name", ("ofdma_k3_m8", "ofdma_k5_m24", "ofdma_k10_m64", "k20_m128_s0", "k20_m128_s1"))
def test_approximation(name: str) -> None:
    problem = problem_of(name)
    begin = time.process_time()
    solution = solve_psca_ofdma(problem)
    cpu_s = time.process_time() - begin
    best = solve_bnb_ofdma(problem).objective
    above = 100 * (solution.objective / best - 1)
    report(name, "psca", solution, cpu_s, f"{above:.4f} % above bnb |")
    assert check_solution(problem, solution) == [] and solution.objective <= 1.005 * best
