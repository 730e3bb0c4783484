"""Exact FDMA allocation: one price on bandwidth solves the whole problem.

With b_min from `optimizer.fdma.bandwidth_curve` the problem is convex and separable with one coupling row,

    min sum_k phi_k(gamma_k)   s.t.   sum_k b_min_k(gamma_k) <= W,   low_k <= gamma_k <= high_k.

For a price mu >= 0 every device answers alone, gamma_k(mu) = argmin phi_k + mu b_min_k; the total bandwidth falls in
mu, so one scalar root gives the optimum, and the dual value sum_k min(phi_k + mu b_min_k) - mu W certifies it.
The price is bracketed, and at every price the answers. Bandwidth that is left over (mu = 0) is spent on the least
total energy, again with one price (`optimizer.fdma.completion`).
"""

from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np

from optimizer.certificate import price_certificate
from optimizer.fdma.bandwidth_curve import BandwidthCurve
from optimizer.fdma.completion import on_admitted
from optimizer.objective import SeparableObjective, is_convex
from optimizer.problem import FloatArray, InfeasibleProblemError, ProblemError, ResourceProblem, Solution
from optimizer.rootfinding import Function, increasing_root
from optimizer.solver_interface import DEFAULTS, Arguments, Decision
from optimizer.timing import OutOfTime, remaining_s, time_is_up, time_limit

_LARGEST_LOG = 300.0  # of a price: far enough, and its products stay finite
ROUNDING = 2e-15  # relative error of a bandwidth and of sums


class Answers(NamedTuple):
    """The devices' answers gamma(mu) to a price [1/Hz], (K,) from both sides: equal but for rounding."""

    price: float
    below: FloatArray
    above: FloatArray


@dataclass(frozen=True)
class DualResult:
    """A feasible point of the reduced problem, and its certificate: price mu [1/Hz], rates ``answer`` (K,) to it."""

    dropout_rate: FloatArray
    objective: float
    lower_bound: float
    price: float
    answer: FloatArray
    iterations: int


@dataclass
class Fleet:
    """Devices that answer prices with rates in [low, high] (K,); brackets narrow as the price is bracketed."""

    curve: BandwidthCurve
    objective: SeparableObjective
    low: FloatArray
    high: FloatArray
    evaluations: int = 0

    def __post_init__(self) -> None:
        """Bracket all answers by the ends, by those to the nearest prices later: gamma(mu) is non-decreasing in mu."""
        self.problem, self.total_hz = self.curve.problem, self.curve.problem.total_bandwidth_hz
        self.cheap, self.dear = Answers(0.0, self.low, self.low), Answers(np.inf, self.high, self.high)
        kink = self.curve.kink()
        self.kink = np.where((kink > self.low) & (kink < self.high), kink, self.high)

    @cached_property
    def kink_prices(self) -> tuple[FloatArray, FloatArray]:
        """`price_of` left and right of the kink, (K,) each: one-sided slopes."""
        step = 1e-9 * (self.high - self.low)
        left, right = (self.price_of(np.clip(self.kink + side, self.low, self.high)) for side in (-step, step))
        return left, right

    def price_of(self, gamma: FloatArray) -> FloatArray:
        """Signed square root of phi'/(-b'), increasing; its square is the price at which ``gamma`` is the answer.

        The root makes it nearly linear where b_min explodes.
        """
        self.evaluations += 1
        slope = self.objective.derivative(self.problem, gamma)
        _, band_slope = self.curve.bandwidth_and_slope(gamma)
        with np.errstate(divide="ignore", invalid="ignore"):
            price = np.sqrt(np.abs(slope) / np.abs(band_slope))
        return np.where(slope == 0, 0.0, np.sign(slope) * price)

    def free(self, **options: Any) -> Answers:
        """Answers to the price 0, argmin phi_k on [low_k, high_k]; options as of `increasing_root`."""
        found = increasing_root(partial(self.objective.derivative, self.problem), self.low, self.high, **options)
        self.evaluations += found.evaluations
        return Answers(0.0, found.low, found.high)

    def answer(self, price: float, *, in_time: bool = False) -> Answers:
        """Answers to a price; ``in_time`` may raise `OutOfTime`."""
        if in_time and time_is_up():
            raise OutOfTime
        root, (left, right) = np.sqrt(price), self.kink_prices
        left, right = root <= left, root >= right
        low = np.where(left, self.cheap.below, np.maximum(self.cheap.below, self.kink))
        high = np.where(right, self.dear.above, np.minimum(self.dear.above, self.kink))
        low, high = np.minimum(low, high), np.maximum(low, high)
        found = increasing_root(lambda gamma: self.price_of(gamma) - root, low, high, in_time=in_time)
        return Answers(price, found.low, found.high)

    def floors(self, answer: Answers) -> tuple[FloatArray, FloatArray]:
        """Least phi + mu b (K,) although each minimiser is only known from both sides, and the sizes.

        f = phi + mu b is convex: its minimum is at least f - |f'| times the distance between the sides.
        """
        price, below, above = answer
        # A price of 0 asks for no bandwidth, which may be infinite there.
        band, band_slope = self.curve.bandwidth_and_slope(above) if price > 0 else (0.0, 0.0)
        value = self.objective.value(self.problem, above) + price * band
        slope = self.objective.derivative(self.problem, above) + price * band_slope
        return value - np.abs(slope) * (above - below + 4e-16), np.abs(value)

    def certificate(self, answer: Answers) -> float:
        """Dual value of any answer to any price; what rounding may lose is subtracted."""
        least, size = self.floors(answer)
        paid = answer.price * self.total_hz
        return float(least.sum() - paid) - ROUNDING * (float(size.sum()) + paid)


