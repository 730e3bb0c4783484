"""One interface for every method that decides resources, with a name table, checks and a declared fallback.

    allocator = make_allocator("bnb", time_limit_s=10, gap=1e-4, fallback=("exact", "equal", "none"))
    solution = allocator.allocate(problem, rng=rng)

Whatever an allocator returns has passed the checker. Methods are imported when they are first used.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from optimizer.checker import check_solution, nobody_scheduled
from optimizer.fdma.admission import individual_reasons
from optimizer.files import problem_to_dict, solution_to_dict
from optimizer.objective import SeparableObjective
from optimizer.problem import ResourceProblem, Solution, SolverStatus, Verified
from optimizer.timing import time_limit

logger = logging.getLogger(__name__)

# name -> access -> where the method lives, "module:function"; a function takes those of `MethodOptions` that it knows.
METHODS: dict[str, dict[str, str]] = {
    "bnb": {
        "fdma": "optimizer.fdma.branch_and_bound:solve_bnb_fdma",
        "ofdma": "optimizer.ofdma.branch_and_bound:solve_bnb_ofdma",
    },
    "common": {"fdma": "optimizer.fdma.schemes:common", "ofdma": "optimizer.ofdma.schemes:common"},
    "equal": {"fdma": "optimizer.fdma.schemes:equal", "ofdma": "optimizer.ofdma.schemes:equal"},
    # Under OFDMA only the tree search has a certificate, so "exact" means it there.
    "exact": {"fdma": "optimizer.fdma.exact:solve_fdma", "ofdma": "optimizer.ofdma.branch_and_bound:solve_bnb_ofdma"},
    "fixed": {"fdma": "optimizer.fdma.schemes:fixed", "ofdma": "optimizer.ofdma.schemes:fixed"},
    "none": {"fdma": "optimizer.fdma.schemes:none", "ofdma": "optimizer.ofdma.schemes:none"},
    "proportional": {"fdma": "optimizer.fdma.schemes:proportional", "ofdma": "optimizer.ofdma.schemes:proportional"},
    "psca": {"fdma": "optimizer.fdma.psca:solve_psca_fdma", "ofdma": "optimizer.ofdma.psca:solve_psca_ofdma"},
    "random": {"fdma": "optimizer.fdma.schemes:random", "ofdma": "optimizer.ofdma.schemes:random"},
    "scip": {"fdma": "optimizer.reference.scip:solve_scip", "ofdma": "optimizer.reference.scip:solve_scip"},
}
# These rules may serve nobody where another method serves someone; that is their answer, not a failure.
RIGID_RULES = frozenset({"fixed", "none", "random"})


class AllocationError(RuntimeError):
    """A method that did not deliver a usable solution; the message says what it did instead."""


class ResourceAllocator(Protocol):
    """Decides one round's resources."""

    @property
    def name(self) -> str:
        """Name of the method."""
        ...

    def allocate(
        self, problem: ResourceProblem, *, rng: np.random.Generator | None = None, warm_start: Solution | None = None
    ) -> Solution:
        """Return a solution that passes the checker; ``rng`` is all the randomness, ``warm_start`` an earlier answer."""
        ...


@dataclass(frozen=True)
class MethodOptions:
    """What methods can be told; each takes the part that its function names.

    Parameters
    ----------
    time_limit_s : float
        Wall time after which an anytime method hands out what it has [s].
    gap : float
        Relative gap at which a certified method may stop.
    dropout_rate : float
        Rate of the method ``fixed``.
    objective : SeparableObjective or None
        What to minimise, the generalization bound if None.
    verify : bool
        Whether every solution is proven by `optimizer.verify` before it is handed out.
    """

    time_limit_s: float = 10.0
    gap: float = 1e-4
    dropout_rate: float = 0.5
    objective: SeparableObjective | None = None
    verify: bool = False


@dataclass(frozen=True)
class CheckedAllocator:
    """One method whose result is checked before it is handed out."""

    name: str
    options: MethodOptions = field(default_factory=MethodOptions)

    def allocate(
        self, problem: ResourceProblem, *, rng: np.random.Generator | None = None, warm_start: Solution | None = None
    ) -> Solution:
        """Return the method's checked solution; raise AllocationError if it violates the problem."""
        method = load_method(self.name, problem.access)
        offered: dict[str, Any] = {name: getattr(self.options, name) for name in self.options.__dataclass_fields__}
        known = inspect.signature(method).parameters

        def solve(fixed: ResourceProblem, earlier: Solution | None) -> Solution:
            given = offered | {"rng": rng, "warm_start": earlier}
            return method(fixed, **{name: value for name, value in given.items() if name in known})

        with time_limit(self.options.time_limit_s):
            if problem.min_cpu_hz is None:
                solution = solve(problem, warm_start)
            else:
                from optimizer.cpu_clock import allocate_with_clock

                solution = allocate_with_clock(
                    problem, solve, objective=self.options.objective, gap=self.options.gap, warm_start=warm_start
                )
        violations = check_solution(problem, solution, self.options.objective)
        if violations:
            more = f" (and {len(violations) - 1} more)" if len(violations) > 1 else ""
            raise AllocationError(f"{self.name} returned a solution that violates the problem: {violations[0]}{more}")
        verified = prove(problem, solution) if self.options.verify else None
        return replace(solution, method=self.name, verified=verified)


