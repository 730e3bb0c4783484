"""Benchmark schemes and the SCIP reference under OFDMA; the solvers' own tests stand in test_ofdma*.py."""

import numpy as np
import pytest

from optimizer.allocator import make_allocator
from optimizer.feasibility import check_solution
from optimizer.ofdma import schemes as schemes_ofdma
from optimizer.ofdma.model import OfdmaModel
from optimizer.ofdma.schemes import deal_in_turns
from optimizer.problem import SolverStatus
from optimizer.solver_interface import Arguments
from tests.optimizer.ofdma_instances import random_problem
from wireless.units import largest_remainder

RULES = ("common", "equal", "fixed", "none", "proportional", "random")


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("seed", range(3))
def test_rules_are_feasible_deterministic_and_above_their_certificate(rule: str, seed: int) -> None:
    problem = random_problem(4, 12, seed, load=3e6)
    solution, again = (make_allocator(rule).allocate(problem) for _ in range(2))
    assert check_solution(problem, solution) == [] and solution.lower_bound <= solution.objective
    np.testing.assert_array_equal(solution.tx_power_w, again.tx_power_w)
    assert all(bool(reason) != on for reason, on in zip(solution.reasons, solution.scheduled, strict=True))


def test_no_rule_beats_the_certified_search() -> None:
    problem = random_problem(3, 6, 1)
    best = make_allocator("bnb", time_limit_s=5).allocate(problem)
    assert best.scheduled.all()
    for rule in RULES:
        solution = make_allocator(rule).allocate(problem)
        if solution.scheduled.all():
            assert solution.objective >= best.lower_bound - 1e-12
        # the rule's own certificate covers every dropout rate, not only the rule's
        part_of_best = best.objective if solution.scheduled.all() else np.inf
        assert solution.lower_bound <= part_of_best


def test_each_rule_does_what_its_name_says() -> None:
    problem = random_problem(3, 9, 2, load=5e5)
    assert np.nanmax(schemes_ofdma.none(problem).dropout_rate) == 0
    np.testing.assert_array_equal(schemes_ofdma.fixed(problem, Arguments(dropout_rate=0.4)).dropout_rate, 0.4)
    np.testing.assert_array_equal(np.bincount(schemes_ofdma.equal(problem).subcarrier_owner), [3, 3, 3])
    assert np.ptp(schemes_ofdma.common(problem).dropout_rate) == 0


def test_dealing_gives_everyone_its_best_free_subcarrier() -> None:
    model = OfdmaModel(random_problem(2, 6, 0))
    owner = deal_in_turns(model, np.array([2.0, 4.0]))
    np.testing.assert_array_equal(np.bincount(owner), [2, 4])
    assert owner[np.argmin(model.inv_snr[0])] == 0
    np.testing.assert_array_equal(largest_remainder(np.array([1.0, 2.0, 1.0]), 7), [2, 3, 2])


def test_nobody_fits() -> None:
    problem = random_problem(3, 6, 0, load=1e12)
    for rule in (*RULES, "bnb"):
        solution = make_allocator(rule).allocate(problem)
        assert solution.status is SolverStatus.INFEASIBLE and all(solution.reasons)


def test_scip_confirms_the_certified_search_on_tiny_problems() -> None:
    pytest.importorskip("pyscipopt", reason="the extra fedlodrop[scip] is not installed")
    problem = random_problem(2, 4, 0)
    ours, theirs = (make_allocator(name, time_limit_s=30, gap=1e-6).allocate(problem) for name in ("bnb", "scip"))
    assert theirs.status is SolverStatus.OPTIMAL and theirs.objective == pytest.approx(ours.objective, rel=1e-6)
    assert theirs.lower_bound <= ours.objective and ours.lower_bound <= theirs.objective + 1e-12
