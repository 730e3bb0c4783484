"""One interface for every method that decides resources, FDMA or OFDMA: a name table, checks, a declared fallback.

    allocator = make_allocator("bnb", time_limit_s=10, gap=1e-4, fallback=("exact", "equal", "none"))
    solution = allocator.allocate(problem, rng=rng)

Whatever an allocator returns has passed the checker. Methods are imported when they are first used.
"""

import difflib
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from adapter.plugins import load_plugin
from optimizer.certificate import HEAVIEST, NOT_PROVEN
from optimizer.fdma.admission import individual_reasons, rank
from optimizer.feasibility import check_solution, nobody_scheduled
from optimizer.files import problem_to_dict, solution_to_dict
from optimizer.objective import GeneralizationBound, SeparableObjective
from optimizer.problem import ProblemError, ResourceProblem, Solution, SolverStatus
from optimizer.solver_interface import DEFAULTS, Arguments
from optimizer.timing import remaining_s, time_is_up, time_limit

logger = logging.getLogger(__name__)
Method = Callable[[ResourceProblem, Arguments], Solution]

# name -> access -> where the method lives, "module:function"; the function is called with a problem and `Arguments`.
_RULES = ("common", "equal", "fixed", "none", "proportional", "random")
METHODS: dict[str, dict[str, str]] = {
    "bnb": {
        "fdma": "optimizer.fdma.branch_and_bound:solve_bnb_fdma",
        "ofdma": "optimizer.ofdma.branch_and_bound:solve_bnb_ofdma",
    },
    # Under OFDMA only the tree search has a certificate, so "exact" means it there.
    "exact": {"fdma": "optimizer.fdma.exact:solve_fdma", "ofdma": "optimizer.ofdma.branch_and_bound:solve_bnb_ofdma"},
    "psca": {"fdma": "optimizer.fdma.psca:solve_psca_fdma", "ofdma": "optimizer.ofdma.psca:solve_psca_ofdma"},
    "scip": {"fdma": "optimizer.reference.scip:solve_scip", "ofdma": "optimizer.reference.scip:solve_scip"},
} | {rule: {access: f"optimizer.{access}.schemes:{rule}" for access in ("fdma", "ofdma")} for rule in _RULES}
# Under TDMA a device has another curve, and all else is as under FDMA.
METHODS |= {name: paths | {"tdma": paths["fdma"]} for name, paths in METHODS.items() if name != "scip"}
_WHOLE = ("exact", "bnb")  # these solve goals and choices as a whole where they can, others are asked again and again
# These rules may serve nobody where another method serves someone; that is their answer, not a failure.
RIGID_RULES = frozenset({"fixed", "none", "random"})


class AllocationError(RuntimeError):
    """A method that did not deliver a usable solution; the message says what it did instead."""


@dataclass(frozen=True)
class ResourceAllocator:
    """Decides one round's resources by methods that take over from one another, in the declared order.

    A method is passed over when it raises, violates the problem, is not proven where that is asked, or serves nobody
    although it is free to choose the dropout rates. Every such step is logged and stands in the solution's notes; the
    last resort is that everyone sits out. One without a declared fallback ``raises`` instead.
    """

    names: tuple[str, ...]
    arguments: Arguments = DEFAULTS
    time_limit_s: float = 10.0
    verify: bool = False
    raises: bool = False

    def allocate(
        self, problem: ResourceProblem, *, rng: np.random.Generator | None = None, warm_start: Solution | None = None
    ) -> Solution:
        """Return a solution that passes the checker; ``rng``: all the randomness, ``warm_start``: an earlier answer."""
        arguments = replace(self.arguments, rng=rng, warm_start=warm_start)
        if self.raises:
            return self._ask(self.names[0], problem, arguments)
        notes: list[str] = []
        empty: Solution | None = None
        start = time.perf_counter()
        for name in self.names:
            try:
                solution = self._ask(name, problem, arguments)
            except Exception as error:  # whatever a solver does, the round goes on
                notes.append(f"{name} failed: {type(error).__name__}: {error}")
                logger.warning("allocator %s; the next method takes over", notes[-1])
                continue
            if solution.status is SolverStatus.INFEASIBLE and name not in RIGID_RULES:
                empty = empty or solution
                continue
            if empty is not None and solution.status is SolverStatus.INFEASIBLE:
                break
            if empty is not None:
                notes.append(f"{empty.method} served nobody")
            return replace(solution, notes=(*notes, *solution.notes))
        if empty is None:
            alone = individual_reasons(problem, problem.highest_rates)
            reasons = [reason or f"no allocation: {'; '.join(notes)}" for reason in alone]
            empty = nobody_scheduled(problem, self.names[0], reasons, solve_time_s=time.perf_counter() - start)
        return replace(empty, notes=(*notes, *empty.notes))

    def _ask(self, name: str, problem: ResourceProblem, arguments: Arguments) -> Solution:
        """Return one method's solution, made under the clock and checked; raise AllocationError if it is not usable."""
        answer = partial(_answer, load_method(name, problem.access), arguments, name in _WHOLE)
        began = time.perf_counter()
        with time_limit(self.time_limit_s):
            if problem.goal is None:
                solution = answer(problem)
            else:
                from optimizer.multi_round.goals import pursue

                _needs_plain_bound(arguments, f"objective {problem.goal.objective!r} knows")
                solution = pursue(problem, answer, whole=name in _WHOLE, gap=arguments.gap)
        took_s = time.perf_counter() - began
        violations = check_solution(problem, solution, arguments.objective)
        if violations:
            more = f" (and {len(violations) - 1} more)" if len(violations) > 1 else ""
            what = "a solution that violates the problem"
            raise AllocationError(f"{name} returned {what}: {violations[0].message}{more}")
        verified = prove(problem, solution) if self.verify else None
        return replace(solution, method=name, solve_time_s=took_s, verified=verified)


