"""OFDMA: penalised successive convex approximation with rounding and repair.

Shares x_km in [0, 1] stand in for ownership. The merit

    M(u, x, p) = sum_k phi_k(u_k) + rho sum (relative violations of deadline and power rows) + theta sum_km x_km (1 -
    x_km)

has one concave part, x (1 - x), replaced by its tangent at the current point; everything else is convex in the
variables of `relaxation`. A step is taken only if the merit itself does not rise (it is shortened until it does not),
so the merit falls monotonically while rho and theta stay. rho grows while a slack is in use, hence any start works;
theta grows until the shares are almost whole. The shares are then rounded, and repaired and improved by moves and
swaps. The certificate of the answer is that of `dual_bound`; no conic solver is trusted for it.

References
----------
[Xie2026] FedLoDrop, arXiv 2510.12078 (the problem in words).
[Scutari2014] Scutari et al., Decomposition by Partial Linearization, IEEE Trans. Signal Processing 62(3), 2014.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

import numpy as np

from optimizer.certificate import Leaf
from optimizer.checker import nobody_scheduled
from optimizer.objective import SeparableObjective
from optimizer.ofdma.admission import admit_ofdma
from optimizer.ofdma.branch_and_bound import previous_owner
from optimizer.ofdma.completion import finish
from optimizer.ofdma.dual_bound import alone_bound, maximise_bound, root_box, start_prices
from optimizer.ofdma.local_search import local_search, owned_mask, owner_values, restart, round_shares
from optimizer.ofdma.model import OfdmaModel, build_model
from optimizer.ofdma.relaxation import SharedPoint, SharedRows, rates_at, row_excess, shared_rows, solve_shared
from optimizer.problem import BoolArray, FloatArray, IntArray, ResourceProblem, Solution, SolverStatus
from optimizer.timing import keeps_time, time_is_up

_START_PENALTY, _LARGEST_PENALTY = 1.0, 1e4  # rho, in units of the mean phi
_RESTART_SHARES, _FEWEST_RESTARTS, _MOST_RESTARTS = 2000, 1, 40
_WHOLE = 1e-3  # mean of x (1 - x) per subcarrier that counts as whole


@dataclass
class PscaTrace:
    """What happened, one entry per accepted step: merit before and after it, and the penalties rho and theta during it.

    ``failed`` counts the steps whose convex program got no answer from the conic solver.
    """

    before: list[float] = field(default_factory=list)
    after: list[float] = field(default_factory=list)
    penalty: list[float] = field(default_factory=list)
    integrality: list[float] = field(default_factory=list)
    failed: int = 0


def merit(model: OfdmaModel, rows: SharedRows, point: SharedPoint, penalty: float, integrality: float) -> float:
    """M at a point, see the module's formula."""
    convex = model.convex_on(rows.low, np.full_like(rows.low, rows.high))
    value = convex.value(rates_at(model, rows, point.u), np.arange(model.num_devices)).sum()
    fraction = np.sum(point.share * (1.0 - point.share))
    return float(value + penalty * row_excess(rows, point).sum() + integrality * fraction)


def take_step(
    model: OfdmaModel, rows: SharedRows, point: SharedPoint, penalty: float, integrality: float, trace: PscaTrace
) -> SharedPoint | None:
    """One convex program and a step towards its point that does not raise the merit; None when there is no such step."""
    aim = solve_shared(model, rows, point, integrality * (1.0 - 2.0 * point.share), penalty)
    if aim is None:
        trace.failed += not time_is_up()
        return None
    before = merit(model, rows, point, penalty, integrality)
    for step in (1.0, 0.5, 0.25, 0.1, 0.03, 0.01):
        trial = point.towards(aim, step)
        after = merit(model, rows, trial, penalty, integrality)
        if after <= before:
            trace.before.append(before)
            trace.after.append(after)
            trace.penalty.append(penalty)
            trace.integrality.append(integrality)
            return trial
    return None


def approximate(
    model: OfdmaModel, point: SharedPoint, *, max_steps: int = 8, trace: PscaTrace | None = None
) -> SharedPoint:
    """Run the steps: first without theta (the relaxation), then with theta doubling from a fifth of a subcarrier's worth.

    Parameters
    ----------
    model : OfdmaModel
        Every device must be served by the whole band.
    point : SharedPoint
        Any start.
    max_steps : int
        Convex programs.
    trace : PscaTrace, optional
        Filled with merits and penalties.

    Returns
    -------
    SharedPoint
        The last accepted point.
    """
    trace = PscaTrace() if trace is None else trace
    rows, device = shared_rows(model), np.arange(model.num_devices)
    unit = float(model.value(np.full_like(rows.low, rows.high), device).mean())
    worth = float((model.value(np.full_like(rows.low, rows.high), device) - model.value(rows.low, device)).sum())
    penalty, integrality = _START_PENALTY * unit, 0.0
    for _ in range(max_steps):
        moved = take_step(model, rows, point, penalty, integrality, trace)
        if moved is None and integrality == 0.0 and penalty >= _LARGEST_PENALTY * unit:
            break
        point = point if moved is None else moved
        if time_is_up():
            break
        if row_excess(rows, point).max() > 1e-4 and penalty < _LARGEST_PENALTY * unit:
            penalty *= 10.0
            continue
        fraction = float(np.sum(point.share * (1.0 - point.share))) / model.num_subcarriers
        if fraction < _WHOLE:
            break
        integrality = 2.0 * integrality if integrality > 0 else 0.02 * worth / model.num_subcarriers
    return point


