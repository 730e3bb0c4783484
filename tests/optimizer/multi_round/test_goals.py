"""Shortest deadline and weighted trade-off: every method, both accesses, against oracles of other code."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from optimizer.allocator import METHODS, RIGID_RULES, AllocationError, make_allocator
from optimizer.certificate import NOT_PROVEN
from optimizer.fdma.exact import solve_fdma
from optimizer.feasibility import check_solution
from optimizer.problem import Goal, ProblemError, ResourceProblem, Solution, SolverStatus
from tests.optimizer.fleets import Rippled, extreme_fleet, more_of_each_resource, random_fleet
from tests.optimizer.ofdma_instances import random_problem
from tests.support.cases import first

QUICK = sorted(name for name in METHODS if name != "scip")
OTHERS = [("ofdma", name) for name in QUICK if name != "exact"]
TRADEOFF = Goal("tradeoff", energy_weight_per_j=0.02, time_weight_per_s=0.05)


def _solve(name: str, problem: ResourceProblem, **options: Any) -> Solution:
    given = {"time_limit_s": 60.0} | options
    return make_allocator(name, **given).allocate(problem, rng=np.random.default_rng(0))


def _time_goal(fleet: ResourceProblem, slack: float = 1.1, method: str = "equal") -> Goal:
    """A bound that the method reaches within the deadline and a part of it."""
    found = _solve(method, fleet)
    return Goal("time", max_bound=slack * found.objective / float(fleet.weights[found.scheduled].sum()))


@pytest.mark.parametrize("objective", ["time", "tradeoff"])
@pytest.mark.parametrize(
    ("access", "name"), first(len(QUICK) + 1, [*(("fdma", name) for name in QUICK), ("ofdma", "exact"), *OTHERS])
)
def test_contract_of_every_method(name: str, access: str, objective: str) -> None:
    if access not in METHODS[name]:
        pytest.skip("the method does not know this access")
    fleet = random_fleet(3, 5) if access == "fdma" else random_problem(2, 6, seed=1)
    goal = TRADEOFF if objective == "tradeoff" else _time_goal(fleet)
    problem = replace(fleet, goal=goal)
    limit = 1.0 if access == "ofdma" or name == "psca" else 60.0
    found, again, exact = (_solve(method, problem, gap=1e-3, time_limit_s=limit) for method in (name, name, "exact"))
    assert check_solution(problem, found) == [] and found.method == name
    assert found.lower_bound <= found.objective
    if access == "fdma" and name != "psca":  # which the clock stops
        np.testing.assert_array_equal(found.dropout_rate, again.dropout_rate)
    if objective == "tradeoff" and name not in RIGID_RULES:
        assert found.scheduled.any() and found.deadline_s is not None
    if found.scheduled.any() and (found.scheduled == exact.scheduled).all():
        assert found.objective >= exact.lower_bound * (1 - 1e-12)
        assert exact.objective >= found.lower_bound * (1 - 1e-12)


@pytest.mark.parametrize("seed", first(2, range(8)))
def test_shortest_deadline_is_that_of_plain_bisection(seed: int) -> None:
    fleet = random_fleet(seed, 6)
    goal = _time_goal(fleet, 1.02, "exact")
    found = _solve("exact", replace(fleet, goal=goal))
    low, high = 0.0, fleet.deadline_s
    for _ in range(60):
        middle = 0.5 * (low + high)
        at = solve_fdma(replace(fleet, deadline_s=middle))
        fits = bool(at.scheduled.all()) and at.objective <= float(goal.max_bound or 0)
        low, high = (low, middle) if fits else (middle, high)
    assert found.status is SolverStatus.OPTIMAL and found.objective == pytest.approx(high, rel=1e-6)
    assert found.lower_bound <= high * (1 + 1e-12) and found.gap <= 1e-6


@pytest.mark.parametrize("seed", first(1, range(4)))
def test_a_part_of_the_weight_is_served_about_as_soon_as_the_best_part_could_be(seed: int) -> None:
    """Brute force over all sets of four devices that weigh enough."""
    fleet = random_fleet(seed, 4)
    bound = 0.9 * _solve("exact", fleet).objective
    whole, part = (
        _solve("exact", replace(fleet, goal=Goal("time", max_bound=bound, min_weight=w))) for w in (1.0, 0.5)
    )
    best = np.inf
    for bits in range(1, 16):
        keep = np.array([bool(bits & (1 << k)) for k in range(4)])
        if fleet.weights[keep].sum() >= 0.5:
            weight = float(fleet.weights[keep].sum())
            low, high = 0.0, fleet.deadline_s
            for _ in range(30):
                middle = 0.5 * (low + high)
                at = solve_fdma(replace(fleet, deadline_s=middle).subset(keep))
                fits = bool(at.scheduled.all()) and at.objective <= bound * weight
                low, high = (low, middle) if fits else (middle, high)
            best = min(best, high)
    assert part.lower_bound <= best * (1 + 1e-6) and best * (1 - 1e-6) <= part.objective <= 1.3 * best
    assert whole.status is SolverStatus.INFEASIBLE or part.objective <= whole.objective


@pytest.mark.parametrize("seed", first(2, range(4)))
def test_the_trade_off_is_the_best_of_many_deadlines(seed: int) -> None:
    """Without a price on energy the cost at a deadline is what `solve_fdma` finds there."""
    fleet = random_fleet(seed, 6)
    weight = 10 ** np.random.default_rng(seed).uniform(-3, -0.5)
    found = _solve("exact", replace(fleet, goal=Goal("tradeoff", time_weight_per_s=weight)), gap=1e-7)
    costs = []
    for deadline in np.geomspace(0.5, 1.0, 60) * fleet.deadline_s:
        at = solve_fdma(replace(fleet, deadline_s=deadline))
        costs.append(at.objective + weight * deadline if at.scheduled.all() else np.inf)
    assert found.status is SolverStatus.OPTIMAL
    assert found.lower_bound <= min(costs) * (1 + 1e-12) and found.objective <= min(costs) * (1 + 1e-6)


@pytest.mark.parametrize("objective", ["time", "tradeoff"])
def test_more_of_any_resource_never_hurts(objective: str) -> None:
    fleet = random_fleet(0, 6)
    goal = TRADEOFF if objective == "tradeoff" else _time_goal(fleet, 1.02, "exact")
    fleet = replace(fleet, goal=goal, circuit_energy_j=np.full(6, 0.02))
    base = _solve("exact", fleet)
    for field, value in (more_of_each_resource(fleet) | {"circuit_energy_j": np.zeros(6)}).items():
        better = _solve("exact", replace(fleet, **{field: value}))
        assert better.scheduled.all() and better.objective <= base.objective * (1 + 2e-6), field


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("objective", ["time", "tradeoff"])
def test_extreme_fleets_get_an_answer(objective: str, seed: int) -> None:
    fleet = extreme_fleet(seed)
    goal = TRADEOFF if objective == "tradeoff" else Goal("time", max_bound=0.8)
    problem = replace(fleet, goal=goal)
    found = _solve("exact", problem)
    assert check_solution(problem, found) == [] and found.lower_bound <= found.objective
    if objective == "tradeoff" and found.scheduled.any():
        assert found.gap <= 1e-4


def test_a_free_clock_shortens_the_round_and_lowers_the_trade_off() -> None:
    fleet = random_fleet(2, 4)
    for goal in (TRADEOFF, _time_goal(fleet, 1.02, "exact")):
        fixed = replace(fleet, goal=goal)
        free = replace(fixed, min_cpu_hz=0.5 * fleet.cpu_hz, max_cpu_hz=2 * fleet.cpu_hz)
        slow, fast = _solve("exact", fixed), _solve("exact", free)
        assert check_solution(free, fast) == [] and fast.objective < slow.objective * (1 - 1e-3)
        assert fast.cpu_hz is not None
    assert _solve("exact", replace(free, goal=TRADEOFF)).gap <= 1e-4


def test_the_checker_knows_what_a_goal_asks() -> None:
    fleet = random_fleet(1, 4)
    timed = replace(fleet, goal=_time_goal(fleet, 1.05, "exact"))
    found = _solve("exact", timed)
    assert found.deadline_s is not None
    forged = {
        "latency": replace(found, deadline_s=found.deadline_s * 0.9, objective=found.deadline_s * 0.9),
        "deadline": replace(found, deadline_s=fleet.deadline_s * 2, objective=fleet.deadline_s * 2),
        "none chosen": replace(found, deadline_s=None),
        "objective": replace(found, objective=found.objective * 0.99),
        "certificate": replace(found, lower_bound=found.objective * 1.01),
    }
    for name, lie in forged.items():
        assert check_solution(timed, lie), name
    assert check_solution(replace(fleet, goal=Goal("time", max_bound=0.01)), found)
    assert check_solution(fleet, found), "a problem without a goal fixes its deadline"


def test_what_cannot_be_reached_is_said() -> None:
    fleet = random_fleet(1, 4)
    found = _solve("exact", replace(fleet, goal=Goal("time", max_bound=1e-3)))
    assert found.status is SolverStatus.INFEASIBLE and "above 0.001" in found.reasons[0]
    dead = replace(fleet, channel_gain=np.array([0.0, 1e-10, 1e-10, 1e-10]))
    found = _solve("exact", replace(dead, goal=Goal("time", max_bound=10.0)))
    assert found.status is SolverStatus.INFEASIBLE and "can be served" in found.reasons[0]
    found = _solve("exact", replace(dead, goal=Goal("time", max_bound=10.0, min_weight=0.5)))
    assert found.scheduled.any() and not found.scheduled[0]
    assert found.admission == NOT_PROVEN


@pytest.mark.parametrize("access", first(1, ["fdma", "ofdma"]))
def test_who_may_sit_out_is_a_heuristic_and_says_so(access: str) -> None:
    """Left out so that the others meet the bound, or at a deadline so short that a heavier set would fit later."""
    left_out = 0
    for seed in range(4):
        fleet = random_fleet(seed, 5) if access == "fdma" else random_problem(3, 7, seed)
        bound = 0.9 * _solve("exact", fleet).objective
        found = _solve("exact", replace(fleet, goal=Goal("time", max_bound=bound, min_weight=0.4)), gap=1e-3)
        left_out += found.scheduled.any() and not found.scheduled.all()
        assert found.scheduled.all() or found.admission == NOT_PROVEN
    assert left_out


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"objective": "speed"}, "objective must be one of time, tradeoff, found 'speed'"),
        ({"objective": "time"}, "objective.max_bound is needed by 'time'"),
        ({"objective": "tradeoff", "max_bound": 1.0}, "objective.max_bound belongs to 'time' only"),
        ({"objective": "time", "max_bound": -1.0}, "objective.max_bound must be finite and > 0"),
        ({"objective": "time", "max_bound": 1.0, "min_weight": 1.5}, "objective.min_weight must lie in"),
        ({"objective": "tradeoff", "time_weight_per_s": np.nan}, "objective.time_weight_per_s must be finite"),
    ],
)
def test_goals_that_make_no_sense_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ProblemError, match=message):
        Goal(**values)
    with pytest.raises(AllocationError, match="knows the generalization bound only"):
        make_allocator("exact", objective=Rippled()).allocate(replace(random_fleet(0, 2), goal=TRADEOFF))
