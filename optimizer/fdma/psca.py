"""P-SCA for FDMA: successive convex approximation of the energy row, every step solved exactly.

In the original variables (gamma, b, p) the round reads (all time left is used, so the energy row is p tau <= e)

    min sum phi_k(gamma_k)
    s.t.  S/tau <= b log2(1 + p g/(N0 b))    rate row:  S/tau is linear-fractional, convex;  the right side is concave
          p <= e/tau                         power row: linear-fractional, convex or concave by the sign of its
          numerator p <= P,  sum b <= W,  0 <= gamma <= max_dropout_rate.

Only a convex e/tau stands in the way: it is replaced by its tangent at the current gamma, which lies below it, so
whatever the approximation serves can be served. For a given gamma the approximation again has a smallest bandwidth,
convex in gamma (`TangentCurve`), and is solved as the problem itself is (`optimizer.fdma.exact.solve_box`): by one
price on bandwidth, with no conic solver and no tolerance of one. phi_k is replaced by a convex quadratic model where it
is not convex, and a step is shortened until the true objective does not rise. A start that does not fit is moved
towards max_dropout_rate until it does, which is why no penalty on violated rows is needed here, as it is under OFDMA.
"""

import numpy as np

from optimizer.certificate import free_proof, price_certificate
from optimizer.fdma.bandwidth_curve import BandwidthCurve
from optimizer.fdma.completion import fit_dropout_rates, on_admitted
from optimizer.fdma.exact import DualResult, dual_bound, solve_box
from optimizer.objective import Convex, SeparableObjective, is_convex
from optimizer.problem import FloatArray, InfeasibleProblemError, ResourceProblem, Solution
from optimizer.rootfinding import increasing_root
from optimizer.solver_interface import DEFAULTS, Arguments, Decision
from optimizer.timing import time_is_up

_HALVINGS = 60  # of the way to max_dropout_rate, for a start that does not fit
_STEPS, _TOLERANCE = 60, 1e-10  # at most; relative gain below which it stops


class TangentCurve(BandwidthCurve):
    """Smallest bandwidth with the power e/tau replaced by its tangent at ``at`` (K,), where e/tau is convex."""

    close = 0.0  # no digits are recovered: they would be those of e itself

    def __init__(self, problem: ResourceProblem, at: FloatArray) -> None:
        super().__init__(problem)
        self.at = at

    def energy_left_j(self, dropout_rate: FloatArray) -> tuple[FloatArray, FloatArray]:
        """What the tangent leaves for the uplink [J], and its derivative in gamma."""
        left_j, slope = super().energy_left_j(dropout_rate)
        time_s, time_at = self.uplink_time_s(dropout_rate), self.uplink_time_s(self.at)
        power = super().energy_left_j(self.at)[0] / time_at
        steepness = (self.energy_slope_j - power * self.time_slope_s) / time_at  # of e/tau; falling means convex
        tangent = power + steepness * (dropout_rate - self.at)
        bends = steepness < 0
        return (
            np.where(bends, time_s * tangent, left_j),
            np.where(bends, self.time_slope_s * tangent + time_s * steepness, slope),
        )

    def cheapest(self) -> FloatArray:
        """Dropout rate (K,) from ``at`` on with the smallest bandwidth; beyond it the tangent leaves too little."""

        def slope(gamma: FloatArray) -> FloatArray:
            band, found = self.bandwidth_and_slope(gamma)
            return np.where(np.isfinite(band), found, np.where(gamma > self.at, np.inf, -np.inf))

        return increasing_root(slope, self.at, self.problem.highest_rates).low

    def kink(self) -> FloatArray:
        """NaN: the kink moves with the tangent and is found by the bracketing itself."""
        return np.full_like(self.at, np.nan)