def start_point(model: OfdmaModel, owner: IntArray | None) -> SharedPoint:
    """Even shares at gamma_max, or an ownership's shares; powers even over what a device holds."""
    count, width = model.inv_snr.shape
    share = np.full((count, width), 1.0 / count)
    if owner is not None:
        share = 0.9 * owned_mask(owner, count) + 0.1 * share
    power = share * (width / count) / np.maximum(share.sum(axis=1, keepdims=True), 1e-12)
    return SharedPoint(np.zeros(count), share, power)


def price_bound(model: OfdmaModel) -> tuple[Leaf, FloatArray]:
    """Lower bound of `dual_bound` for the model's devices, whatever the approximation did, and the shares (K, M) it leaves."""
    box = root_box(model)
    point, share = maximise_bound(model, box, start_prices(model, box))
    trivial = float(model.value(box.low, np.arange(model.num_devices)).sum())
    return (alone_bound(model, box) if trivial > point.bound else point.leaf()), share


@keeps_time
def solve_psca_ofdma(
    problem: ResourceProblem,
    objective: SeparableObjective | None = None,
    *,
    time_limit_s: float = 10.0,
    gap: float = 1e-4,
    warm_start: Solution | None = None,
    scheduled: BoolArray | None = None,
    trace: PscaTrace | None = None,
) -> Solution:
    """Admit devices and share the subcarriers by P-SCA, then round and repair.

    Parameters
    ----------
    problem : ResourceProblem
        OFDMA.
    objective : SeparableObjective, optional
        Any phi with a curvature floor; the generalization bound when left out.
    time_limit_s : float
        Wall time [s] after which no further step is tried.
    gap : float
        Relative gap to the certificate at which the status is OPTIMAL.
    warm_start : Solution, optional
        An earlier answer; its ownership is the start.
    scheduled : ndarray, optional
        (K,) bool, who may take part.
    trace : PscaTrace, optional
        Filled with merits and penalties.

    Returns
    -------
    Solution
        ``iterations`` accepted steps.
    """
    begin = time.perf_counter()
    trace = PscaTrace() if trace is None else trace
    earlier = previous_owner(problem, warm_start)
    fit = admit_ofdma(build_model(problem, objective), scheduled, earlier)
    if not fit.admission.scheduled.any():
        return nobody_scheduled(
            problem, "psca", fit.admission.reasons, time.perf_counter() - begin, fit.admission.claim
        )
    model = fit.model
    start = start_point(model, fit.owner if earlier is not None else None)
    point = approximate(model, start, trace=trace)
    leaf, share = price_bound(model)
    owner = best_rounding(model, [round_shares(model, point.share), round_shares(model, share), fit.owner])
    # Cells of a few dozen shares are where one local optimum is far from the next; there restarts cost least, too.
    restarts = int(np.clip(_RESTART_SHARES // model.inv_snr.size, _FEWEST_RESTARTS, _MOST_RESTARTS))
    owner, _ = restart(
        model, owner, np.random.default_rng(0), restarts, good_enough=leaf.bound * (1 + gap), shuffle=True
    )
    solution = finish(
        model,
        owner,
        method="psca",
        status=SolverStatus.FEASIBLE,
        lower_bound=-np.inf,
        admission=fit.admission,
        certificate=leaf.certificate(),
        iterations=len(trace.after),
    )
    bound = min(leaf.bound, solution.objective)
    status = (
        SolverStatus.OPTIMAL if solution.objective - bound <= gap * abs(solution.objective) else SolverStatus.FEASIBLE
    )
    said = f"the convex subproblem failed in {trace.failed} steps: the price bound's shares and local search gave the answer"
    notes = (said,) if trace.failed else ()
    return replace(solution, lower_bound=bound, status=status, notes=notes, solve_time_s=time.perf_counter() - begin)


def best_rounding(model: OfdmaModel, owners: list[IntArray]) -> IntArray:
    """Improve every ownership by moves and swaps and keep the best; the last one serves everyone, whatever the time."""
    best, value = owners[-1], np.inf
    for owner in owners:
        if time_is_up():
            break
        trial, found = local_search(model, owner)
        if found.sum() < value:
            best, value = trial, float(found.sum())
    return best if value <= owner_values(model, owners[-1]).sum() else owners[-1]
