"""The free CPU clock behind every method: feasible, never worse than fixed clocks, certified over all clocks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from optimizer.allocator import make_allocator
from optimizer.cpu_clock import granted_clock_hz, roomiest_clock_hz
from optimizer.feasibility import check_solution, evaluate
from optimizer.files import problem_from_dict, problem_to_dict, solution_from_dict, solution_to_dict
from optimizer.multi_round.geometric import GeometricProgram
from optimizer.multi_round.interior_point import minimise
from optimizer.ofdma.model import OfdmaModel
from optimizer.ofdma.waterfilling import set_rates
from optimizer.problem import ProblemError, ResourceProblem, SolverStatus
from tests.optimizer.fleets import random_fleet, shared_instance
from tests.optimizer.ofdma_instances import random_problem


def freed(problem: ResourceProblem, low: float = 0.3, high: float = 1.0) -> ResourceProblem:
    return replace(problem, min_cpu_hz=low * problem.cpu_hz, max_cpu_hz=high * problem.cpu_hz)


@pytest.mark.parametrize("method", ["exact", "bnb", "psca", "equal", "common"])
def test_a_free_clock_never_hurts_under_fdma(method: str) -> None:
    fixed = random_fleet(6, 8)
    free = freed(fixed, 0.3, 1.5)
    before, after = (make_allocator(method).allocate(problem) for problem in (fixed, free))
    assert check_solution(free, after) == [] and after.cpu_hz is not None and before.cpu_hz is None
    weight = [float(fixed.weights[one.scheduled].sum()) for one in (before, after)]
    assert weight[1] >= weight[0]
    if weight[1] == weight[0]:
        assert after.objective < before.objective
    if method in ("exact", "bnb"):
        assert after.status is SolverStatus.OPTIMAL and after.gap <= 1e-4


@pytest.mark.parametrize("seed", range(3))
def test_the_certificate_is_below_every_choice_of_clocks(seed: int) -> None:
    free = freed(random_fleet(seed, 5), 0.3, 1.5)
    best = make_allocator("exact").allocate(free)
    assert free.min_cpu_hz is not None and free.max_cpu_hz is not None
    rng = np.random.default_rng(seed)
    for share in (*rng.random((30, 5)), np.zeros(5), np.ones(5)):
        other = make_allocator("exact").allocate(
            free.at_clock(free.min_cpu_hz + share * (free.max_cpu_hz - free.min_cpu_hz))
        )
        if np.array_equal(other.scheduled, best.scheduled):
            assert best.objective <= other.objective + 1e-9 and best.lower_bound <= other.objective


@pytest.mark.parametrize("access", ["fdma", "tdma"])
@pytest.mark.parametrize("seed", range(3))
def test_no_plan_lies_below_the_certificate(seed: int, access: str) -> None:
    """Where energy and power cap meet at the best clock, the smallest bandwidth has a kink; plans by another method."""
    free = freed(random_fleet(seed, 6, access=access), 0.3, 1.5)
    found = make_allocator("exact").allocate(free)
    part = free.subset(found.scheduled)
    program = GeometricProgram(part, np.zeros(part.num_devices), free_time=False)
    plan = minimise(program, gap=1e-9)
    assert plan is not None
    assert found.lower_bound <= plan.cost * (1 + 1e-12) and found.objective <= plan.cost * (1 + 1e-8)


@pytest.mark.parametrize("method", ["bnb", "psca", "equal"])
def test_a_free_clock_under_ofdma(method: str) -> None:
    fixed = random_problem(4, 12, 3)
    free = freed(fixed, 0.3, 1.3)
    before, after = (make_allocator(method, time_limit_s=4).allocate(problem) for problem in (fixed, free))
    assert check_solution(free, after) == [] and after.lower_bound <= after.objective
    assert after.scheduled.sum() >= before.scheduled.sum()
    if np.array_equal(after.scheduled, before.scheduled):
        assert after.objective < before.objective
        assert after.lower_bound <= before.objective  # fixed clocks are one choice among all


def test_the_roomiest_clock_beats_a_grid() -> None:
    free = freed(random_problem(6, 12, 1), 0.2, 1.5)
    assert free.min_cpu_hz is not None and free.max_cpu_hz is not None
    owned = np.arange(12)[None, :] % 6 == np.arange(6)[:, None]
    gamma = np.full(6, 0.8)
    clock = roomiest_clock_hz(free, gamma, owned)
    reached = set_rates(OfdmaModel(free.at_clock(clock)), np.arange(6), owned)
    for share in np.linspace(0, 1, 40):
        other = free.min_cpu_hz + share * (free.max_cpu_hz - free.min_cpu_hz)
        rates = set_rates(OfdmaModel(free.at_clock(other)), np.arange(6), owned)
        at_80 = np.isfinite(rates) & (rates <= 0.8)  # whoever is served at 0.8 by some clock is served by the best one
        assert (reached[at_80] <= 0.8 + 1e-9).all()


def test_a_nearly_empty_battery_is_served_at_a_slower_clock() -> None:
    problem = shared_instance("fdma_k20_energy_tight")
    solution = make_allocator("exact").allocate(freed(problem, 0.1))
    assert solution.scheduled.all() and make_allocator("exact").allocate(problem).scheduled.sum() == 19


def test_what_was_granted_stays_feasible_at_the_moved_clock() -> None:
    free = freed(random_fleet(2, 6), 0.4, 1.2)
    solution = make_allocator("equal").allocate(free)
    moved = granted_clock_hz(free, solution)
    cost = evaluate(
        free, np.nan_to_num(solution.dropout_rate), solution.tx_power_w, solution.bandwidth_hz, cpu_hz=solution.cpu_hz
    ).cost
    assert (cost.latency_s[solution.scheduled] <= free.deadline_s * (1 + 1e-9)).all()
    assert ((moved >= 0.4 * free.cpu_hz * (1 - 1e-12)) & (moved <= 1.2 * free.cpu_hz * (1 + 1e-12))).all()


def test_files_carry_the_range_and_the_choice() -> None:
    free = freed(random_fleet(0, 3))
    again = problem_from_dict(problem_to_dict(free))
    np.testing.assert_array_equal(again.min_cpu_hz, free.min_cpu_hz)
    solution = make_allocator("exact").allocate(free)
    read = solution_from_dict(solution_to_dict(solution))
    np.testing.assert_array_equal(read.cpu_hz, solution.cpu_hz)
    assert check_solution(free, read) == []
    wrong = replace(solution, cpu_hz=2 * free.cpu_hz)
    assert any(item.constraint == "cpu_hz" for item in check_solution(free, wrong))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"min_cpu_hz": 1e9}, "given together"),
        ({"min_cpu_hz": 5e9, "max_cpu_hz": 6e9}, r"cpu_hz must lie in"),
        ({"min_cpu_hz": 0.0, "max_cpu_hz": 6e9}, r"min_cpu_hz must be finite and > 0"),
    ],
)
def test_unusable_ranges(changes: dict[str, float], words: str) -> None:
    with pytest.raises(ProblemError, match=words):
        replace(random_fleet(0, 3), **changes)


def test_nobody_fits() -> None:
    assert (
        make_allocator("exact").allocate(freed(random_fleet(0, 3, deadline_s=0.01))).status is SolverStatus.INFEASIBLE
    )