def _answer(method: Method, arguments: Arguments, whole: bool, problem: ResourceProblem) -> Solution:
    """Solve a problem without a goal: around the method lie free clocks, choices and a shared downlink."""
    again = partial(_answer, method, arguments, whole)
    if problem.shared_downlink:
        return _share_downlink(problem, again)
    if problem.choices:
        from optimizer.multi_round.choices import solve_with_choices

        _needs_plain_bound(arguments, "choices of how to send know")
        return solve_with_choices(problem, again, whole=whole, arguments=arguments)
    if problem.min_cpu_hz is not None:
        from optimizer.cpu_clock import allocate_with_clock

        return allocate_with_clock(problem, method, arguments)
    return method(problem, arguments)


def _share_downlink(problem: ResourceProblem, solve: Callable[[ResourceProblem], Solution]) -> Solution:
    """Answer a problem in which all download at the rate of the slowest who takes part: most weight, then least cost.

    For a given slowest device it is the plain problem without the slower ones, with one downlink rate; proofs and
    certificates hold, the bound for the devices served at their common rate. Every rate at which somebody could be the
    slowest is tried, in rising order, until those who are left weigh less than what is served already.
    """
    own, weights, proven = problem.downlink_rate_bps, problem.weights, True
    rates, answers = np.unique(own), list[Solution]()
    for tried, rate in enumerate(rates):
        keep = own >= rate
        most = max((float(weights[one.scheduled].sum()) for one in answers), default=-1.0)
        if answers and (weights[keep].sum() < most * (1 - 1e-12) or time_is_up()):
            proven &= not time_is_up()
            break
        common = replace(problem.without(keep), shared_downlink=False, downlink_rate_bps=np.where(keep, rate, own))
        with time_limit(remaining_s() / (2 if tried + 1 < rates.size else 1)):
            found = solve(common)
        proven &= found.admission == HEAVIEST
        if own[found.scheduled].min(initial=np.inf) > rate and found.scheduled.any():
            continue  # they are served faster at a later rate
        told = f"a downlink of {rate:.4g} bit/s for everyone who takes part is faster than its own"
        reasons = tuple(reason if kept else told for reason, kept in zip(found.reasons, keep, strict=True))
        answers = [min((*answers, replace(found, reasons=reasons)), key=partial(rank, problem))]  # the best so far
    return replace(answers[0], admission=HEAVIEST if proven else NOT_PROVEN)


def _needs_plain_bound(arguments: Arguments, who: str) -> None:
    if type(arguments.objective) is not GeneralizationBound:
        raise AllocationError(f"{who} the generalization bound only")


def prove(problem: ResourceProblem, solution: Solution) -> dict[str, float]:
    """Verify a solution as if both came from files; raise AllocationError with the first reason where it is refused."""
    from optimizer.verify import Refused, Unusable
    from optimizer.verify_extended import verify

    began = time.perf_counter()
    files = (json.loads(json.dumps(part)) for part in (problem_to_dict(problem), solution_to_dict(solution)))
    try:
        proof = verify(*files)
    except (Refused, Unusable) as error:
        raise AllocationError(f"its solution could not be verified: {error}") from error
    gap = max(proof.objective - proof.lower_bound, 0.0) / max(abs(proof.objective), 1e-12)
    return {"lower_bound": proof.lower_bound, "gap": gap, "time_s": time.perf_counter() - began}


def load_method(name: str, access: str) -> Method:
    """Import and return the function behind a method's name."""
    where = name if ":" in name else METHODS[name].get(access)
    if where is None:
        usable = sorted(other for other, table in METHODS.items() if access in table)
        raise AllocationError(f"method {name!r} does not handle access {access!r}; these do: {', '.join(usable)}")
    return load_plugin(where, "allocator.class")


def check_method_name(name: str) -> None:
    """Raise a ValueError unless ``name`` is in the table, or leads to a function of the user's own, ``module:name``."""
    if ":" in name:
        load_plugin(name, "allocator.class")
    elif name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, n=1, cutoff=0.0)[0]
        raise ProblemError(f"unknown allocator {name!r}; did you mean {near!r}? known: {', '.join(sorted(METHODS))}")


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
    """Return the allocator called ``name``, whose answers are checked.

    ``name`` is a key of `METHODS`, or the import path of a function like those it lists; ``dropout_rate`` is that of
    the method ``fixed``. ``time_limit_s`` is the wall time after which an anytime method hands out what it has, ``gap``
    the relative gap at which a certified one may stop, ``objective`` what to minimise (the generalization bound if left
    out). ``fallback`` takes over, in this order, when the method fails (without it a failing method raises); with
    ``verify`` every solution is proven by `optimizer.verify` before it is handed out.
    """
    names = tuple(dict.fromkeys((name, *fallback)))  # a method is not asked twice
    for each in names:
        check_method_name(each)
    arguments = Arguments(objective or GeneralizationBound(), gap, dropout_rate)
    return ResourceAllocator(names, arguments, time_limit_s, verify, raises=not fallback)
