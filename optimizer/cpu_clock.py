"""Option: the CPU clock as a variable, f_k in [f_min, f_max], beside dropout rate, bandwidth and power (FDMA).

A slower clock saves energy (kappa f^2 per cycle), which the radio may spend, and costs time, which it lacks. In terms of the
computing time t = C/f the energy left is E - kappa C^3/t^2, jointly concave in (gamma, t), and the uplink time is affine, so
for every gamma the best clock minimises a quasi-convex function: one more scalar root per device. What remains is again
"phi against the smallest bandwidth", B(gamma) = min_f b_min(gamma, f), with slope by the envelope theorem.

B falls in gamma. That it is also convex is checked numerically (tests), not proven; so the certificate does not use it: over
[gamma_a, gamma_b] above the minimiser of phi, phi(gamma_a) + mu B(gamma_b) is a bound for any price mu.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, replace

import numpy as np

from optimizer.admission import admit_fdma
from optimizer.bandwidth import BandwidthCurve
from optimizer.bound import GeneralizationBound, SeparableObjective
from optimizer.completion import finish
from optimizer.evaluation import nobody_scheduled
from optimizer.fdma import solve_box
from optimizer.problem import FloatArray, ResourceProblem, Solution, SolverStatus
from optimizer.rootfinding import increasing_root
from wireless.cost import compute_cycles, payload_bits
from wireless.link import LN2, log_mean_exp_slope, spectral_efficiency_nats


@dataclass(frozen=True)
class ClockCurve:
    """B(gamma) of K devices whose clocks lie in [min_hz, max_hz] (K,); drop-in for `BandwidthCurve` in `solve_box`."""

    problem: ResourceProblem
    min_hz: FloatArray
    max_hz: FloatArray

    @property
    def max_dropout_rate(self) -> float:
        """Right end of every curve."""
        return self.problem.max_dropout_rate

    def at(self, cpu_hz: FloatArray) -> BandwidthCurve:
        """Return b_min at given clocks (K,)."""
        return BandwidthCurve.of(replace(self.problem, cpu_hz=cpu_hz))

    def best_clock_hz(self, dropout_rate: FloatArray) -> FloatArray:
        """Clock (K,) [Hz] that needs the least bandwidth at ``dropout_rate``.

        The sign of d ln b_min/dt = 1/tau - (d ln epsilon/dt)/(F'(L) L) changes once, from - (starved of energy) to + (of time).
        """
        p, cycles = self.problem, compute_cycles(self.problem.fixed_cycles, self.problem.adapter_cycles, dropout_rate)
        bits = payload_bits(p.fixed_bits, p.droppable_bits, dropout_rate)
        free_s = p.deadline_s - payload_bits(*p.downlink_payload, dropout_rate) / p.downlink_rate_bps
        with np.errstate(divide="ignore", over="ignore"):
            least_j = bits * LN2 * p.noise_psd_w_per_hz / p.channel_gain  # to carry the bits over unlimited bandwidth

        def slope(busy_s: FloatArray) -> FloatArray:
            left_s = free_s - busy_s
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                left_j = p.energy_budget_j - p.capacitance * cycles**3 / busy_s**2
                cap_j = p.max_tx_power_w * left_s
                energy = np.minimum(left_j, cap_j)
                efficiency = spectral_efficiency_nats(np.where(energy > least_j, np.log(energy / least_j), 1.0))
                energy_slope = np.where(left_j < cap_j, 2 * p.capacitance * cycles**3 / busy_s**3, -p.max_tx_power_w)
                value = 1 / left_s - energy_slope / energy / (log_mean_exp_slope(efficiency) * efficiency)
            value = np.where(cap_j <= least_j, np.inf, np.where(left_j <= least_j, -np.inf, value))
            return np.where(np.isnan(value), np.inf, value)

        found = increasing_root(slope, cycles / self.max_hz, cycles / self.min_hz)
        return np.clip(cycles / np.maximum(found.low, 1e-300), self.min_hz, self.max_hz)

    def bandwidth_and_slope(self, dropout_rate: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return B [Hz] and dB/dgamma at the best clock (its own change has no effect of first order)."""
        return self.at(self.best_clock_hz(dropout_rate)).bandwidth_and_slope(dropout_rate)

    def bandwidth_hz(self, dropout_rate: FloatArray) -> FloatArray:
        """B [Hz], inf where no clock serves the device."""
        return self.bandwidth_and_slope(dropout_rate)[0]

    def kink(self) -> FloatArray:
        """NaN: kinks are found by the bracketing itself."""
        return np.full(self.problem.num_devices, np.nan)

    def smallest_dropout_rate(self, bandwidth_hz: FloatArray) -> FloatArray:
        """Smallest gamma that fits into ``bandwidth_hz`` (K,) [Hz] at some clock; NaN where none does."""
        top = np.full(self.problem.num_devices, self.max_dropout_rate)
        fits = self.bandwidth_hz(top) <= bandwidth_hz
        with np.errstate(divide="ignore"):
            target = np.where(fits, 1.0 / bandwidth_hz, 0.0)
            found = increasing_root(lambda gamma: 1.0 / self.bandwidth_hz(gamma) - target, np.where(fits, 0.0, top), top)
        return np.where(fits, found.high, np.nan)


def _interval_bound(
    curve: ClockCurve, objective: SeparableObjective, price: float, low: FloatArray, centre: FloatArray, count: int
) -> float:
    """Dual value from below without convexity of B: on every interval phi at its left end (or its minimum), B at its right.

    The ``count`` intervals of [low_k, max_dropout_rate] shrink with the third power towards ``centre``, where the minimum is.
    """
    problem = curve.problem
    top = np.full(problem.num_devices, problem.max_dropout_rate)
    free = increasing_root(lambda gamma: objective.derivative(problem, gamma), np.zeros_like(top), top).high
    place = np.linspace(-1.0, 1.0, count + 1) ** 3
    nodes = [centre + abs(t) * ((low if t < 0 else top) - centre) for t in place]
    best = np.full(problem.num_devices, np.inf)
    for left, right in itertools.pairwise(nodes):
        value = objective.value(problem, np.clip(free, left, right)) + price * curve.bandwidth_hz(right)
        best = np.minimum(best, value)
    return float(best.sum() - price * problem.total_bandwidth_hz)


def solve_with_clock(
    problem: ResourceProblem,
    min_hz: FloatArray,
    max_hz: FloatArray,
    *,
    objective: SeparableObjective | None = None,
    intervals: int = 400,
) -> tuple[Solution, ResourceProblem]:
    """Choose clocks, too, for an FDMA fleet.

    Parameters
    ----------
    problem : ResourceProblem
        FDMA; its ``cpu_hz`` is ignored.
    min_hz, max_hz : ndarray
        Shape (K,), range of every clock [Hz].
    objective : SeparableObjective, optional
        Convex phi_k, the generalization bound if left out.
    intervals : int
        Pieces per device of the certificate; its gap shrinks with their width.

    Returns
    -------
    tuple
        The solution, and the problem with the chosen ``cpu_hz``, which is the one to check the solution against.
    """
    began, chosen = time.perf_counter(), objective or GeneralizationBound()
    top = np.full(problem.num_devices, problem.max_dropout_rate)
    clock = ClockCurve(problem, min_hz, max_hz).best_clock_hz(top)
    admission = admit_fdma(replace(problem, cpu_hz=clock))
    on = admission.scheduled
    if not on.any():
        return nobody_scheduled(problem, "clock", admission.reasons, time.perf_counter() - began), replace(
            problem, cpu_hz=clock
        )
    curve = ClockCurve(problem.subset(on), min_hz[on], max_hz[on])
    result = solve_box(curve.problem, chosen, np.zeros(int(on.sum())), top[on], curve)
    reachable = np.nan_to_num(curve.smallest_dropout_rate(np.full(int(on.sum()), problem.total_bandwidth_hz)), nan=top[0])
    centre = np.maximum(result.dropout_rate, reachable)
    bound = _interval_bound(curve, chosen, result.price, reachable, centre, intervals)
    clock[on] = curve.best_clock_hz(result.dropout_rate)
    clocked = replace(problem, cpu_hz=clock)
    solution = finish(
        clocked, admission, result.dropout_rate, method="clock", status=SolverStatus.FEASIBLE, began=began, lower_bound=bound,
        iterations=result.iterations, objective=objective,
    )  # fmt: skip
    return solution, clocked
