"""The CPU clock as a variable, f_k in [f_min, f_max], beside dropout rate, bandwidth and power under FDMA.

A slower clock saves energy (kappa f^2 per cycle), which the radio may spend, and costs time, which it lacks. In terms
of the computing time t = C/f the energy left is E - kappa C^3/t^2, jointly concave in (gamma, t), and the uplink time
is affine, so for every gamma the best clock minimises a quasi-convex function: one more scalar root per device. What
remains is again "phi against the smallest bandwidth", B(gamma) = min_f b_min(gamma, f), with slope by the envelope
theorem. B is convex in ln(1 - gamma), and so is the generalization bound (docs/formulation.md), hence one price on
bandwidth solves and certifies the whole (`optimizer.fdma.exact`). `optimizer.cpu_clock` uses this for every method.
"""

from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from optimizer.fdma.admission import admit_fdma
from optimizer.fdma.bandwidth_curve import BandwidthCurve, Curve
from optimizer.fdma.exact import solve_box
from optimizer.objective import GeneralizationBound, SeparableObjective, free_bound
from optimizer.problem import BoolArray, FloatArray, ResourceProblem
from optimizer.rootfinding import increasing_root
from optimizer.timing import OutOfTime, remaining_s, time_limit
from wireless.link import LN2, log_mean_exp_slope, spectral_efficiency_nats


@dataclass(frozen=True)
class ClockCurve(Curve):
    """B(gamma) of K devices whose clocks lie in the problem's range; raises `OutOfTime` when time is up."""

    problem: ResourceProblem
    convex_in_logarithm = True
    rounding = 1e-12  # where the energy and the power cap meet B is not flat in the clock
    search_share = 1.0

    @property
    def max_dropout_rate(self) -> float:  # type: ignore[override]
        """Right end of every curve."""
        return self.problem.max_dropout_rate

    def best_clock_hz(self, dropout_rate: FloatArray, *, in_time: bool = False) -> FloatArray:
        """Clock (..., K) [Hz] that needs the least bandwidth at ``dropout_rate`` (..., K); see `increasing_root`.

        The sign of d ln b_min/dt = 1/tau - (d ln epsilon/dt)/(F'(L) L) changes once, from - (starved of energy) to +
        (of time).
        """
        p, cycles, bits = self.problem, self.problem.cycles(dropout_rate), self.problem.uplink_bits(dropout_rate)
        (slowest, fastest), free_s = p.clock_range_hz, p.deadline_s - p.download_s(dropout_rate)
        with np.errstate(divide="ignore", over="ignore"):
            least_j = bits * LN2 * p.noise_psd_w_per_hz / p.channel_gain  # to carry the bits over unlimited bandwidth
        tdma = p.access == "tdma"
        full_j = BandwidthCurve.of(p).cap_j(dropout_rate)[0] if tdma else None  # at full power, however long it takes
        cap_slope = 0.0 if tdma else -p.max_tx_power_w

        def slope(busy_s: FloatArray) -> FloatArray:
            left_s = free_s - busy_s
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                left_j = p.energy_left_j - p.capacitance * cycles**3 / busy_s**2
                cap_j = p.max_tx_power_w * left_s if full_j is None else np.where(left_s > 0, full_j, 0.0)
                energy = np.minimum(left_j, cap_j)
                efficiency = spectral_efficiency_nats(np.where(energy > least_j, np.log(energy / least_j), 1.0))
                energy_slope = np.where(left_j < cap_j, 2 * p.capacitance * cycles**3 / busy_s**3, cap_slope)
                value = 1 / left_s - energy_slope / energy / (log_mean_exp_slope(efficiency) * efficiency)
            value = np.where(cap_j <= least_j, np.inf, np.where(left_j <= least_j, -np.inf, value))
            return np.where(np.isnan(value), np.inf, value)

        # Finer than this the slope is noise, and the search crawls.
        found = increasing_root(
            slope, cycles / fastest, cycles / slowest, tolerance=1e-14 * p.deadline_s, in_time=in_time
        )
        return np.clip(cycles / np.maximum(found.low, 1e-300), slowest, fastest)

    def bandwidth_and_slope(self, dropout_rate: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return B [Hz] and dB/dgamma at the best clock (its own change has no effect of first order)."""
        clock = self.best_clock_hz(dropout_rate, in_time=True)
        return BandwidthCurve.of(self.problem, clock).bandwidth_and_slope(dropout_rate)


def best_clocks(problem: ResourceProblem, objective: SeparableObjective) -> tuple[FloatArray, BoolArray, float]:
    """Clocks (K,) [Hz] of the joint optimum over clock, dropout rate, bandwidth and power under FDMA.

    Also returns who was admitted (K,) and a lower bound for those devices over all clocks, certified for the
    generalization bound only. Nine tenths of the time that remains are spent on it at most.
    """
    top = problem.highest_rates
    clock = ClockCurve(problem).best_clock_hz(top)
    on = admit_fdma(problem.at_clock(clock)).scheduled
    if not on.any():
        return clock, on, 0.0
    curve = ClockCurve(problem.subset(on))
    bound = free_bound(curve.problem, objective)
    ends, price = (np.zeros(int(on.sum())), top[on]), 0.0
    with suppress(OutOfTime), time_limit(0.9 * remaining_s()):
        for _ in range(2):
            held = solve_box(curve.problem.at_clock(clock[on]), objective, *ends)
            clock[on], price = curve.best_clock_hz(held.dropout_rate, in_time=True), held.price
        result = solve_box(curve.problem, objective, *ends, curve, price)
        clock[on] = curve.best_clock_hz(result.dropout_rate, in_time=True)
        bound = max(bound, result.lower_bound) if isinstance(objective, GeneralizationBound) else bound
    return clock, on, bound
