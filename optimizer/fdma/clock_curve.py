"""The CPU clock as a variable, f_k in [f_min, f_max], beside dropout rate, bandwidth and power under FDMA.

A slower clock saves energy (kappa f^2 per cycle), which the radio may spend, and costs time, which it lacks. In terms
of the computing time t = C/f the energy left is E - kappa C^3/t^2, jointly concave in (gamma, t), and the uplink time
is affine, so for every gamma the best clock minimises a quasi-convex function: one more scalar root per device. What
remains is again "phi against the smallest bandwidth", B(gamma) = min_f b_min(gamma, f), convex in ln(1 - gamma)
(docs/formulation.md). Where the energy and the power cap meet at the best clock b_min has a kink in f, and the slope of
B is not that of b_min at this clock; `optimizer.multi_round.interior_point` solves the whole. `optimizer.cpu_clock`
uses both for every method.
"""

from dataclasses import dataclass

import numpy as np

from optimizer.fdma.bandwidth_curve import BandwidthCurve, Curve
from optimizer.problem import FloatArray, ResourceProblem
from optimizer.rootfinding import increasing_root
from wireless.link import LN2, log_mean_exp, spectral_efficiency_nats


@dataclass(frozen=True)
class ClockCurve(Curve):
    """B(gamma) of K devices whose clocks lie in the problem's range."""

    problem: ResourceProblem

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
                value = 1 / left_s - energy_slope / energy / (log_mean_exp(efficiency)[1] * efficiency)
            value = np.where(cap_j <= least_j, np.inf, np.where(left_j <= least_j, -np.inf, value))
            return np.where(np.isnan(value), np.inf, value)

        # Finer than this the slope is noise, and the search crawls.
        found = increasing_root(
            slope, cycles / fastest, cycles / slowest, tolerance=1e-14 * p.deadline_s, in_time=in_time
        )
        return np.clip(cycles / np.maximum(found.low, 1e-300), slowest, fastest)

    def bandwidth_hz(self, dropout_rate: FloatArray) -> FloatArray:
        """Return B (K,) [Hz]."""
        return BandwidthCurve.of(self.problem, self.best_clock_hz(dropout_rate)).bandwidth_hz(dropout_rate)
