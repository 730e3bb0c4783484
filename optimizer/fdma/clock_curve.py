"""The CPU clock as a variable, f_k in [f_min, f_max], beside dropout rate, bandwidth and power under FDMA.

A slower clock saves energy (kappa f^2 per cycle), which the radio may spend, and costs time, which it lacks. In terms
of the computing time t = C/f the energy left is E - kappa C^3/t^2, jointly concave in (gamma, t), and the uplink time
is affine, so for every gamma the best clock minimises a quasi-convex function: one more scalar root per device. What
remains is again "phi against the smallest bandwidth", B(gamma) = min_f b_min(gamma, f), with slope by the envelope
theorem.

B falls in gamma. That it is also convex is checked numerically (tests), not proven; so the certificate does not use it:
over
[gamma_a, gamma_b] above the minimiser of phi, phi(gamma_a) + mu B(gamma_b) is a bound for any price mu.
`optimizer.cpu_clock` uses this for every method and both accesses.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from optimizer.fdma.admission import Admission, admit_fdma
from optimizer.fdma.bandwidth_curve import BandwidthCurve
from optimizer.fdma.exact import solve_box
from optimizer.objective import SeparableObjective
from optimizer.problem import FloatArray, ResourceProblem
from optimizer.rootfinding import increasing_root
from optimizer.timing import time_is_up
from wireless.cost import compute_cycles, payload_bits
from wireless.link import LN2, log_mean_exp_slope, spectral_efficiency_nats

_CELLS, _ROUNDS = 256, 5  # of the certificate: cells per device and round, and rounds
_BLOCK = 50  # devices bounded between two looks at the clock


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

    def best_clock_hz(self, dropout_rate: FloatArray) -> FloatArray:
        """Clock (..., K) [Hz] that needs the least bandwidth at ``dropout_rate`` (..., K).

        The sign of d ln b_min/dt = 1/tau - (d ln epsilon/dt)/(F'(L) L) changes once, from - (starved of energy) to +
        (of time).
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
        return BandwidthCurve.of(self.problem, self.best_clock_hz(dropout_rate)).bandwidth_and_slope(dropout_rate)

    def bandwidth_hz(self, dropout_rate: FloatArray) -> FloatArray:
        """B [Hz], inf where no clock serves the device."""
        return self.bandwidth_and_slope(dropout_rate)[0]

    def kink(self) -> FloatArray:
        """NaN: kinks are found by the bracketing itself."""
        return np.full(self.problem.num_devices, np.nan)

    def smallest_dropout_rate(self, bandwidth_hz: FloatArray, highest: FloatArray | None = None) -> FloatArray:
        """Smallest gamma up to ``highest`` that fits into ``bandwidth_hz`` (K,) [Hz] at some clock; NaN where none does."""
        top = np.full(self.problem.num_devices, self.max_dropout_rate) if highest is None else highest
        fits = self.bandwidth_hz(top) <= bandwidth_hz
        with np.errstate(divide="ignore"):
            target = np.where(fits, 1.0 / bandwidth_hz, 0.0)
            found = increasing_root(
                lambda gamma: 1.0 / self.bandwidth_hz(gamma) - target, np.where(fits, 0.0, top), top
            )
        return np.where(fits, found.high, np.nan)


def interval_bound(
    curve: ClockCurve,
    objective: SeparableObjective,
    price: float,
    low: FloatArray,
    near: FloatArray,
    *,
    tolerance: float = 1e-7,
) -> float:
    """Dual value at a price from below without convexity of B: on every cell phi at its least, B at its right end.

    Parameters
    ----------
    curve : ClockCurve
        B of the devices that take part.
    objective : SeparableObjective
        Convex phi_k.
    price : float
        mu >= 0 on bandwidth [1/Hz].
    low : ndarray
        (K,) rates below which no device can be served.
    near : ndarray
        (K,) rates close to the minimisers; only cells that may hold something cheaper are divided further.
    tolerance : float
        What a cell may lie below the value at ``near``, relative to the sum of all values.

    Returns
    -------
    float
        Certified lower bound for these devices at any clocks in their range.
    """
    count = curve.problem.num_devices
    if count > _BLOCK:
        total = -price * curve.problem.total_bandwidth_hz
        for part in np.array_split(np.arange(count), -(-count // _BLOCK)):
            if time_is_up():
                return -np.inf
            block = ClockCurve(curve.problem.subset(part), curve.min_hz[part], curve.max_hz[part])
            bound = interval_bound(block, objective, price, low[part], near[part], tolerance=tolerance)
            total += bound + price * curve.problem.total_bandwidth_hz
        return total
    problem, cells = curve.problem, _CELLS
    top = np.full(problem.num_devices, problem.max_dropout_rate)
    free = increasing_root(lambda gamma: objective.derivative(problem, gamma), np.zeros_like(top), top).high
    known = objective.value(problem, near) + price * curve.bandwidth_hz(near)
    slack = tolerance * float(np.abs(known).sum()) / problem.num_devices
    left, right, best = low.copy(), top.copy(), np.full(problem.num_devices, np.inf)
    for _ in range(_ROUNDS):
        nodes = left + np.linspace(0.0, 1.0, cells + 1)[:, None] * (right - left)  # (cells + 1, K)
        nodes[-1] = right
        least = objective.value(problem, np.clip(free, nodes[:-1], nodes[1:]))
        value = least + price * curve.bandwidth_hz(nodes[1:])
        open_cells = value < known - slack
        first = np.where(open_cells.any(axis=0), open_cells.argmax(axis=0), 0)
        last = np.where(open_cells.any(axis=0), cells - 1 - open_cells[::-1].argmax(axis=0), -1)
        row = np.arange(cells)[:, None]
        inside = (row >= first) & (row <= last)
        held = np.where(inside, value, np.inf).min(axis=0)
        best = np.minimum(best, np.where(inside, np.inf, value).min(axis=0))
        left = np.take_along_axis(nodes, first[None], axis=0)[0]
        right = np.where(last >= 0, np.take_along_axis(nodes, np.maximum(last, 0)[None] + 1, axis=0)[0], left)
        if not open_cells.any():
            break
    return float(np.minimum(best, held).sum() - price * problem.total_bandwidth_hz)


def best_clocks(
    problem: ResourceProblem, min_hz: FloatArray, max_hz: FloatArray, objective: SeparableObjective
) -> tuple[FloatArray, Admission, float]:
    """Clocks of the joint optimum over clock, dropout rate, bandwidth and power (FDMA, convex phi_k).

    Parameters
    ----------
    problem : ResourceProblem
        FDMA; its ``cpu_hz`` is ignored.
    min_hz, max_hz : ndarray
        (K,) range of every clock [Hz].
    objective : SeparableObjective
        Convex phi_k.

    Returns
    -------
    tuple
        Clocks (K,) [Hz], who was admitted, and a certified lower bound for those devices over all clocks.
    """
    top = np.full(problem.num_devices, problem.max_dropout_rate)
    clock = ClockCurve(problem, min_hz, max_hz).best_clock_hz(top)
    admission = admit_fdma(problem.at_clock(clock))
    on = admission.scheduled
    if not on.any():
        return clock, admission, 0.0
    curve = ClockCurve(problem.subset(on), min_hz[on], max_hz[on])
    result = solve_box(curve.problem, objective, np.zeros(int(on.sum())), top[on], curve)
    clock[on] = curve.best_clock_hz(result.dropout_rate)
    near = np.maximum(result.dropout_rate, result.reach)
    bound = interval_bound(curve, objective, result.price, result.reach, near)
    return clock, admission, bound