@dataclass(frozen=True)
class FallbackChain:
    """Methods that take over from one another, in the declared order; the last resort is that everyone sits out.

    A method is passed over when it raises, violates the problem, or serves nobody although it is free to choose the
    dropout rates. Every such step is logged and stands in the solution's notes.
    """

    members: tuple[ResourceAllocator, ...]

    @property
    def name(self) -> str:
        """Name of the first method."""
        return self.members[0].name

    def allocate(
        self, problem: ResourceProblem, *, rng: np.random.Generator | None = None, warm_start: Solution | None = None
    ) -> Solution:
        """Return the first usable solution; never raises."""
        notes: list[str] = []
        empty: Solution | None = None
        start = time.perf_counter()
        for member in self.members:
            try:
                solution = member.allocate(problem, rng=rng, warm_start=warm_start)
            except Exception as error:  # whatever a solver does, the round goes on
                notes.append(f"{member.name} failed: {type(error).__name__}: {error}")
                logger.warning("allocator %s; the next method takes over", notes[-1])
                continue
            if solution.status is SolverStatus.INFEASIBLE and member.name not in RIGID_RULES:
                empty = empty or solution
                continue
            if empty is not None and solution.status is SolverStatus.INFEASIBLE:
                break
            if empty is not None:
                notes.append(f"{empty.method} served nobody")
            return replace(solution, notes=(*notes, *solution.notes))
        if empty is None:
            empty = self._nobody(problem, notes, time.perf_counter() - start)
        return replace(empty, notes=(*notes, *empty.notes))

    def _nobody(self, problem: ResourceProblem, notes: Sequence[str], solve_time_s: float) -> Solution:
        alone = individual_reasons(problem, np.full(problem.num_devices, problem.max_dropout_rate))
        reasons = [reason or f"no allocation: {'; '.join(notes)}" for reason in alone]
        return nobody_scheduled(problem, self.name, reasons, solve_time_s)


def prove(problem: ResourceProblem, solution: Solution) -> Verified:
    """Verify a solution as if both came from files; raise AllocationError with the first reason where it is refused."""
    from optimizer.verify import verify
    from optimizer.verify_input import Refused, Unusable

    began = time.perf_counter()
    try:
        proof = verify(
            *(json.loads(json.dumps(part)) for part in (problem_to_dict(problem), solution_to_dict(solution)))
        )
    except (Refused, Unusable) as error:
        raise AllocationError(f"its solution could not be verified: {error}") from error
    gap = max(proof.objective - proof.lower_bound, 0.0) / max(abs(proof.objective), 1e-12)
    return Verified(proof.lower_bound, gap, time.perf_counter() - began)


def load_method(name: str, access: str) -> Callable[..., Solution]:
    """Import and return the function behind a method's name."""
    where = METHODS[name].get(access)
    if where is None:
        usable = sorted(other for other, table in METHODS.items() if access in table)
        raise AllocationError(f"method {name!r} does not handle access {access!r}; these do: {', '.join(usable)}")
    module, function = where.split(":")
    found: Callable[..., Solution] = getattr(importlib.import_module(module), function)
    return found


def check_method_name(name: str) -> None:
    """Raise ValueError with the nearest name unless ``name`` is in the table."""
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, n=1, cutoff=0.0)[0]
        raise ValueError(f"unknown allocator {name!r}; did you mean {near!r}? known: {', '.join(sorted(METHODS))}")


def make_allocator(
    name: str,
    *,
    time_limit_s: float = 10.0,
    gap: float = 1e-4,
    dropout_rate: float = 0.5,
    objective: SeparableObjective | None = None,
    fallback: Sequence[str] = (),
    verify: bool = False,
) -> ResourceAllocator:
    """Return the allocator called ``name``.

    Parameters
    ----------
    name : str
        A key of `METHODS`.
    time_limit_s, gap, dropout_rate, objective, verify
        See `MethodOptions`.
    fallback : sequence of str
        Who takes over, in this order, when the method fails. Without it a failing method raises.

    Returns
    -------
    ResourceAllocator
        Checked, and a `FallbackChain` when ``fallback`` is given.
    """
    for each in (name, *fallback):
        check_method_name(each)
    options = MethodOptions(
        time_limit_s=time_limit_s, gap=gap, dropout_rate=dropout_rate, objective=objective, verify=verify
    )
    names = tuple(dict.fromkeys((name, *fallback)))  # a method is not asked twice
    members = tuple(CheckedAllocator(each, options) for each in names)
    return FallbackChain(members) if fallback else members[0]