class QuadraticModel(Convex):
    """phi_k around ``at`` (K,), less its value there, convex: true slope, measured curvature, never negative."""

    def __init__(self, problem: ResourceProblem, objective: SeparableObjective, at: FloatArray) -> None:
        left, right = (np.clip(at + side, 0.0, problem.max_dropout_rate) for side in (-1e-5, 1e-5))
        rise = objective.derivative(problem, right) - objective.derivative(problem, left)
        curvature = np.divide(rise, right - left, out=np.zeros_like(rise), where=right > left)
        self.at, self.slope = at, objective.derivative(problem, at)
        self.curvature = np.maximum(curvature, 2e-3 * problem.weights)

    def value(self, problem: ResourceProblem, dropout_rate: FloatArray) -> FloatArray:
        """Change from the value at ``at``."""
        step = dropout_rate - self.at
        return self.slope * step + 0.5 * self.curvature * step**2

    def derivative(self, problem: ResourceProblem, dropout_rate: FloatArray) -> FloatArray:
        """Its derivative."""
        return self.slope + self.curvature * (dropout_rate - self.at)


def _step(problem: ResourceProblem, objective: SeparableObjective, at: FloatArray) -> DualResult | None:
    """Solve the approximation at ``at``; None where it serves nobody."""
    tangent = TangentCurve(problem, at)
    model = objective if is_convex(problem, objective) else QuadraticModel(problem, objective, at)
    try:
        return solve_box(tangent, model, high=tangent.cheapest())
    except InfeasibleProblemError:
        return None


def psca(
    problem: ResourceProblem, objective: SeparableObjective, start: FloatArray
) -> tuple[FloatArray, float, list[float]]:
    """Run P-SCA on an admitted fleet from dropout rates ``start`` (K,), whether they fit or not.

    Returns dropout rates (K,), feasible to rounding, the last price on bandwidth [1/Hz], and the objective after
    every accepted step.
    """
    curve, top = BandwidthCurve(problem), problem.highest_rates
    for share in (*(1.0 - 0.5 ** np.arange(_HALVINGS)), 1.0):  # of the way to max_dropout_rate, where everyone fits
        gamma = np.minimum(start + share * (top - start), top)
        found = _step(problem, objective, gamma) if np.isfinite(curve.bandwidth_hz(gamma)).all() else None
        if found is not None or time_is_up():
            break
    fits = float(curve.bandwidth_hz(gamma).sum()) <= problem.total_bandwidth_hz
    best = float(objective.value(problem, gamma).sum()) if fits else np.inf
    price, merit = 0.0, list[float]()
    for _ in range(_STEPS):
        if found is None:
            break
        target, price = found.dropout_rate, found.price
        step, value = 1.0, float(objective.value(problem, target).sum())
        while value > best and step > 1e-4:
            step *= 0.5
            value = float(objective.value(problem, gamma + step * (target - gamma)).sum())
        gain = best - value
        if gain > 0:
            gamma, best = gamma + step * (target - gamma), value
            merit.append(best)
        if not gain > _TOLERANCE * abs(best) or time_is_up():
            break
        found = _step(problem, objective, gamma)
    return gamma, price, merit


def _decide(part: ResourceProblem, arguments: Arguments, earlier: FloatArray | None) -> Decision:
    """Run P-SCA from the earlier rates, or from the middle of what each device can do; the last price certifies."""
    objective, low = arguments.objective, np.clip(BandwidthCurve(part).feasible_from(), 0.0, part.max_dropout_rate)
    middle = 0.5 * (low + part.max_dropout_rate)
    start = middle if earlier is None else np.where(np.isnan(earlier), middle, earlier)
    rates, price, merit = psca(part, objective, start)
    bound, certificate = free_proof(part, objective)
    if is_convex(part, objective):
        bound, answer = dual_bound(part, objective, price)
        certificate = price_certificate(price, answer)
    return Decision(bound, certificate, fit_dropout_rates(part, rates), iterations=len(merit))


def solve_psca_fdma(problem: ResourceProblem, arguments: Arguments = DEFAULTS) -> Solution:
    """Admit the heaviest fleet that fits and allocate it by P-SCA; only a convex phi_k gets a tight certificate."""
    return on_admitted(problem, arguments, _decide)
