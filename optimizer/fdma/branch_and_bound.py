"""Branch and bound for FDMA over boxes of dropout rates: the global optimum for any separable objective.

A node is a box [low, high]. Its bound is the certified optimum of the convex problem in which every phi_k is replaced
by its under-estimator on the box (`optimizer.objective`); its candidate is that optimum's point, priced with the true
phi_k. The box is split where the under-estimator is loosest. For a convex objective the under-estimator is the
objective: the root's bound meets its candidate and the search ends there, with one node. That is hidden convexity at
work, not luck.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np

from optimizer.branch_and_bound import SearchResult, branch_and_bound
from optimizer.checker import nobody_scheduled
from optimizer.fdma.admission import admit_fdma
from optimizer.fdma.bandwidth_curve import BandwidthCurve
from optimizer.fdma.completion import finish
from optimizer.fdma.exact import exact_on, solve_box
from optimizer.objective import ConvexUnderestimator, GeneralizationBound, SeparableObjective, is_convex
from optimizer.problem import FloatArray, InfeasibleProblemError, ResourceProblem, Solution, SolverStatus
from optimizer.timing import keeps_time


@dataclass(frozen=True)
class RateBox:
    """Dropout rates between ``low`` and ``high`` (K,); once bounded, ``point`` is the relaxed optimum, short by ``deficit``."""

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
    """Minimise sum phi_k over the dropout rates that fit together; every device takes part.

    Parameters
    ----------
    problem : ResourceProblem
        FDMA; the devices fit together at max_dropout_rate.
    objective : SeparableObjective
        Any phi_k with a curvature floor.
    start : ndarray, optional
        Dropout rates (K,) that fit, as first incumbent.
    gap, max_nodes
        See `optimizer.branch_and_bound.branch_and_bound`.

    Returns
    -------
    SearchResult
        Best dropout rates, their value, certified lower bound, nodes.
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


@keeps_time
def solve_bnb_fdma(
    problem: ResourceProblem,
    *,
    objective: SeparableObjective | None = None,
    time_limit_s: float = 10.0,
    gap: float = 1e-4,
    warm_start: Solution | None = None,
) -> Solution:
    """Admit the heaviest fleet that fits and find its global optimum.

    Parameters
    ----------
    problem : ResourceProblem
        FDMA.
    objective : SeparableObjective, optional
        Any phi_k, convex or not; the generalization bound if left out.
    time_limit_s : float
        Wall time after which the best answer is returned with the bound reached [s].
    gap : float
        Relative gap at which the search stops.
    warm_start : Solution, optional
        An earlier answer; it is the first incumbent where it still fits.

    Returns
    -------
    Solution
        OPTIMAL within ``gap``, or TIME_LIMIT; ``nodes`` is 1 when the relaxation was tight at the root.
    """
    began, chosen = time.perf_counter(), objective or GeneralizationBound()
    admission = admit_fdma(problem)
    on = admission.scheduled
    if not on.any():
        return nobody_scheduled(problem, "bnb", admission.reasons, time.perf_counter() - began, admission.claim)
    part = problem.subset(on)
    if is_convex(part, chosen):
        return exact_on(problem, admission, objective, gap=gap, method="bnb", began=began)
    curve = BandwidthCurve.of(part)
    start = None
    if warm_start is not None and warm_start.scheduled.shape == on.shape and (warm_start.scheduled | ~on).all():
        earlier = np.clip(warm_start.dropout_rate[on], 0.0, problem.max_dropout_rate)
        start = earlier if curve.bandwidth_hz(earlier).sum() <= problem.total_bandwidth_hz else None
    found = search_rates(part, chosen, start=start, gap=gap)
    if found.answer is None:  # the root's relaxation always has a point when the fleet fits
        raise InfeasibleProblemError("the admitted devices do not fit together; this is a defect of the admission")
    close = found.value - found.lower_bound <= gap * max(abs(found.value), 1e-12)
    status = SolverStatus.OPTIMAL if close else SolverStatus.FEASIBLE if found.finished else SolverStatus.TIME_LIMIT
    return finish(
        problem,
        admission,
        found.answer,
        method="bnb",
        status=status,
        began=began,
        lower_bound=found.lower_bound,
        nodes=found.nodes,
        objective=objective,
    )