def solve_box(
    curve: BandwidthCurve, objective: SeparableObjective, low: FloatArray | None = None, high: FloatArray | None = None
) -> DualResult:
    """Minimise the reduced problem over the box [low, high] (K,), all rates if left out; phi_k is convex there.

    ``curve`` is the devices' b_min, or what stands in for it. Raises InfeasibleProblemError if the devices do not fit
    together even at ``high``.
    """
    fleet = _within_reach(curve, objective, low, high)
    try:
        free = fleet.free(in_time=True)
    except OutOfTime:
        free = fleet.free(tolerance=0.05)
    if time_is_up():  # all fit at ``high``, and no price at all gives a bound
        return _result(fleet, fleet.high, [free])
    if curve.bandwidth_hz(free.above).sum() <= fleet.total_hz:
        return _result(fleet, free.above, [free])
    fleet.cheap = free
    return _bisect_price(fleet, free)


def _within_reach(
    curve: BandwidthCurve, objective: SeparableObjective, low: FloatArray | None = None, high: FloatArray | None = None
) -> Fleet:
    """A fleet whose ``low`` is raised to what the others leave in reach, if that takes at most half the time left."""
    total, high = curve.problem.total_bandwidth_hz, curve.problem.highest_rates if high is None else high
    low, least = np.zeros_like(high) if low is None else low, curve.bandwidth_hz(high)
    if not least.sum() <= total * (1 + 1e-12):  # the same sum in another order may differ by rounding
        needed = f"{least.sum():.6g} Hz needed at the largest dropout rates"
        raise InfeasibleProblemError(f"{needed}, {total:.6g} Hz available")
    left = np.maximum(total * (1 + 1e-12) - (least.sum() - least), least)
    with suppress(OutOfTime), time_limit(0.5 * remaining_s()):
        reachable = curve.smallest_dropout_rate(left, high, in_time=True)
        low = np.maximum(low, np.where(np.isnan(reachable), high, reachable))
    return Fleet(curve, objective, np.minimum(low, high), high)


