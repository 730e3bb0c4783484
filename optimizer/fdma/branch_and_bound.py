"""Branch and bound for FDMA over boxes of dropout rates: the global optimum for any separable objective.

A node is a box [low, high]. Its bound is the certified optimum of the convex problem in which every phi_k is replaced
by its under-estimator on the box (`optimizer.objective`); its candidate is that optimum's point, priced with the true
phi_k. The box is split where the under-estimator is loosest. For a convex objective the under-estimator is the
objective: the root's bound meets its candidate and the search ends there, with one node. That is hidden convexity at
work, not luck.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from optimizer.branch_and_bound import SearchResult, branch_and_bound
from optimizer.fdma.bandwidth_curve import BandwidthCurve
from optimizer.fdma.completion import on_admitted
from optimizer.fdma.exact import decide_exactly, solve_box
from optimizer.method import DEFAULTS, Arguments, Decision
from optimizer.objective import ConvexUnderestimator, SeparableObjective, is_convex
from optimizer.problem import FloatArray, InfeasibleProblemError, ResourceProblem, Solution


@dataclass(frozen=True)
class RateBox:
    """Dropout rates from ``low`` to ``high`` (K,); ``point`` is the relaxed optimum, short by ``deficit``."""

    low: FloatArray
    high: FloatArray
    point: FloatArray | None = None
    deficit: FloatArray | None = None


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
    curve = BandwidthCurve.of(problem)

    def bound(node: RateBox, best: float) -> tuple[float, RateBox]:
        convex = ConvexUnderestimator.on_box(problem, objective, node.low, node.high)
        try:
            found = solve_box(problem, convex, node.low, node.high, curve)
        except InfeasibleProblemError:
            return np.inf, node
        return found.lower_bound, replace(node, point=found.dropout_rate, deficit=convex.deficit(found.dropout_rate))

    def candidate(node: RateBox) -> tuple[float, FloatArray] | None:
        return None if node.point is None else (float(objective.value(problem, node.point).sum()), node.point)

    def split(node: RateBox) -> list[RateBox]:
        if node.point is None or node.deficit is None or not node.deficit.max() > 0:
            return []
        k = int(np.argmax(node.deficit))
        width = node.high[k] - node.low[k]
        # At the point itself the parts are exact; not too near an end, so that both shrink.
        at = float(np.clip(node.point[k], node.low[k] + 0.1 * width, node.high[k] - 0.1 * width))
        left, right = node.high.copy(), node.low.copy()
        left[k] = right[k] = at
        return [RateBox(node.low, left), RateBox(right, node.high)]

    known = None if start is None else (float(objective.value(problem, start).sum()), start)
    root = RateBox(np.zeros(problem.num_devices), np.full(problem.num_devices, problem.max_dropout_rate))
    return branch_and_bound(
        root, bound=bound, candidate=candidate, split=split, start=known, gap=gap, max_nodes=max_nodes
    )


def _decide(part: ResourceProblem, arguments: Arguments, earlier: FloatArray | None) -> Decision:
    """Search, from an earlier answer that still fits; the exact method where nothing has to be searched."""
    if is_convex(part, arguments.objective):
        return decide_exactly(part, arguments, earlier)
    fits = earlier is not None and BandwidthCurve.of(part).bandwidth_hz(earlier).sum() <= part.total_bandwidth_hz
    found = search_rates(part, arguments.objective, start=earlier if fits else None, gap=arguments.gap)
    if found.answer is None:  # the root's relaxation always has a point when the fleet fits
        raise InfeasibleProblemError("the admitted devices do not fit together; this is a defect of the admission")
    return Decision(found.lower_bound, dropout_rate=found.answer, nodes=found.nodes)


def solve_bnb_fdma(problem: ResourceProblem, arguments: Arguments = DEFAULTS) -> Solution:
    """Admit the heaviest fleet that fits and find its global optimum, whether phi_k is convex or not.

    ``nodes`` is 1 when the relaxation was tight at the root.
    """
    return on_admitted(problem, arguments, _decide)
