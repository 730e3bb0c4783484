"""Who sits out: the largest total weight that can be served together, and why the others cannot.

A device's need is smallest at max_dropout_rate, so under FDMA "who fits together" is a knapsack over b_min(max_dropout_rate).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from optimizer.fdma.bandwidth_curve import BandwidthCurve
from optimizer.problem import BoolArray, FloatArray, IntArray, ResourceProblem
from wireless.cost import compute_cycles, payload_bits
from wireless.link import LN2


@dataclass(frozen=True)
class Admission:
    """Who is scheduled (K,), one reason per device ("" for those scheduled), and whether no heavier set fits."""

    scheduled: BoolArray
    reasons: tuple[str, ...]
    exact: bool


def individual_reasons(problem: ResourceProblem, dropout_rate: FloatArray) -> list[str]:
    """Say for every device why it cannot be served alone at ``dropout_rate`` with all the bandwidth; "" where it can.

    Parameters
    ----------
    problem : ResourceProblem
        FDMA, or OFDMA: then the best subcarrier's gain over the whole band stands for the channel, which is optimistic.
    dropout_rate : ndarray
        Shape (K,).

    Returns
    -------
    list of str
        K reasons in plain words.
    """
    bits = payload_bits(problem.fixed_bits, problem.droppable_bits, dropout_rate)
    cycles = compute_cycles(problem.fixed_cycles, problem.adapter_cycles, dropout_rate)
    busy_s = payload_bits(*problem.downlink_payload, dropout_rate) / problem.downlink_rate_bps + cycles / problem.cpu_hz
    compute_j = problem.capacitance * problem.cpu_hz**2 * cycles
    gain = problem.channel_gain if problem.access == "fdma" else problem.channel_gain.max(axis=1)
    left_s = problem.deadline_s - busy_s
    left_j = np.minimum(problem.energy_budget_j - compute_j, problem.max_tx_power_w * left_s)
    most_bits = np.maximum(left_j, 0.0) * gain / (problem.noise_psd_w_per_hz * LN2)  # over unlimited bandwidth
    need_hz = BandwidthCurve.of(problem).bandwidth_hz(dropout_rate) if problem.access == "fdma" else np.zeros_like(bits)
    reasons = []
    for k, gamma in enumerate(dropout_rate):
        at = f"at dropout {gamma:.3g}"
        if left_s[k] < 0 or (left_s[k] == 0 and bits[k] > 0):
            text = (
                f"time to download and compute alone exceeds the deadline: {busy_s[k]:.4g} s of {problem.deadline_s:.4g} s {at}"
            )
        elif compute_j[k] > problem.energy_budget_j[k] or (compute_j[k] == problem.energy_budget_j[k] and bits[k] > 0):
            text = f"energy budget below computing energy: {problem.energy_budget_j[k]:.4g} J of {compute_j[k]:.4g} J {at}"
        elif bits[k] > 0 and most_bits[k] <= bits[k]:
            text = (
                f"channel too weak: its power and energy carry at most {most_bits[k]:.4g} bits over any bandwidth, "
                f"{bits[k]:.4g} bits to send {at}"
            )
        elif need_hz[k] > problem.total_bandwidth_hz:
            text = f"needs {need_hz[k]:.6g} Hz of {problem.total_bandwidth_hz:.6g} Hz {at}"
        else:
            text = ""
        reasons.append(text)
    return reasons


def admit_fdma(problem: ResourceProblem, dropout_rate: FloatArray | None = None) -> Admission:
    """Choose the heaviest set of devices whose bandwidth needs fit together.

        max sum_k n_k x_k   s.t.   sum_k b_min_k(gamma_k) x_k <= W,   x binary.

    Parameters
    ----------
    problem : ResourceProblem
        FDMA.
    dropout_rate : ndarray, optional
        Shape (K,); max_dropout_rate for everyone if left out, which is the most that can ever be served.

    Returns
    -------
    Admission
        The set, the reasons, and whether the integer program was solved to optimality.
    """
    gamma = np.full(problem.num_devices, problem.max_dropout_rate) if dropout_rate is None else dropout_rate
    need_hz, limit = BandwidthCurve.of(problem).bandwidth_hz(gamma), problem.total_bandwidth_hz
    if need_hz.sum() <= limit:  # the usual case: everyone fits, nobody needs a reason
        return Admission(np.ones(problem.num_devices, dtype=np.bool_), ("",) * problem.num_devices, True)
    reasons = individual_reasons(problem, gamma)
    alone = np.array([not reason for reason in reasons]) & (need_hz <= limit)
    chosen, exact = heaviest_fitting(problem.num_examples, np.where(alone, need_hz, np.inf), limit)
    left_hz = limit - float(need_hz[chosen].sum())
    for k in np.flatnonzero(~chosen & alone):
        reasons[k] = (
            f"does not fit beside the others: needs {need_hz[k]:.6g} Hz at dropout {gamma[k]:.3g}, "
            f"the scheduled devices leave {left_hz:.6g} Hz of {limit:.6g} Hz"
        )
    for k in np.flatnonzero(~chosen & ~alone):
        reasons[k] = reasons[k] or f"cannot be served at dropout {gamma[k]:.3g}"
    return Admission(chosen, tuple(reasons), exact)


def heaviest_fitting(weight: FloatArray, size: FloatArray, capacity: float) -> tuple[BoolArray, bool]:
    """0/1 knapsack: the subset of largest total weight whose sizes sum to at most ``capacity``; inf sizes never fit.

    Returns
    -------
    tuple
        Mask (K,), and whether it is proven to be the heaviest. Deterministic: the search ends by nodes, not by the clock.
    """
    fits = size <= capacity
    if not fits.any() or size[fits].sum() <= capacity:
        return fits, True
    index = np.flatnonzero(fits)
    greedy = _greedy(weight, size, capacity, index)
    inside, open_items = _fix_items(weight, size, capacity, index, float(weight[greedy].sum()))
    chosen, exact = greedy, True
    if open_items.size:
        rest, exact = _solve_core(weight[open_items], size[open_items], capacity - float(size[inside].sum()))
        better = np.zeros_like(fits)
        better[inside] = better[open_items[rest]] = True
        if size[better].sum() <= capacity and weight[better].sum() > weight[greedy].sum():
            chosen = better
    return chosen, exact


def _fix_items(
    weight: FloatArray, size: FloatArray, capacity: float, index: IntArray, reached: float
) -> tuple[IntArray, IntArray]:
    """Split ``index`` into items that every better set contains and items still open; the others no better set contains.

    With the density lam of the item at which the greedy fill breaks, lam capacity + sum max(w - lam s, 0) is an upper bound,
    and deciding an item against the sign of w - lam s lowers it by |w - lam s|. Where that falls below what is ``reached``
    already, the item is decided.
    """
    with np.errstate(divide="ignore"):
        order = index[np.argsort(-weight[index] / size[index], kind="stable")]
    broken = order[np.searchsorted(np.cumsum(size[order]), capacity, side="right")]
    price = weight[broken] / size[broken]
    profit = weight[index] - price * size[index]
    bound = price * capacity + float(np.maximum(profit, 0.0).sum())
    decided = bound - np.abs(profit) < reached - 1e-9 * max(1.0, reached)
    return index[decided & (profit > 0)], index[~decided]


def _solve_core(weight: FloatArray, size: FloatArray, capacity: float) -> tuple[BoolArray, bool]:
    """Heaviest subset by integer programming, and whether it is proven."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    nothing = np.zeros(size.shape, dtype=np.bool_)
    scale = max(capacity, float(size.max()))
    limit, most = capacity / scale, -1.0
    for _ in range(4):  # the solver's tolerance may let a set through that is too large: then ask for a little less
        row = LinearConstraint((size / scale)[None, :], ub=limit)
        result = milp(
            -weight, constraints=row, integrality=np.ones(size.size, dtype=np.int64), bounds=Bounds(0, 1),
            options={"mip_rel_gap": 0.0, "node_limit": 5000},
        )  # fmt: skip
        if result.x is None:
            return nothing, False
        chosen = result.x > 0.5
        reached = float(weight[chosen].sum())
        most = reached if most < 0 and result.status == 0 else most  # too large or not, nothing that fits is heavier
        excess = float(size[chosen].sum()) - capacity
        if excess <= 0:
            return chosen, reached == most
        limit -= 2 * excess / scale
    return nothing, False


def _greedy(weight: FloatArray, size: FloatArray, capacity: float, index: IntArray) -> BoolArray:
    """Take devices by weight per size while they fit."""
    chosen, used = np.zeros(size.shape, dtype=np.bool_), 0.0
    with np.errstate(divide="ignore"):
        order = index[np.argsort(-weight[index] / size[index], kind="stable")]
    for k in order:
        if used + size[k] <= capacity:
            chosen[k], used = True, used + size[k]
    return chosen
