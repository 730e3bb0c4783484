import logging
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from optimizer import allocator as module
from optimizer.allocator import AllocationError, load_method, make_allocator
from optimizer.fdma import exact
from optimizer.fdma.exact import solve_fdma
from optimizer.problem import ResourceProblem, Solution, SolverStatus
from optimizer.solver_interface import Arguments
from tests.optimizer.fleets import random_fleet


def _replaced(monkeypatch: pytest.MonkeyPatch, **answers: Solution | Exception | Callable[..., Solution]) -> None:
    """Let methods answer what is given: a solution or what a function makes of the problem; an exception is raised."""

    def load(name: str, access: str) -> Callable[..., Solution]:
        if name not in answers:
            return load_method(name, access)
        answer = answers[name]

        def method(problem: ResourceProblem, arguments: Arguments) -> Solution:
            if isinstance(answer, Exception):
                raise answer
            return answer if isinstance(answer, Solution) else answer(problem)

        return method

    monkeypatch.setattr(module, "load_method", load)


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'proportional'"):
        make_allocator("proportionnal")
    with pytest.raises(ValueError, match="did you mean 'equal'"):
        make_allocator("exact", fallback=("equals",))


def test_a_violated_solution_is_never_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    def greedy(problem: ResourceProblem) -> Solution:
        good = solve_fdma(problem)
        return replace(good, bandwidth_hz=good.bandwidth_hz * 1.1)

    _replaced(monkeypatch, exact=greedy)
    fleet = random_fleet(0, 5)
    with pytest.raises(AllocationError, match="bandwidths sum to"):
        make_allocator("exact").allocate(fleet)
    rescued = make_allocator("exact", fallback=("equal", "none")).allocate(fleet)
    assert rescued.method == "equal" and rescued.scheduled.any()
    assert "exact failed: AllocationError" in rescued.notes[0]


def test_the_next_method_takes_over_on_an_exception_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _replaced(monkeypatch, psca=RuntimeError("solver died"))
    with caplog.at_level(logging.WARNING):
        solution = make_allocator("psca", fallback=("exact",)).allocate(random_fleet(0, 5))
    assert solution.method == "exact" and solution.notes == ("psca failed: RuntimeError: solver died",)
    assert "solver died" in caplog.text


def test_the_last_resort_is_that_everyone_sits_out(monkeypatch: pytest.MonkeyPatch) -> None:
    _replaced(monkeypatch, psca=RuntimeError("no cone"), bnb=ValueError("no tree"))
    solution = make_allocator("psca", fallback=("bnb",)).allocate(random_fleet(0, 3))
    assert solution.status is SolverStatus.INFEASIBLE and not solution.scheduled.any()
    assert all("no cone" in reason and "no tree" in reason for reason in solution.reasons)


def test_a_solver_that_serves_nobody_is_passed_over_but_a_rigid_rule_is_believed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fleet = random_fleet(0, 5, total_bandwidth_hz=2e5)
    empty = make_allocator("none").allocate(fleet)
    assert empty.status is SolverStatus.INFEASIBLE
    _replaced(monkeypatch, psca=empty)
    rescued = make_allocator("psca", fallback=("exact",)).allocate(fleet)
    assert rescued.method == "exact" and rescued.notes == ("psca served nobody",)
    assert make_allocator("none", fallback=("exact",)).allocate(fleet).status is SolverStatus.INFEASIBLE


def test_nobody_fits_is_an_answer_not_an_error() -> None:
    fleet = random_fleet(0, 4, deadline_s=0.01)
    for name in ("exact", "equal", "fixed", "none", "random", "common", "proportional"):
        solution = make_allocator(name).allocate(fleet)
        assert solution.status is SolverStatus.INFEASIBLE and all("deadline" in reason for reason in solution.reasons)


def test_options_reach_the_method() -> None:
    fleet = random_fleet(8, 6, total_bandwidth_hz=3e7, energy_budget_j=5.0)
    assert np.nanmax(make_allocator("fixed", dropout_rate=0.25).allocate(fleet).dropout_rate) == 0.25


def test_importing_the_package_does_not_import_the_solvers() -> None:
    import subprocess
    import sys

    heavy = "{'cvxpy', 'pyomo', 'pyscipopt', 'torch', 'flwr', 'hydra'} & set(sys.modules)"
    code = f"import sys, optimizer.allocator, optimizer.files, optimizer.fdma.exact; assert not {heavy}, {heavy}"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_plan_is_proven_before_it_is_handed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = random_fleet(0, 5)
    solution = make_allocator("exact", verify=True).allocate(fleet)
    assert solution.verified is not None and solution.verified["gap"] <= 1e-12
    assert make_allocator("exact").allocate(fleet).verified is None
    certificate = exact.price_certificate
    monkeypatch.setattr(exact, "price_certificate", lambda price, rates: certificate(2 * price, rates))
    with pytest.raises(AllocationError, match="could not be verified: the lower bound is said to be"):
        make_allocator("exact", verify=True).allocate(fleet)
    other = make_allocator("exact", verify=True, fallback=("equal",)).allocate(fleet)
    assert other.method == "equal" and other.verified is not None and "could not be verified" in other.notes[0]


def test_a_method_that_is_its_own_fallback_does_not_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    _replaced(monkeypatch, exact=RuntimeError("no"))
    found = make_allocator("exact", fallback=("exact",)).allocate(random_fleet(0, 3))
    assert not found.scheduled.any() and "exact failed" in found.notes[0]
