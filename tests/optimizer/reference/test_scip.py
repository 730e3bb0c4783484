import time
from dataclasses import replace

import numpy as np
import pytest

from optimizer.allocator import AllocationError, make_allocator
from optimizer.fdma.exact import solve_fdma
from optimizer.feasibility import check_solution
from optimizer.problem import ResourceProblem, SolverStatus
from optimizer.reference import scip
from optimizer.solver_interface import Arguments
from optimizer.timing import time_limit
from tests.optimizer.fleets import random_fleet, shared_instance

pytest.importorskip("pyscipopt", reason="the extra fedlodrop[scip] is not installed")


def _agrees(problem: ResourceProblem) -> None:
    solution, exact = scip.solve_scip(problem, Arguments(gap=1e-6)), solve_fdma(problem)
    assert check_solution(problem, solution) == []
    assert solution.status is SolverStatus.OPTIMAL
    assert solution.objective == pytest.approx(exact.objective, rel=5e-6)
    assert solution.lower_bound <= exact.objective and exact.lower_bound <= solution.objective


def test_agrees_with_the_exact_method_on_the_shared_instance() -> None:
    _agrees(shared_instance("fdma_k3"))


@pytest.mark.parametrize("seed", range(3))
def test_agrees_on_random_pairs(seed: int) -> None:
    _agrees(random_fleet(seed, 2))


def test_agrees_where_the_wire_rounds() -> None:
    _agrees(replace(random_fleet(0, 2), noise=np.array([0.5, 0.05])))


def test_a_child_that_outlives_its_time_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scip, "_GRACE_S", 0.0)
    start = time.perf_counter()
    with pytest.raises(AllocationError, match="was ended after"), time_limit(0.2):
        scip.solve_scip(random_fleet(0, 10))
    assert time.perf_counter() - start < 10.0
    solution = make_allocator("scip", time_limit_s=0.2, fallback=("exact",)).allocate(random_fleet(0, 10))
    assert solution.method == "exact" and "scip failed" in solution.notes[0]


def test_only_the_generalization_bound_can_be_written_as_a_model() -> None:
    class Flat:
        value = derivative = curvature_floor = staticmethod(lambda *_: np.zeros(1))

    with pytest.raises(AllocationError, match="use bnb"):
        scip.solve_scip(random_fleet(0, 2), Arguments(objective=Flat()))


def test_nobody_fits_needs_no_solver() -> None:
    assert scip.solve_scip(random_fleet(0, 3, deadline_s=0.01)).status is SolverStatus.INFEASIBLE
