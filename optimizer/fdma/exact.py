"""Exact FDMA allocation: one price on bandwidth solves the whole problem.

With b_min from `optimizer.fdma.bandwidth_curve` the problem is convex and separable with one coupling row,

    min sum_k phi_k(gamma_k)   s.t.   sum_k b_min_k(gamma_k) <= W,   low_k <= gamma_k <= high_k.

For a price mu >= 0 every device answers alone, gamma_k(mu) = argmin phi_k + mu b_min_k; the total bandwidth falls in
mu, so one scalar root gives the optimum, and the dual value sum_k min(phi_k + mu b_min_k) - mu W certifies it.
The price is bracketed, and at every price the answers.
Bandwidth that is left over (mu = 0) is spent on the least total energy, again with one price
(`optimizer.fdma.completion`).
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from optimizer.certificate import price_certificate
from optimizer.fdma.bandwidth_curve import BandwidthCurve, Curve
from optimizer.fdma.completion import on_admitted
from optimizer.objective import SeparableObjective, is_convex
from optimizer.problem import FloatArray, InfeasibleProblemError, ProblemError, ResourceProblem, Solution
from optimizer.rootfinding import increasing_root
from optimizer.solver_interface import DEFAULTS, Arguments, Decision
from optimizer.timing import OutOfTime, remaining_s, time_is_up, time_limit

_LARGEST_LOG = 300.0  # of a price: far enough, and its products stay finite


@dataclass(frozen=True)
class DualResult:
    """A feasible point of the reduced problem, and its certificate: price mu [1/Hz], rates ``answer`` (K,) to it."""

    dropout_rate: FloatArray
    objective: float
    lower_bound: float
    price: float
    answer: FloatArray
    iterations: int


class Fleet:
    """The devices' answers to a price, with brackets that narrow as the price is bracketed."""

    def __init__(
        self, problem: ResourceProblem, objective: SeparableObjective, curve: Curve, low: FloatArray, high: FloatArray
    ) -> None:
        self.problem, self.objective, self.curve = problem, objective, curve
        self.low, self.high = low, high
        self.below, self.above = low, high  # answers to the bracketing prices: gamma(mu) is non-decreasing in mu
        self.evaluations = 0
        kink = curve.kink()
        self.kink = np.where((kink > low) & (kink < high), kink, high)

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

    def answer(self, price: float, *, in_time: bool = False) -> tuple[FloatArray, FloatArray]:
        """Return both sides of gamma(mu), (K,) each, equal but for rounding; ``in_time`` may raise `OutOfTime`."""
        if in_time and time_is_up():
            raise OutOfTime
        root, (left, right) = np.sqrt(price), self.kink_prices
        left, right = root <= left, root >= right
        low = np.where(left, self.below, np.maximum(self.below, self.kink))
        high = np.where(right, self.above, np.minimum(self.above, self.kink))
        low, high = np.minimum(low, high), np.maximum(low, high)
        found = increasing_root(lambda gamma: self.price_of(gamma) - root, low, high, in_time=in_time)
        return found.low, found.high

    def floors(self, price: float, below: FloatArray, above: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Least phi + mu b (K,) although each minimiser is only known between ``below`` and ``above``, and the sizes.

        f = phi + mu b is convex: its minimum is at least f - |f'| times that distance.
        """
        # A price of 0 asks for no bandwidth, which may be infinite there.
        band, band_slope = self.curve.bandwidth_and_slope(above) if price > 0 else (0.0, 0.0)
        value = self.objective.value(self.problem, above) + price * band
        slope = self.objective.derivative(self.problem, above) + price * band_slope
        return value - np.abs(slope) * (above - below + 4e-16), np.abs(value)

    def certificate(self, price: float, below: FloatArray, above: FloatArray) -> float:
        """Dual value at ``price``, valid whatever it is; what rounding may lose is subtracted."""
        least, size = self.floors(price, below, above)
        paid = price * self.problem.total_bandwidth_hz
        return float(least.sum() - paid) - self.curve.rounding * (float(size.sum()) + paid)


def solve_box(
    problem: ResourceProblem,
    objective: SeparableObjective,
    low: FloatArray,
    high: FloatArray,
    curve: Curve | None = None,
) -> DualResult:
    """Minimise the reduced problem over the box [low, high] (K,) for an objective that is convex there.

    ``curve`` is the devices' b_min, or what stands in for it. Raises InfeasibleProblemError if the devices do not fit
    together even at ``high``.
    """
    curve = curve or BandwidthCurve.of(problem)
    total = problem.total_bandwidth_hz
    least = curve.bandwidth_hz(high)
    if not least.sum() <= total * (1 + 1e-12):  # the same sum in another order may differ by rounding
        raise InfeasibleProblemError(
            f"{least.sum():.6g} Hz needed at the largest dropout rates, {total:.6g} Hz available"
        )
    fleet = Fleet(problem, objective, curve, reachable_rates(curve, total, least, low, high), high)
    try:
        below, above = _free_minimisers(fleet, in_time=True)
    except OutOfTime:
        below, above = _free_minimisers(fleet, tolerance=0.05)
    if time_is_up():  # all fit at ``high``, and no price at all gives a bound
        return _result(fleet, high, [(0.0, below, above)])
    band = curve.bandwidth_hz(above)
    if band.sum() <= total:
        return _result(fleet, above, [(0.0, below, above)])
    fleet.below = below
    return _bisect_price(fleet, total, (fleet.below, above))


def reachable_rates(curve: Curve, total_hz: float, least: FloatArray, low: FloatArray, high: FloatArray) -> FloatArray:
    """Raise ``low`` to what is within reach: no device can hold more than what the others leave at their least.

    It only narrows the search, so when it takes half of the time left, ``low`` stays as it is.
    """
    left = np.maximum(total_hz * (1 + 1e-12) - (least.sum() - least), least)
    with suppress(OutOfTime), time_limit(0.5 * remaining_s()):
        reachable = curve.smallest_dropout_rate(left, high, in_time=True)
        low = np.maximum(low, np.where(np.isnan(reachable), high, reachable))
    return np.minimum(low, high)


def _free_minimisers(fleet: Fleet, **options: Any) -> tuple[FloatArray, FloatArray]:
    """Both sides of argmin phi_k on [low_k, high_k]; options as of `increasing_root`."""

    def slope(gamma: FloatArray) -> FloatArray:
        return fleet.objective.derivative(fleet.problem, gamma)

    found = increasing_root(slope, fleet.low, fleet.high, **options)
    fleet.evaluations += found.evaluations
    return found.low, found.high


def _bisect_price(fleet: Fleet, total_hz: float, free: tuple[FloatArray, FloatArray]) -> DualResult:
    """Find the price at which the demand meets the supply; the answer comes from the side that fits.

    ``free`` are the answers to the price 0. When time is up, the best bound of any price that was tried is left.
    """
    best: list[tuple[float, FloatArray, FloatArray]] = [(np.inf, fleet.high, fleet.high), (0.0, *free)]

    def surplus(log_price: FloatArray) -> FloatArray:
        price = float(np.exp(log_price[0]))
        below, above = fleet.answer(price, in_time=True)
        left = total_hz - float(fleet.curve.bandwidth_hz(above).sum())
        if left >= 0:
            fleet.above = above
            best[0] = (price, below, above)
        else:
            fleet.below = below
            best[1] = (price, below, above)
        return np.array([0.0 if 0 <= left <= fleet.curve.rounding * total_hz else left / total_hz])

    middle = fleet.price_of(0.5 * (fleet.below + fleet.high)) ** 2
    usable = middle[np.isfinite(middle) & (middle > 0)]
    start = float(np.log(np.median(usable))) if usable.size else -np.log(total_hz)
    high = np.inf
    with suppress(OutOfTime):
        low, high = _bracket(surplus, start)
        increasing_root(surplus, np.array([low]), np.array([high]), tolerance=1e-13)
    # Where only the box's upper end fits, any large price certifies it, or the box is a point and the price 0 does.
    answers, fits = [(0.0, *free), best[1]], best[0][2]
    if np.isfinite(best[0][0]):
        answers.append(best[0])
    elif np.isfinite(high):
        with suppress(OutOfTime):
            answers.append((float(np.exp(high)), *fleet.answer(float(np.exp(high)), in_time=True)))
    return _result(fleet, fits, answers)


def _bracket(surplus: Callable[[FloatArray], FloatArray], start: float) -> tuple[float, float]:
    """Widen around ``start`` (log price) until the surplus changes sign."""
    step = 1.0
    rising = surplus(np.array([start]))[0] < 0
    near = far = start
    while abs(far) < _LARGEST_LOG:
        near, far = far, float(np.clip(far + (step if rising else -step), -_LARGEST_LOG, _LARGEST_LOG))
        if (surplus(np.array([far]))[0] < 0) != rising:
            break
        step *= 2
    return (near, far) if rising else (far, near)


def _result(fleet: Fleet, gamma: FloatArray, answers: list[tuple[float, FloatArray, FloatArray]]) -> DualResult:
    """Of the prices with both sides of their answers, the one with the best certificate counts."""
    value = float(fleet.objective.value(fleet.problem, gamma).sum())
    bounds = [fleet.certificate(*answer) for answer in answers]
    bound, (price, _, above) = max(zip(bounds, answers, strict=True), key=lambda pair: pair[0])
    return DualResult(gamma, value, min(bound, value), price, above, fleet.evaluations)


def decide_exactly(part: ResourceProblem, arguments: Arguments, earlier: FloatArray | None) -> Decision:
    """Allocate the admitted devices exactly; phi_k is convex, so no earlier answer helps."""
    top = part.highest_rates
    result = solve_box(part, arguments.objective, np.zeros_like(top), top)
    certificate, work = price_certificate(result.price, result.answer), result.iterations
    return Decision(result.lower_bound, certificate, result.dropout_rate, nodes=1, iterations=work)


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
    curve, top = BandwidthCurve.of(problem), problem.highest_rates
    low = reachable_rates(curve, problem.total_bandwidth_hz, curve.bandwidth_hz(top), np.zeros_like(top), top)
    fleet = Fleet(problem, objective, curve, low, top)
    below, above = _free_minimisers(fleet) if price <= 0 else fleet.answer(price)
    return fleet.certificate(max(price, 0.0), below, above), above
