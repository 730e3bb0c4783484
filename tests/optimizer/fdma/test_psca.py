from itertools import pairwise

import numpy as np
import pytest

from optimizer.allocator import make_allocator
from optimizer.fdma.exact import solve_fdma
from optimizer.fdma.psca import psca, solve_psca_fdma
from optimizer.feasibility import check_solution
from optimizer.objective import GeneralizationBound
from optimizer.problem import SolverStatus
from optimizer.solver_interface import Arguments
from optimizer.timing import time_limit
from tests.optimizer.fleets import extreme_fleet, random_fleet, shared_instance


@pytest.mark.parametrize("name", ["fdma_k3", "fdma_k10", "fdma_k100", "fdma_k10_two_deep_fades"])
def test_reaches_the_exact_value_with_its_own_certificate(name: str) -> None:
    problem = shared_instance(name)
    solution, exact = solve_psca_fdma(problem), solve_fdma(problem)
    assert check_solution(problem, solution) == []
    assert solution.objective == pytest.approx(exact.objective, rel=1e-6)
    assert solution.status is SolverStatus.OPTIMAL and solution.lower_bound <= exact.objective * (1 + 1e-12)


@pytest.mark.parametrize("seed", range(12))
def test_any_start_works_and_the_merit_never_rises(seed: int) -> None:
    fleet, rng = random_fleet(seed % 3, 6), np.random.default_rng(seed)
    gamma = [np.zeros(6), np.full(6, 0.9), rng.uniform(0, 0.9, 6)][seed % 3]
    rates, _, merit = psca(fleet, GeneralizationBound(), gamma)
    assert GeneralizationBound().value(fleet, rates).sum() == pytest.approx(solve_fdma(fleet).objective, rel=1e-4)
    assert all(after <= before for before, after in pairwise(merit))


@pytest.mark.parametrize("seed", range(20))
def test_extreme_fleets(seed: int) -> None:
    fleet = extreme_fleet(seed)
    solution, exact = solve_psca_fdma(fleet), solve_fdma(fleet)
    assert check_solution(fleet, solution) == []
    np.testing.assert_array_equal(solution.scheduled, exact.scheduled)
    assert solution.objective == pytest.approx(exact.objective, rel=1e-4)


def test_a_warm_start_saves_iterations_and_survives_a_new_fleet() -> None:
    problem = random_fleet(1, 10)
    cold = solve_psca_fdma(problem)
    warm = solve_psca_fdma(problem, Arguments(warm_start=cold))
    assert warm.iterations < cold.iterations and warm.objective == pytest.approx(cold.objective, rel=1e-6)
    other = random_fleet(2, 7)
    assert check_solution(other, solve_psca_fdma(other, Arguments(warm_start=cold))) == []


def test_two_runs_are_bit_identical() -> None:
    first, second = (solve_psca_fdma(random_fleet(3, 8)) for _ in range(2))
    np.testing.assert_array_equal(first.dropout_rate, second.dropout_rate)


def test_a_time_limit_still_gives_a_feasible_answer() -> None:
    fleet = random_fleet(4, 8)
    with time_limit(1e-9):
        solution = solve_psca_fdma(fleet)
    assert solution.scheduled.all() and check_solution(fleet, solution) == []


WIDE = [
    ((1_000_000, 1, 1), (1e-11, 1e-11, 1e-11), 3e4),
    ((1, 10, 1e5, 1e7), (1e-6, 1e-9, 1e-12, 1e-11), 1e5),
    ((100, 200), (1e-2, 1e-13), 1e6),
    ((5, 5e5), (3e-13, 1e-9), 3e5),
]


@pytest.mark.parametrize(("examples", "gains", "total_hz"), WIDE)
def test_scales_far_apart_do_not_lead_astray(
    examples: tuple[float, ...], gains: tuple[float, ...], total_hz: float
) -> None:
    fleet = random_fleet(
        0,
        len(gains),
        num_examples=np.array(examples, dtype=float),
        channel_gain=np.array(gains),
        total_bandwidth_hz=total_hz,
        cpu_hz=1e9,
        fixed_cycles=1e9,
        adapter_cycles=0.0,
        energy_budget_j=5.0,
        droppable_bits=1e6,
        fixed_bits=1e5,
    )
    solution, exact = solve_psca_fdma(fleet), solve_fdma(fleet)
    assert check_solution(fleet, solution) == [] and (solution.scheduled == exact.scheduled).all()
    assert solution.objective <= exact.objective * (1 + 1e-3)


@pytest.mark.benchmark
@pytest.mark.parametrize(("num_devices", "limit_s"), [(10, 0.3), (100, 2.0)])
def test_speed(num_devices: int, limit_s: float) -> None:
    fleet = random_fleet(0, num_devices)
    solver = make_allocator("psca")
    solver.allocate(fleet)
    assert solver.allocate(fleet).solve_time_s <= limit_s
