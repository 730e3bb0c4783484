"""Branch and bound for FDMA over boxes of dropout rates: the global optimum for any separable objective.

A node is a box [low, high] with two bounds. One is the certified optimum of the convex problem in which every phi_k is
replaced by its under-estimator on the box (`optimizer.objective`); it is exact where all phi_k are convex, and useless
on wide boxes of a wavy one, where what K under-estimators lack adds up. The other is the dual value: at a price mu on
bandwidth every device minimises phi_k + mu b_min,k over narrow cells of its interval. Its gap is that of the few
devices whose answer jumps at the best price, whatever K [Aubin1976]; such a device is split between its two answers.
Candidates are the first relaxation's point and the optimum within the valleys that the price selects.

For a convex objective the root's bound meets its candidate: that node is the exact method's (`optimizer.fdma.exact`).

References
----------
[Aubin1976] Aubin and Ekeland, Estimates of the duality gap in nonconvex optimization, Mathematics of Operations
Research 1(3), 1976.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from operator import itemgetter
from typing import Any

import numpy as np

from optimizer.branch_and_bound import SearchResult, branch_and_bound
from optimizer.fdma.bandwidth_curve import BandwidthCurve
from optimizer.fdma.completion import on_admitted
from optimizer.fdma.exact import DualResult, decide_exactly, solve_box
from optimizer.objective import ConvexUnderestimator, SeparableObjective, is_convex
from optimizer.problem import FloatArray, InfeasibleProblemError, IntArray, ResourceProblem, Solution
from optimizer.solver_interface import DEFAULTS, Arguments, Decision
from optimizer.timing import time_is_up

_LARGEST_LOG, _HALVINGS = 50.0, 40  # of a price [1/Hz]; of its bracket


@dataclass
class RateBox:
    """Dropout rates from ``low`` to ``high`` (K,); ``point`` is the relaxed optimum, short by ``deficit``.

    ``answers``: cells (K,) that a price slightly too low and one slightly too high select.
    """

    low: FloatArray
    high: FloatArray
    point: FloatArray | None = None
    deficit: FloatArray | None = None
    answers: tuple[IntArray, IntArray] | None = None


def best_price(
    answer: Callable[[float], tuple[float, IntArray, float]], total_hz: float, best: float
) -> tuple[float, tuple[IntArray, IntArray]]:
    """Largest dual value found by halving a price's logarithm, and the answers on both sides of the best price.

    ``answer``: price [1/Hz] -> dual value, the devices' answers, the bandwidth that they take. Ends early at ``best``.
    """
    lower, dear, demand = answer(0.0)
    cheap, ends = dear, (-_LARGEST_LOG, _LARGEST_LOG)
    if demand <= total_hz:
        return lower, (dear, dear)
    for _ in range(_HALVINGS):
        middle = 0.5 * (ends[0] + ends[1])
        value, found, demand = answer(float(np.exp(middle)))
        lower = max(lower, value)
        if demand <= total_hz:
            ends, dear = (ends[0], middle), found
        else:
            ends, cheap = (middle, ends[1]), found
        if lower >= best or time_is_up():
            break
    return lower, (cheap, dear)


class _Cells:
    """phi_k and b_min,k at the ends of narrow cells of [0, max_dropout_rate], (N + 1, K) each."""

    def __init__(self, curve: BandwidthCurve, objective: SeparableObjective) -> None:
        problem = curve.problem
        count = int(np.clip(400_000 // problem.num_devices, 32, 1024))
        self.total_hz, self.width = problem.total_bandwidth_hz, problem.max_dropout_rate / count
        self.edge = np.linspace(0.0, problem.max_dropout_rate, count + 1)[:, None] + np.zeros(problem.num_devices)
        self.band, self.band_slope = curve.bandwidth_and_slope(self.edge)
        self.value, slope = objective.value(problem, self.edge), objective.derivative(problem, self.edge)
        floor = np.stack([objective.curvature_floor(problem, *ends) for ends in pairwise(self.edge)])
        tilt = 0.5 * np.maximum(-floor, 0.0) * self.width  # of the under-estimator on a cell
        self.left, self.right, self.convex = slope[:-1] - tilt, slope[1:] + tilt, floor >= 0

    def bound(self, low: FloatArray, high: FloatArray, best: float) -> tuple[float, tuple[IntArray, IntArray]]:
        """Largest dual value found over [low, high], less its rounding, and the cells on both sides of the best price.

        On a cell phi + mu b is at least the larger of the tangents to its under-estimator at both ends.
        """
        outside = (self.edge[1:] <= low) | (self.edge[:-1] >= high)

        def answer(price: float) -> tuple[float, IntArray, float]:
            with np.errstate(all="ignore"):
                ends = self.value + price * self.band
                a, b = ends[:-1], ends[1:]
                left, right = self.left + price * self.band_slope[:-1], self.right + price * self.band_slope[1:]
                step = np.clip((b - a - right * self.width) / (left - right), 0.0, self.width)
                least = np.where(left >= 0, a, np.where(right <= 0, b, a + left * step))
                least = np.where(np.isfinite(a), least, b - np.maximum(right, 0.0) * self.width)
            least = np.where(outside | np.isnan(least), np.inf, least)
            cell = least.argmin(axis=0)
            found, band = (np.take_along_axis(part, cell[None], axis=0) for part in (least, self.band[1:]))
            paid = price * self.total_hz
            value = float(found.sum()) - paid - 1e-13 * float(np.abs(found).sum() + paid)
            return value, cell, float(band.sum())

        return best_price(answer, self.total_hz, best)

    def ridge(self, one: IntArray, other: IntArray) -> tuple[int, float]:
        """Device whose two answers differ most in value, and a dropout rate between them."""
        columns = np.arange(len(one))
        jump = np.abs(self.value[one, columns] - self.value[other, columns]) + 1e-300
        jump *= np.abs(one - other) > 1
        k = int(np.argmax(jump))
        return k, float(self.edge[(one[k] + other[k] + 1) // 2, k])

    def valleys(self, cell: IntArray) -> tuple[FloatArray, FloatArray]:
        """Ends (K,) of the widest intervals around cells (K,) on which phi_k is convex."""
        number, columns = np.arange(len(self.convex))[:, None], np.arange(len(cell))
        bent = ~self.convex
        first = np.where(bent & (number < cell), number + 1, 0).max(axis=0)
        last = np.where(bent & (number > cell), number - 1, len(bent) - 1).min(axis=0)
        alone = bent[cell, columns]
        first, last = np.where(alone, cell, first), np.where(alone, cell, last)
        return self.edge[first, columns], self.edge[last + 1, columns]


class _Boxes:
    def __init__(self, problem: ResourceProblem, objective: SeparableObjective) -> None:
        self.problem, self.objective, self.curve = problem, objective, BandwidthCurve(problem)
        self.cells = _Cells(self.curve, objective)

    def relax(self, low: FloatArray, high: FloatArray) -> tuple[DualResult, ConvexUnderestimator]:
        """Minimise the under-estimators over a box."""
        convex = ConvexUnderestimator(self.problem, self.objective, low, high)
        return solve_box(self.curve, convex, low, high), convex

    def bound(self, node: RateBox, best: float) -> tuple[float, RateBox]:
        """Return the larger of both bounds."""
        try:
            found, convex = self.relax(node.low, node.high)
        except InfeasibleProblemError:
            return np.inf, node
        node.point, node.deficit = found.dropout_rate, convex.deficit(found.dropout_rate)
        if found.lower_bound >= best:
            return found.lower_bound, node
        lower, node.answers = self.cells.bound(node.low, node.high, best)
        return max(lower, found.lower_bound), node

    def candidate(self, node: RateBox) -> tuple[float, FloatArray] | None:
        """Return the better of the relaxation's point and the optimum in the valleys around the dearer answer."""
        points = [] if node.point is None else [node.point]
        if node.answers is not None:
            with suppress(InfeasibleProblemError):
                points.append(self.relax(*self.cells.valleys(node.answers[1]))[0].dropout_rate)
        priced = [(float(self.objective.value(self.problem, each).sum()), each) for each in points]
        return min(priced, key=itemgetter(0), default=None)

    def split(self, node: RateBox) -> list[RateBox]:
        """Split a device between its two answers, or where its under-estimator lacks most."""
        if node.point is None or node.deficit is None or not node.deficit.max() > 0:
            return []
        k = int(np.argmax(node.deficit))
        width = node.high[k] - node.low[k]
        # At the point itself the parts are exact; not too near an end, so that both shrink.
        at = float(np.clip(node.point[k], node.low[k] + 0.1 * width, node.high[k] - 0.1 * width))
        if node.answers is not None and np.ptp(node.answers, axis=0).max() > 1:
            k, at = self.cells.ridge(*node.answers)
        left, right = node.high.copy(), node.low.copy()
        left[k] = right[k] = at
        return [RateBox(node.low, left), RateBox(right, node.high)]


