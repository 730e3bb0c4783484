"""What every OFDMA method must keep: feasible, repeatable, ordered, monotone, and an answer to any input."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from optimizer.allocator import METHODS, make_allocator
from optimizer.feasibility import check_solution
from optimizer.objective import GeneralizationBound
from optimizer.ofdma.admission import admit_ofdma
from optimizer.ofdma.branch_and_bound import solve_bnb_ofdma
from optimizer.ofdma.dual_bound import maximise_bound, root_box
from optimizer.ofdma.model import OfdmaModel
from optimizer.ofdma.psca import approximate, excess, solve_psca_ofdma
from optimizer.problem import FloatArray, ResourceProblem, SolverStatus
from optimizer.solver_interface import Arguments, Limits
from optimizer.timing import time_limit
from tests.optimizer.ofdma_instances import random_problem
from tests.support.cases import first

SCHEMES = ("common", "equal", "fixed", "none", "proportional", "random")
BASE = random_problem(4, 12, 1)
ONE = random_problem(1, 12, 1)
ALIKE = replace(BASE, cpu_hz=1e9, energy_budget_j=1.0, num_examples=9.0)
EXTREMES: dict[str, ResourceProblem] = {
    "one device": ONE,
    "one subcarrier": replace(BASE, channel_gain=BASE.channel_gain[:, :1], droppable_bits=BASE.droppable_bits / 12),
    "one device, one subcarrier": replace(ONE, channel_gain=ONE.channel_gain[:, :1], droppable_bits=1e6),
    "no energy": replace(BASE, energy_budget_j=0.0),
    "one without energy": replace(BASE, energy_budget_j=np.array([0.0, 1.0, 1.0, 1.0])),
    "no power": replace(BASE, max_tx_power_w=0.0),
    "dead channels": replace(BASE, channel_gain=np.zeros((4, 12))),
    "half of the channels dead": replace(BASE, channel_gain=BASE.channel_gain * (np.indices((4, 12)).sum(axis=0) % 2)),
    "gains from 1e-20 to 1": replace(BASE, channel_gain=np.logspace(-20, 0, 48).reshape(12, 4).T),
    "identical devices": replace(ALIKE, channel_gain=BASE.channel_gain[[0] * 4]),
    "identical everything": replace(ALIKE, channel_gain=1e-11 * np.ones((4, 12))),
    "one device, 1000 subcarriers": random_problem(1, 1000, 2, load=2e4),
    "no dropout allowed": replace(BASE, max_dropout_rate=0.0),
    "no dropout needed": replace(BASE, max_dropout_rate=0.0, droppable_bits=BASE.droppable_bits / 4),
    "nearly everything may be dropped": replace(BASE, max_dropout_rate=0.999999),
    "nothing droppable": replace(BASE, droppable_bits=0.0, adapter_cycles=0.0),
    "nothing to send": replace(BASE, droppable_bits=0.0, fixed_bits=0.0),
    "endless time": replace(BASE, deadline_s=1e6, energy_budget_j=1e6),
    "hardly any time": replace(BASE, deadline_s=1e-9),
    "hardly any bandwidth": replace(BASE, subcarrier_hz=1e-3),
    "bandwidth without end": replace(BASE, subcarrier_hz=1e12),
    "more devices than subcarriers": random_problem(20, 6, 3),
    "one device holds nearly all examples": replace(BASE, num_examples=np.array([1.0, 1e9, 1.0, 1.0])),
}


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("method", ("bnb", "psca"))
@pytest.mark.parametrize("case", EXTREMES)
def test_extreme_inputs_get_a_valid_answer(method: str, case: str) -> None:
    problem = EXTREMES[case]
    solution = make_allocator(method, time_limit_s=20).allocate(problem)
    assert check_solution(problem, solution) == []
    assert all(bool(reason) != on for reason, on in zip(solution.reasons, solution.scheduled, strict=True))
    if solution.status is not SolverStatus.INFEASIBLE and method == "bnb":
        assert solution.gap <= 1e-4


@pytest.mark.parametrize("seed", first(2, range(4)))
def test_tree_search_beats_approximation_beats_schemes(seed: int) -> None:
    problem = random_problem(5, 20, seed, load=5e6)
    best, rough = solve_bnb_ofdma(problem, Arguments(gap=1e-8)), solve_psca_ofdma(problem)
    assert best.status is SolverStatus.OPTIMAL and best.scheduled.all() and rough.scheduled.all()
    assert best.objective <= rough.objective + 1e-9 and rough.objective <= best.objective * 1.005
    assert rough.lower_bound <= best.objective + 1e-12
    for name in SCHEMES:
        scheme = make_allocator(name).allocate(problem, rng=np.random.default_rng(0))
        if scheme.scheduled.all():
            assert rough.objective <= scheme.objective + 1e-12, name


@pytest.mark.parametrize("name", ("bnb", "psca"))
def test_repeatable_for_a_seed(name: str) -> None:
    problem = random_problem(5, 24, 7)
    first, second = (
        make_allocator(name, time_limit_s=60).allocate(problem, rng=np.random.default_rng(3)) for _ in range(2)
    )
    for field in ("dropout_rate", "tx_power_w", "subcarrier_owner", "objective", "lower_bound", "nodes", "iterations"):
        np.testing.assert_array_equal(getattr(first, field), getattr(second, field))


@pytest.mark.parametrize("seed", first(1, range(2)))
def test_more_of_any_resource_never_hurts(seed: int) -> None:
    problem = random_problem(3, 9, seed)
    base = solve_bnb_ofdma(problem, Arguments(gap=1e-9))
    extra = np.concatenate([problem.channel_gain, problem.channel_gain[:, :1]], axis=1)
    richer: dict[str, Any] = {
        "deadline_s": 4.4,
        "subcarrier_hz": 1e5,
        "energy_budget_j": problem.energy_budget_j * 1.1,
        "max_dropout_rate": 0.95,
        "max_tx_power_w": 0.3,
        "channel_gain": problem.channel_gain * 1.5,
        "downlink_rate_bps": 1e8,
        "capacitance": 5e-29,
    }
    for field, value in [*richer.items(), ("channel_gain", extra)]:
        better = solve_bnb_ofdma(replace(problem, **{field: value}), Arguments(gap=1e-9))
        assert better.scheduled.all() and better.objective <= base.objective * (1 + 2e-9), field


def test_time_limit_returns_an_answer_with_a_valid_bound() -> None:
    problem = random_problem(10, 64, 1)
    exact = solve_bnb_ofdma(problem, Arguments(gap=1e-7))
    with time_limit(0.0):
        hurried = solve_bnb_ofdma(problem)
    assert check_solution(problem, hurried) == []
    assert hurried.status is SolverStatus.TIME_LIMIT
    assert hurried.lower_bound <= exact.objective <= hurried.objective


@pytest.mark.parametrize("solve", (solve_bnb_ofdma, solve_psca_ofdma))
def test_warm_start(solve: Any) -> None:
    problem = random_problem(5, 15, 2)
    first = solve(problem)
    again = solve(problem, Arguments(warm_start=first))
    assert check_solution(problem, again) == [] and again.objective <= first.objective * (1 + 1e-4)
    other_size = solve(random_problem(3, 15, 2), Arguments(warm_start=first))  # an answer of another fleet is no start
    assert other_size.scheduled.all()


@pytest.mark.slow
@pytest.mark.parametrize(("size", "seed"), [((50, 256), 0), ((20, 128), 0), ((10, 64), 3)])
def test_a_smaller_gap_ends_with_no_worse_an_answer(size: tuple[int, int], seed: int) -> None:
    """At the root alone: lists of sets that were cut short once cost 50 devices a bound 30 times as loose, and the answer."""
    problem = random_problem(*size, seed)
    loose, tight = (solve_bnb_ofdma(problem, Arguments(gap=gap, limits=Limits(max_nodes=1))) for gap in (1e-4, 1e-7))
    assert tight.objective <= loose.objective and tight.lower_bound >= loose.lower_bound


def test_plug_in_objective() -> None:
    class Squares:
        """phi_k = w_k gamma^2: everything is kept when resources allow."""

        def value(self, problem: ResourceProblem, gamma: FloatArray) -> FloatArray:
            return problem.weights * gamma**2

        def derivative(self, problem: ResourceProblem, gamma: FloatArray) -> FloatArray:
            return 2 * problem.weights * gamma

        def curvature_floor(self, problem: ResourceProblem, low: FloatArray, high: FloatArray) -> FloatArray:
            return np.zeros(np.broadcast(low, high).shape)

    class Spelled(GeneralizationBound):
        """The default objective by the general path."""

    problem = random_problem(3, 9, 1)
    solution = solve_bnb_ofdma(problem, Arguments(gap=1e-8, objective=Squares()))
    assert check_solution(problem, solution, Squares()) == [] and solution.gap <= 1e-8
    assert solution.objective == pytest.approx((problem.weights * solution.dropout_rate**2).sum())
    default = solve_bnb_ofdma(problem, Arguments(gap=1e-8))
    general = solve_bnb_ofdma(problem, Arguments(gap=1e-8, objective=Spelled()))
    assert default.objective == pytest.approx(general.objective, rel=1e-8)


@pytest.mark.parametrize("seed", first(2, range(1, 5)))
def test_psca_merit_falls_until_shares_are_whole(seed: int) -> None:
    model = admit_ofdma(OfdmaModel(random_problem(4, 16, seed))).model
    box = root_box(model)
    point, merits = approximate(model, box, maximise_bound(model, box))
    assert len(merits) >= 1 and all(after <= before for before, after in merits)
    assert point.fraction / 16 < 0.02 and excess(model, point).max() < 0.05


def test_name_table_serves_ofdma() -> None:
    assert {"bnb", "psca", *SCHEMES} <= {name for name, table in METHODS.items() if "ofdma" in table}