def _bisect_price(fleet: Fleet, free: Answers) -> DualResult:
    """Find the price at which demand meets supply, from the side that fits; out of time, the best bound so far."""

    def surplus(log_price: FloatArray) -> FloatArray:
        answer = fleet.answer(float(np.exp(log_price[0])), in_time=True)
        left = fleet.total_hz - float(fleet.curve.bandwidth_hz(answer.above).sum())
        if left >= 0:
            fleet.dear = answer
        else:
            fleet.cheap = answer
        return np.array([0.0 if 0 <= left <= ROUNDING * fleet.total_hz else left / fleet.total_hz])

    middle = fleet.price_of(0.5 * (free.below + fleet.high)) ** 2
    usable = middle[np.isfinite(middle) & (middle > 0)]
    start = float(np.log(np.median(usable))) if usable.size else -np.log(fleet.total_hz)
    high = np.inf
    with suppress(OutOfTime):
        low, high = _bracket(surplus, start)
        increasing_root(surplus, np.array([low]), np.array([high]), tolerance=1e-13)
    # Where only the box's upper end fits, any large price certifies it, or the box is a point and the price 0 does.
    answers = [free, fleet.cheap]
    if np.isfinite(fleet.dear.price):
        answers.append(fleet.dear)
    elif np.isfinite(high):
        with suppress(OutOfTime):
            answers.append(fleet.answer(float(np.exp(high)), in_time=True))
    return _result(fleet, fleet.dear.above, answers)


def _bracket(surplus: Function, start: float) -> tuple[float, float]:
    """Widen around ``start`` (log price) until the surplus changes sign."""
    step = 1.0 if surplus(np.array([start]))[0] < 0 else -1.0
    near = far = start
    while abs(far) < _LARGEST_LOG:
        near, far = far, float(np.clip(far + step, -_LARGEST_LOG, _LARGEST_LOG))
        if (surplus(np.array([far]))[0] < 0) != (step > 0):
            break
        step *= 2
    return min(near, far), max(near, far)


def _result(fleet: Fleet, gamma: FloatArray, answers: list[Answers]) -> DualResult:
    """Of the prices, the one with the best certificate counts."""
    value = float(fleet.objective.value(fleet.problem, gamma).sum())
    bound, best = max(((fleet.certificate(answer), answer) for answer in answers), key=itemgetter(0))
    return DualResult(gamma, value, min(bound, value), best.price, best.above, fleet.evaluations)


def decide_exactly(part: ResourceProblem, arguments: Arguments, earlier: FloatArray | None) -> Decision:
    """Allocate the admitted devices exactly; phi_k is convex, so no earlier answer helps."""
    found = solve_box(BandwidthCurve(part), arguments.objective)
    certificate = price_certificate(found.price, found.answer)
    return Decision(found.lower_bound, certificate, found.dropout_rate, nodes=1, iterations=found.iterations)


def solve_fdma(problem: ResourceProblem, arguments: Arguments = DEFAULTS) -> Solution:
    """Admit the heaviest fleet that fits and allocate it exactly; `ProblemError` where phi_k is not convex."""
    if not is_convex(problem, arguments.objective):
        name = type(arguments.objective).__name__
        raise ProblemError(f"objective {name} is not convex, which the exact method needs; use bnb")
    return on_admitted(problem, arguments, decide_exactly)


def dual_bound(problem: ResourceProblem, objective: SeparableObjective, price: float) -> tuple[float, FloatArray]:
    """Certified lower bound at any price mu >= 0 on bandwidth, and the devices' answers (K,) to it; convex phi_k only.

    Whoever guesses the price (a conic solver's multiplier, an earlier round), the bound is valid; a good guess makes it
    tight.
    """
    fleet = _within_reach(BandwidthCurve(problem), objective)
    answer = fleet.free() if price <= 0 else fleet.answer(price)
    return fleet.certificate(answer), answer.above
