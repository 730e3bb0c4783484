"""Two goals beside the least bound: the shortest deadline for a bound, and a weighted sum of bound, energy and time.

``solve`` is any method at a fixed deadline. The shortest deadline is a root of what it answers, certified where its
lower bounds (or its admission) rule out everything shorter. The weighted sum is solved whole under FDMA
(`optimizer.multi_round.interior_point`); any other method is asked at several deadlines. Its certificate is always that
of the program in logarithms; under OFDMA that of the fleet with its best subcarriers' gains on the whole band, which
by the concavity of the rate carries at least as much.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import numpy as np
from scipy.optimize import minimize_scalar

from optimizer.certificate import HEAVIEST, NOT_PROVEN, Certificate
from optimizer.fdma.admission import Admission
from optimizer.fdma.completion import finish
from optimizer.fdma.exact import solve_fdma
from optimizer.feasibility import favourable, goal_value, nobody_scheduled
from optimizer.multi_round.geometric import CLOCK, TIME, GeometricProgram, X
from optimizer.multi_round.interior_point import Optimum, minimise
from optimizer.objective import GeneralizationBound, free_bound
from optimizer.problem import FloatArray, Goal, ResourceProblem, Solution
from optimizer.rootfinding import increasing_root
from optimizer.solver_interface import DEFAULTS, Arguments, Decision
from optimizer.timing import OutOfTime, remaining_s, time_is_up, time_limit

Solve = Callable[[ResourceProblem], Solution]
_SHARE = 8  # of the time left that one solve among several may take: one eighth
_TRIES = 14  # solves to place a deadline without, or a proof without, a sign to follow
_IMPOSSIBLE = 1e9  # cost where fewer are served, finite for the search
_CLEARLY = 1e-11  # relative excess of a bound that no rounding undoes


def pursue(problem: ResourceProblem, solve: Solve, *, whole: bool, gap: float = 1e-6) -> Solution:
    """Answer a problem with a goal: ``objective``, ``lower_bound`` and ``deadline_s`` of the solution are the goal's.

    ``solve`` answers problems without a goal; with ``whole`` a trade-off under FDMA is solved as one convex program
    instead of by asking it. ``gap`` is the relative gap at which the status is OPTIMAL.
    """
    goal, gap = problem.goal, min(gap, 1e-6) if problem.access != "ofdma" and whole else gap
    assert goal is not None
    search = _Search(problem, goal, solve)
    found = search.shortest(gap) if goal.objective == "time" else search.tradeoff(whole, gap)
    if not found.scheduled.any():
        return found
    status = Arguments(gap=gap).status(found.objective, found.lower_bound)
    return replace(found, status=status)


class _Search:
    """Deadlines asked for so far: the best answer, and the longest deadline that is proven to be too short."""

    def __init__(self, problem: ResourceProblem, goal: Goal, solve: Solve) -> None:
        self.problem, self.goal, self.solve = problem, goal, solve
        self.plain = replace(problem, goal=None)  # at given deadlines
        self.easiest = favourable(self.plain)  # bounds it at every deadline
        self.limit, self.everyone = float(goal.max_bound or 0.0), goal.min_weight == 1
        self.needed = goal.min_weight * float(problem.weights.sum()) * (1 - 1e-12)
        self.best: Solution | None = None
        self.floor_s, self.served = 0.0, 0.0
        self.proof: Certificate | None = {"deadline_s": 0.0}  # that ``floor_s`` is too short

    def ask(self, deadline_s: float, problem: ResourceProblem | None = None) -> Solution:
        """What the method answers within a deadline, as an answer to the goal; the longest deadline comes first."""
        if time_is_up() and self.best is not None:
            raise OutOfTime
        with time_limit(remaining_s() / (2 if deadline_s == self.problem.deadline_s else _SHARE)):
            found = self.solve(replace(problem or self.plain, deadline_s=deadline_s))
        return replace(found, deadline_s=deadline_s)

    def lighter(self, found: Solution) -> Solution:
        """Ask again without the devices whose bound and band cost most for their weight, as many as may sit out."""
        p, on = self.plain, found.scheduled
        if found.bandwidth_hz is None:
            share = (np.asarray(found.subcarrier_owner) == np.arange(p.num_devices)[:, None]).mean(axis=1)
        else:
            share = found.bandwidth_hz / p.total_bandwidth_hz
        cost = GeneralizationBound().value(p, np.where(on, found.dropout_rate, 0.0)) + self.limit * share
        order = np.argsort(np.where(on, cost / p.weights, np.inf), kind="stable")
        before = np.cumsum(p.weights[order]) - p.weights[order]
        keep = np.isin(np.arange(p.num_devices), order[before < self.needed])
        silent = replace(p, max_tx_power_w=np.where(keep & on, p.max_tx_power_w, 0.0))
        again = self.ask(float(found.deadline_s or 0.0), silent)
        left_out = "left out so that the others meet the bound sooner"
        reasons = tuple(left_out if on[k] and not again.scheduled[k] else found.reasons[k] for k in range(on.size))
        return replace(again, reasons=reasons, admission=found.admission)

    def spare(self, log_deadline: FloatArray) -> FloatArray:
        """How far the bound stays below its limit within a deadline, -inf where too few are served."""
        found, weights = self.ask(float(np.exp(log_deadline[0]))), self.plain.weights
        if not self.everyone and found.objective > self.limit * weights[found.scheduled].sum():
            found = self.lighter(found)
        weight, deadline = float(weights[found.scheduled].sum()), float(found.deadline_s or 0.0)
        if weight < self.needed:
            if found.admission == HEAVIEST:
                self.too_short(deadline, {})
            self.served = max(self.served, weight)
            return np.array([-np.inf])
        left = self.limit - found.objective / weight
        if left >= 0 and (self.best is None or deadline < float(self.best.deadline_s or np.inf)):
            self.best = replace(found, notes=(*found.notes, f"bound {found.objective / weight:.9g}"))
        elif left < 0 and self.everyone and found.lower_bound / weight > self.limit * (1 + _CLEARLY):
            self.too_short(deadline, found.certificate and {"bound": found.certificate})
        return np.array([left])

    def shortest(self, gap: float) -> Solution:
        """Shortest deadline by a bracketed root in its logarithm, then the proof if it is not there yet."""
        longest, everyone = self.problem.deadline_s, self.everyone
        if not (at_longest := float(self.spare(np.log([longest]))[0])) >= 0:
            served = f"devices of weight {self.served:.4g} of {self.needed:.4g} can be served"
            short = f"the bound is {self.limit - at_longest:.6g}, above {self.limit:.6g}"
            reason = f"within {longest:.6g} s {served if at_longest == -np.inf else short}"
            return nobody_scheduled(self.problem, reasons=(reason,) * self.problem.num_devices)
        earliest = max(float(self.easiest.shortest_s.max()), 1e-9 * longest) if everyone else 1e-6 * longest
        if everyone:
            self.too_short(min(earliest, longest), {})
        if everyone and self.plain.access == "ofdma" and self.plain.min_cpu_hz is None:
            wider = _Search(replace(self.easiest, goal=self.goal), self.goal, solve_fdma)
            wider.shortest(1e-6)
            proof = wider.proof and {key: {"relaxed": node} for key, node in wider.proof.items() if key == "bound"}
            self.too_short(min(wider.floor_s, longest), proof)
            earliest = max(earliest, self.floor_s)
        with suppress(OutOfTime):
            increasing_root(self.spare, np.log([min(earliest, longest)]), np.log([longest]), tolerance=0.25 * gap)
            end = self.best.deadline_s if self.best is not None else longest
            for _ in range(_TRIES):
                if end is None or end * (1 - gap) <= self.floor_s or not everyone:
                    break
                middle, before = float(np.sqrt(self.floor_s * end)), self.floor_s
                self.spare(np.log([middle]))
                end = end if self.floor_s > before else middle
        assert self.best is not None
        reached = float(self.best.deadline_s or longest)
        claim = self.best.admission if self.best.scheduled.all() else NOT_PROVEN  # who may sit out is a heuristic
        bound = min(self.floor_s, reached)
        return replace(self.best, objective=reached, lower_bound=bound, admission=claim, certificate=self.proof)

    def too_short(self, deadline_s: float, proof: Certificate | None) -> None:
        """Note a deadline within which the goal is proven to be out of reach, and the proof if there is one."""
        if deadline_s > self.floor_s:
            self.floor_s, self.proof = deadline_s, None if proof is None else {"deadline_s": deadline_s} | dict(proof)

    def tradeoff(self, whole: bool, gap: float) -> Solution:
        """Least weighted sum: one convex program, or a search over the deadline, bounded by it."""
        widest = self.ask(self.problem.deadline_s)
        if not widest.scheduled.any():
            return widest
        self._keep(widest)
        on = widest.scheduled
        plain = self.plain.decided(on, None)
        part = favourable(plain.subset(on))
        weight, earliest = np.full(part.num_devices, self.goal.energy_weight_per_j), float(part.shortest_s.max())
        program = GeometricProgram(part, weight, time_weight_per_s=self.goal.time_weight_per_s)
        optimum = minimise(program, gap=min(0.1 * gap, 1e-7))
        if optimum is not None and whole and plain.access != "ofdma" and not plain.choices:
            self._keep(self._completed(plain, optimum, widest))
        else:
            with suppress(OutOfTime):
                self._scan(max(earliest, 1e-6 * part.deadline_s), float(part.weights.sum()) * (1 - 1e-12))
        assert self.best is not None
        constant = self.goal.energy_weight_per_j * float(part.circuit_j.sum())
        bound = free_bound(part, GeneralizationBound()) + self.goal.time_weight_per_s * earliest + constant
        proof: Certificate = {}  # everything at its least
        if optimum is not None and np.array_equal(self.best.scheduled, on):
            together = optimum.lower_bound + constant - 4e-15 * constant
            bound, proof = (together, optimum.certificate()) if together > bound else (bound, proof)
        elif not np.array_equal(self.best.scheduled, on):
            bound = 0.0
        return replace(self.best, lower_bound=min(bound, self.best.objective), certificate=proof)

    def _keep(self, found: Solution) -> float:
        """Value of an answer, which is kept if it is the best."""
        value = goal_value(self.problem, found, found.objective)
        if self.best is None or value < self.best.objective:
            self.best = replace(found, objective=value)
        return value

    def _scan(self, earliest_s: float, weight: float) -> None:
        low, high = np.log(min(earliest_s, self.problem.deadline_s)), np.log(self.problem.deadline_s)

        def value(log_deadline: float) -> float:
            found = self.ask(float(np.exp(log_deadline)))
            if float(self.problem.weights[found.scheduled].sum()) < weight:
                return _IMPOSSIBLE
            return self._keep(found)

        minimize_scalar(value, bounds=(low, high), method="bounded", options={"maxiter": _TRIES})

    def _completed(self, plain: ResourceProblem, optimum: Optimum, widest: Solution) -> Solution:
        """Turn a point into an allocation: dropout rates, deadline and clocks stay, band and power are spent best."""
        on, deadline = widest.scheduled, min(float(np.exp(optimum.point[0, TIME])), self.problem.deadline_s)
        at, clock = replace(plain, deadline_s=deadline), widest.cpu_hz
        if clock is not None:
            clock = clock.copy()
            slowest, fastest = at.clock_range_hz
            clock[on] = np.clip(np.exp(optimum.point[:, CLOCK]), slowest[on], fastest[on])
            at = at.at_clock(clock)
        gamma = np.clip(-np.expm1(optimum.point[:, X]), 0.0, at.max_dropout_rate)
        admission = Admission(on, widest.reasons, widest.admission == HEAVIEST)
        found = finish(at, admission, Decision(0.0, dropout_rate=gamma, nodes=1, iterations=optimum.steps), DEFAULTS)
        return replace(found, deadline_s=deadline, cpu_hz=clock)