def search_rates(
    problem: ResourceProblem,
    objective: SeparableObjective,
    *,
    start: FloatArray | None = None,
    gap: float = 1e-4,
    max_nodes: int | None = None,
) -> SearchResult[FloatArray]:
    """Minimise sum phi_k over the dropout rates that fit together; the devices fit together at max_dropout_rate.

    ``start``: dropout rates (K,) that fit, as first incumbent.
    """
    known = None if start is None else (float(objective.value(problem, start).sum()), start)
    root = RateBox(np.zeros(problem.num_devices), problem.highest_rates)
    boxes = _Boxes(problem, objective)
    steps: dict[str, Any] = {"bound": boxes.bound, "candidate": boxes.candidate, "split": boxes.split}
    return branch_and_bound(root, **steps, start=known, gap=gap, max_nodes=max_nodes)


def _decide(part: ResourceProblem, arguments: Arguments, earlier: FloatArray | None) -> Decision:
    """Search, from an earlier answer that still fits; the exact method where nothing has to be searched."""
    if is_convex(part, arguments.objective):
        return decide_exactly(part, arguments, earlier)
    fits = earlier is not None and BandwidthCurve(part).bandwidth_hz(earlier).sum() <= part.total_bandwidth_hz
    found = search_rates(part, arguments.objective, start=earlier if fits else None, gap=arguments.gap)
    if found.answer is None:  # cannot be: the root's relaxation has a point where the admitted fit together
        raise InfeasibleProblemError("the admitted devices do not fit together")
    return Decision(found.lower_bound, dropout_rate=found.answer, nodes=found.nodes)


def solve_bnb_fdma(problem: ResourceProblem, arguments: Arguments = DEFAULTS) -> Solution:
    """Admit the heaviest fleet that fits and find its global optimum, whether phi_k is convex or not.

    ``nodes`` is 1 when the relaxation was tight at the root.
    """
    return on_admitted(problem, arguments, _decide)
