"""Who sits out: the largest total weight that can be served together, and why the others cannot.

A device's need is smallest at max_dropout_rate, so under FDMA "who fits together" is a knapsack over
b_min(max_dropout_rate).
"""

import bisect
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from optimizer.certificate import HEAVIEST, NOT_PROVEN, can_be_verified, shortened
from optimizer.fdma.bandwidth_curve import BandwidthCurve
from optimizer.feasibility import make_solution, nobody_scheduled
from optimizer.problem import BoolArray, FloatArray, IntArray, ResourceProblem, Solution
from optimizer.solver_interface import Arguments, Decision
from optimizer.timing import time_is_up
from wireless.link import LN2

_MOST_STEPS = 100_000  # of the search for the heaviest set


@dataclass(frozen=True)
class Admission:
    """Who is scheduled (K,), one reason per device ("" for those scheduled), and whether no heavier set fits."""

    scheduled: BoolArray
    reasons: tuple[str, ...]
    exact: bool

    @property
    def claim(self) -> str:
        """What a solution says about it."""
        return HEAVIEST if self.exact else NOT_PROVEN

    def nobody(self, problem: ResourceProblem) -> Solution:
        """Return the answer that nobody can be served."""
        return nobody_scheduled(problem, reasons=self.reasons, admission=self.claim)

    def complete(
        self, problem: ResourceProblem, decision: Decision, arguments: Arguments, *, rate: FloatArray, **others: Any
    ) -> Solution:
        """Return the `Solution` that follows from a decision: dropout rates (K,) and ``others`` of the whole fleet.

        The certificate is left out where the verifier cannot know the objective.
        """
        value = float(arguments.objective.value(problem, rate)[self.scheduled].sum())
        proof = decision.certificate if can_be_verified(arguments.objective) else None
        return make_solution(
            problem,
            method="",
            status=decision.status or arguments.status(value, decision.lower_bound),
            scheduled=self.scheduled,
            dropout_rate=rate,
            lower_bound=decision.lower_bound,
            nodes=decision.nodes,
            iterations=decision.iterations,
            reasons=self.reasons,
            notes=decision.notes,
            objective=arguments.objective,
            certificate=shortened(proof, rate[self.scheduled]),
            admission=self.claim,
            **others,
        )


def rank(problem: ResourceProblem, solution: Solution) -> tuple[float, float]:
    """By what answers are compared, the least first: more weight served, then the lower objective."""
    return -round(float(problem.weights[solution.scheduled].sum()), 12), solution.objective


def individual_reasons(problem: ResourceProblem, dropout_rate: FloatArray) -> list[str]:
    """Say for every device why it cannot be served alone at ``dropout_rate`` (K,) with all the band; "" where it can.

    Under OFDMA the best subcarrier's gain over the whole band stands for the channel, which is optimistic.
    """
    ofdma, bits, cycles = problem.access == "ofdma", problem.uplink_bits(dropout_rate), problem.cycles(dropout_rate)
    busy_s = problem.download_s(dropout_rate) + cycles / problem.cpu_hz
    compute_j = problem.capacitance * problem.cpu_hz**2 * cycles + problem.circuit_j
    gain = problem.channel_gain.max(axis=1) if ofdma else problem.channel_gain
    left_s = problem.deadline_s - busy_s
    left_j = np.minimum(problem.energy_budget_j - compute_j, problem.max_tx_power_w * left_s)
    most_bits = np.maximum(left_j, 0.0) * gain / (problem.noise_psd_w_per_hz * LN2)  # over unlimited bandwidth
    need_hz = np.zeros_like(bits) if ofdma else BandwidthCurve(problem).bandwidth_hz(dropout_rate)

    def reason(k: int, gamma: float) -> str:
        at, sends, budget_j = f"at dropout {gamma:.3g}", bits[k] > 0, problem.energy_budget_j[k]
        if left_s[k] < 0 or (left_s[k] == 0 and sends):
            spent = f"{busy_s[k]:.4g} s of {problem.deadline_s:.4g} s"
            return f"time to download and compute alone exceeds the deadline: {spent} {at}"
        if compute_j[k] > budget_j or (compute_j[k] == budget_j and sends):
            return f"energy budget below computing energy: {budget_j:.4g} J of {compute_j[k]:.4g} J {at}"
        if sends and most_bits[k] <= bits[k]:
            most = f"at most {most_bits[k]:.4g} bits over any bandwidth, {bits[k]:.4g} bits to send"
            return f"channel too weak: its power and energy carry {most} {at}"
        if need_hz[k] > problem.total_bandwidth_hz:
            return f"needs {need_hz[k]:.6g} Hz of {problem.total_bandwidth_hz:.6g} Hz {at}"
        return ""

    return [reason(k, gamma) for k, gamma in enumerate(dropout_rate)]


