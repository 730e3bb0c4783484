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

from dataclasses import dataclass, field, fields

import numpy as np

from optimizer.certificate import free_certificate, price_certificate
from optimizer.fdma.bandwidth_curve import BandwidthCurve
from optimizer.fdma.completion import fit_dropout_rates, on_admitted
from optimizer.fdma.exact import dual_bound, solve_box
from optimizer.objective import Convex, SeparableObjective, free_bound, is_convex
from optimizer.problem import FloatArray, InfeasibleProblemError, ResourceProblem, Solution
from optimizer.rootfinding import increasing_root
from optimizer.solver_interface import DEFAULTS, Arguments, Decision
from optimizer.timing import time_is_up

_HALVINGS = 60  # of the way to max_dropout_rate, for a start that does not fit


@dataclass
class PscaTrace:
    """What happened: the objective after every accepted step, and the last price on bandwidth [1/Hz]."""

    merit: list[float] = field(default_factory=list)
    price: float = 0.0


@dataclass(frozen=True)
class TangentCurve(BandwidthCurve):
    """Smallest bandwidth with the power e/tau replaced by its tangent at ``at`` (K,), where e/tau is convex."""

    at: FloatArray = field(default_factory=lambda: np.zeros(0))

    @classmethod
    def touching(cls, curve: BandwidthCurve, at: FloatArray) -> "TangentCurve":
        """Return the approximation of ``curve`` at the dropout rates ``at`` (K,)."""
        known = {item.name: getattr(curve, item.name) for item in fields(BandwidthCurve)}
        return cls(**known | {"source": None}, at=at)

    def _energy_left(self, dropout_rate: FloatArray, time_s: FloatArray) -> tuple[FloatArray, FloatArray]:
        left_j, slope = super()._energy_left(dropout_rate, time_s)
        time_at = self.uplink_time_s(self.at)
        power = super()._energy_left(self.at, time_at)[0] / time_at
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

        return increasing_root(slope, self.at, np.full_like(self.at, self.max_dropout_rate)).low

    def kink(self) -> FloatArray:
        """NaN: the kink moves with the tangent and is found by the bracketing itself."""
        return np.full_like(self.at, np.nan)


@dataclass(frozen=True)
class QuadraticModel(Convex):
    """phi_k around ``at`` (K,), convex: true slope, curvature never negative."""

    at: FloatArray
    slope: FloatArray
    curvature: FloatArray

    @classmethod
    def around(cls, problem: ResourceProblem, objective: SeparableObjective, at: FloatArray) -> "QuadraticModel":
        """Take the curvature from a central difference of the slope."""
        left, right = (np.clip(at + side, 0.0, problem.max_dropout_rate) for side in (-1e-5, 1e-5))
        rise = objective.derivative(problem, right) - objective.derivative(problem, left)
        curvature = np.divide(rise, right - left, out=np.zeros_like(rise), where=right > left)
        return cls(at, objective.derivative(problem, at), np.maximum(curvature, 2e-3 * problem.weights))

    def value(self, problem: ResourceProblem, dropout_rate: FloatArray) -> FloatArray:
        """Change from the value at ``at``."""
        step = dropout_rate - self.at
        return self.slope * step + 0.5 * self.curvature * step**2

    def derivative(self, problem: ResourceProblem, dropout_rate: FloatArray) -> FloatArray:
        """Its derivative."""
        return self.slope + self.curvature * (dropout_rate - self.at)


def _step(
    problem: ResourceProblem, objective: SeparableObjective, curve: BandwidthCurve, at: FloatArray
) -> tuple[FloatArray, float] | None:
    """Solve the approximation at ``at``: dropout rates (K,) and the price on bandwidth, None where it serves nobody."""
    tangent = TangentCurve.touching(curve, at)
    high = tangent.cheapest()
    model = objective if is_convex(problem, objective) else QuadraticModel.around(problem, objective, at)
    try:
        found = solve_box(problem, model, np.zeros_like(at), high, tangent)
    except InfeasibleProblemError:
        return None
    return found.dropout_rate, found.price


def psca(
    problem: ResourceProblem,
    objective: SeparableObjective,
    start: FloatArray,
    *,
    max_iterations: int = 60,
    tolerance: float = 1e-10,
) -> tuple[FloatArray, PscaTrace]:
    """Run P-SCA on an admitted fleet from dropout rates ``start`` (K,), whether they fit or not.

    Returns dropout rates (K,), feasible to rounding, and the trace. Stops when a step lowers the objective by less than
    ``tolerance`` relative to its size.
    """
    trace, curve = PscaTrace(), BandwidthCurve.of(problem)
    top, gamma = problem.highest_rates, start
    for share in (*(1.0 - 0.5 ** np.arange(_HALVINGS)), 1.0):  # of the way to max_dropout_rate, where everyone fits
        gamma = np.minimum(start + share * (top - start), top)
        found = _step(problem, objective, curve, gamma) if np.isfinite(curve.bandwidth_hz(gamma)).all() else None
        if found is not None or time_is_up():
            break
    fits = float(curve.bandwidth_hz(gamma).sum()) <= problem.total_bandwidth_hz
    best = float(objective.value(problem, gamma).sum()) if fits else np.inf
    for _ in range(max_iterations):
        if found is None:
            break
        target, trace.price = found
        step, value = 1.0, float(objective.value(problem, target).sum())
        while value > best and step > 1e-4:
            step *= 0.5
            value = float(objective.value(problem, gamma + step * (target - gamma)).sum())
        gain = best - value
        if gain > 0:
            gamma, best = gamma + step * (target - gamma), value
            trace.merit.append(best)
        if not gain > tolerance * abs(best) or time_is_up():
            break
        found = _step(problem, objective, curve, gamma)
    return gamma, trace


def _decide(part: ResourceProblem, arguments: Arguments, earlier: FloatArray | None) -> Decision:
    """Run P-SCA from the earlier rates, or from the middle of what each device can do; the last price certifies."""
    objective, low = arguments.objective, np.clip(BandwidthCurve.of(part).feasible_from(), 0.0, part.max_dropout_rate)
    middle = 0.5 * (low + part.max_dropout_rate)
    rates, trace = psca(part, objective, middle if earlier is None else np.where(np.isnan(earlier), middle, earlier))
    bound, certificate = free_bound(part, objective), free_certificate(part, objective)
    if is_convex(part, objective):
        bound, answer = dual_bound(part, objective, trace.price)
        certificate = price_certificate(trace.price, answer)
    return Decision(bound, certificate, fit_dropout_rates(part, rates), iterations=len(trace.merit))


def solve_psca_fdma(problem: ResourceProblem, arguments: Arguments = DEFAULTS) -> Solution:
    """Admit the heaviest fleet that fits and allocate it by P-SCA; only a convex phi_k gets a tight certificate."""
    return on_admitted(problem, arguments, _decide)