def admit_fdma(problem: ResourceProblem, dropout_rate: FloatArray | None = None) -> Admission:
    """Choose the heaviest set of devices whose bandwidth needs fit together.

        max sum_k n_k x_k   s.t.   sum_k b_min_k(gamma_k) x_k <= W,   x binary.

    ``dropout_rate`` (K,) is max_dropout_rate if left out, which is the most that can ever be served.
    """
    gamma = problem.highest_rates if dropout_rate is None else dropout_rate
    need_hz, limit = BandwidthCurve(problem).bandwidth_hz(gamma), problem.total_bandwidth_hz
    if need_hz.sum() <= limit:  # the usual case: everyone fits, nobody needs a reason
        return Admission(np.ones(problem.num_devices, dtype=np.bool_), ("",) * problem.num_devices, True)
    reasons = individual_reasons(problem, gamma)
    alone = np.array([not reason for reason in reasons]) & (need_hz <= limit)
    chosen, exact = heaviest_fitting(problem.num_examples, np.where(alone, need_hz, np.inf), limit)
    left = f"the scheduled devices leave {limit - float(need_hz[chosen].sum()):.6g} Hz of {limit:.6g} Hz"
    for k in np.flatnonzero(~chosen):
        if alone[k]:
            need = f"needs {need_hz[k]:.6g} Hz at dropout {gamma[k]:.3g}"
            reasons[k] = f"does not fit beside the others: {need}, {left}"
        reasons[k] = reasons[k] or f"cannot be served at dropout {gamma[k]:.3g}"
    return Admission(chosen, tuple(reasons), exact and dropout_rate is None)


def heaviest_fitting(weight: FloatArray, size: FloatArray, capacity: float) -> tuple[BoolArray, bool]:
    """0/1 knapsack: the subset of largest total weight whose sizes sum to at most ``capacity``; inf sizes never fit.

    Depth first, the densest item first and inside first (so the first answer is the greedy one); a branch ends where
    filling the room that is left with fractions of items is no better than the best answer. Returns a mask (K,) and
    whether it is proven to be the heaviest.
    """
    fits = size <= capacity
    if not fits.any() or size[fits].sum() <= capacity:
        return fits, True
    index = np.flatnonzero(fits)
    with np.errstate(divide="ignore"):
        index = index[np.argsort(-weight[index] / size[index], kind="stable")]
    each, value = size[index].tolist(), weight[index].tolist()
    filled, worth = [0.0, *np.cumsum(each).tolist()], [0.0, *np.cumsum(value).tolist()]
    whole = bool((weight == np.floor(weight)).all())
    best, taken, slack, steps, proven = -1.0, index[:0], 1e-14 * capacity, 0, True
    stack: list[tuple[int, float, float, tuple[Any, ...]]] = [(0, capacity, 0.0, ())]
    while stack:
        at, room, gained, path = stack.pop()
        end = max(bisect.bisect_right(filled, filled[at] + room + slack) - 1, at)  # items from ``at`` fit up to here
        most = gained + worth[end] - worth[at]
        if most > best:
            best, taken = most, _unfold(path, index, at, end)
        if steps >= _MOST_STEPS or (steps % 1000 == 0 and time_is_up()):
            proven = False
            break
        steps += 1
        if end == len(each):
            continue
        most += value[end] * max(room - (filled[end] - filled[at]), 0.0) / each[end]
        if (math.floor(most * (1 + 1e-14)) if whole else most * (1 + 1e-14)) <= best:
            continue
        # The items up to ``end`` are inside or one of them, the first from the right, is out: branch on the last.
        for out in range(at, end + 1):
            inside = filled[out] - filled[at]
            stack.append((out + 1, room - inside, gained + worth[out] - worth[at], (path, at, out)))
    return np.isin(np.arange(size.size), taken), proven


def _unfold(path: tuple[Any, ...], index: IntArray, at: int, end: int) -> IntArray:
    """Items of a branch: runs of neighbours, each followed by one that is out."""
    runs = [index[at:end]]
    while path:
        path, first, out = path
        runs.append(index[first:out])
    return np.concatenate(runs)
