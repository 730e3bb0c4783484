"""Joint Newton iteration for the price on bandwidth and every device's answer to it: few evaluations, certified or refused.

At the optimum of the reduced problem (`optimizer.fdma.exact`) every device has the same price r_k = phi_k'/(-b_k'), the price at
which its gamma_k is the answer, and the bandwidths sum to W. Both are linearised at once: with t = T(r) and t' = dt/dgamma,

    gamma_k <- gamma_k + (rho - t_k)/t_k',     rho from   sum_k b_k + b_k' (rho - t_k)/t_k' = W,     mu = T^{-1}(rho).

T(r) = r/sqrt(c + |r|) is linear where the price vanishes and a square root where it is large: r grows like the square of the
distance to the point where b_k explodes, so t is nearly linear at both ends. r jumps at the kink of b_k; a device stays there,
or at an end of its box, as long as rho lies within that jump. Derivatives of t are difference quotients taken in the same
vectorised call, so nothing but phi', b and b' is needed. There is no proof of convergence from afar and none is needed: a
point is handed out only with its dual value, otherwise the caller brackets.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from optimizer.fdma.bandwidth_curve import BandwidthCurve
from optimizer.objective import SeparableObjective
from optimizer.problem import FloatArray, IntArray, ResourceProblem

_START = np.array([0.1, 0.3, 0.5, 0.7, 0.9])[:, None]  # shares of the box tried in the first call
_KINK_WIDTH = 1e-13  # distance from the kink of its one-sided slopes, relative to the box
_QUOTIENT = 1e-6  # step of the difference quotients, relative to the piece; the error per Newton step shrinks by as much


class CertifiedPoint(NamedTuple):
    """Dropout rates and bandwidths (K,) that fit, their value, the dual value at ``price`` [1/Hz], vectorised calls made."""

    dropout_rate: FloatArray
    bandwidth_hz: FloatArray
    objective: float
    lower_bound: float
    price: float
    evaluations: int


def dual_value(value: FloatArray, slope: FloatArray, reach: FloatArray, price: float, total_hz: float) -> float:
    """Lower bound from f_k = phi_k + mu b_k and f_k' (K,) at points whose minimiser is at most ``reach`` away downhill.

    f_k is convex, so its minimum is at least f - |f'| reach. What summation may lose is subtracted.
    """
    total = float((value - np.abs(slope) * (reach + 4e-16)).sum() - price * total_hz)
    return total - 4e-16 * float(np.abs(value).sum())


class _Sample(NamedTuple):
    """b_min, b_min', phi' and the transformed price t, all of the shape of the dropout rates."""

    band: FloatArray
    band_slope: FloatArray
    slope: FloatArray
    level: FloatArray


class _Search:
    """The devices' curves cut into pieces, between which b_min' jumps, and the first guess."""

    def __init__(
        self, problem: ResourceProblem, objective: SeparableObjective, curve: BandwidthCurve, low: FloatArray, high: FloatArray
    ) -> None:
        self.problem, self.objective, self.curve, self.low, self.high = problem, objective, curve, low, high
        start = np.minimum(np.maximum(low, curve.feasible_from()), high)
        width = high - start
        self.kink_width = _KINK_WIDTH * width
        kink = curve.kink()
        inside = (kink > start + 2 * self.kink_width) & (kink < high - 2 * self.kink_width)
        left, right = np.where(inside, (kink - self.kink_width, kink + self.kink_width), start)
        self.knots = np.array([start, left, right, high])  # pieces [0, 1] and [2, 3]; the first is empty without a kink
        grid = start + _START * width
        self.evaluations, self.scale = 0, 1.0
        sample = self.sample(np.concatenate([self.knots, grid]))
        best = 4 + int(np.argmin(np.abs(np.log(sample.band[4:].sum(axis=1) / problem.total_bandwidth_hz))))
        price = np.abs(sample.slope / sample.band_slope)[best]
        self.usable = bool((sample.band_slope[best] < 0).all() and np.isfinite(price).all())
        self.scale = float(np.median(price)) or 1.0
        levels = self.transformed(sample)
        self.gamma, self.start_level = grid[best - 4], max(float(np.median(levels[best])), 0.0)
        self.open_below = ~np.isfinite(sample.band[0])  # b_min explodes at the lower end
        self.knot_levels = np.where(np.isfinite(sample.band[:4]), levels[:4], -np.inf)

    def transformed(self, sample: _Sample) -> FloatArray:
        """T(phi'/(-b'))."""
        price = sample.slope / -sample.band_slope
        return price / np.sqrt(self.scale + np.abs(price))

    def price(self, level: float) -> float:
        """T^{-1} of a level that is not negative."""
        return 0.5 * level * (level + float(np.sqrt(level * level + 4 * self.scale)))

    def sample(self, gamma: FloatArray) -> _Sample:
        """Evaluate the curves at dropout rates (R, K), all rows in one call."""
        self.evaluations += 1
        band, band_slope = self.curve.bandwidth_and_slope(gamma)
        sample = _Sample(band, band_slope, self.objective.derivative(self.problem, gamma), band)
        return sample._replace(level=self.transformed(sample))

    def place(self, level: float) -> IntArray:
        """How many knots the level has passed, (K,): an odd number inside a piece, an even one at an end or the kink."""
        return (self.knot_levels < level).sum(axis=0)

    def piece(self, passed: IntArray) -> tuple[FloatArray, FloatArray]:
        """Both ends of the piece in which, or next to which, each device is."""
        second = passed >= 2
        return np.where(second, self.knots[2], self.knots[0]), np.where(second, self.knots[3], self.knots[1])

    def move(self, step: FloatArray, passed: IntArray) -> FloatArray:
        """Dropout rates after a step, kept in the pieces, nine tenths at most of the way to where b_min explodes."""
        below, above = self.piece(passed)
        below = np.where(self.open_below & (passed < 2), below + 0.1 * (self.gamma - below), below)
        moved = np.minimum(np.maximum(self.gamma + step, below), above)
        ends = np.where(passed == 0, self.knots[0], np.where(passed == 2, self.knots[2], self.knots[3]))
        return np.where(passed % 2 == 1, moved, ends)

    def certified(self, sample: _Sample, level: float, passed: IntArray, tolerance: float) -> CertifiedPoint | None:
        """Return the current point if it fits and its dual value is near enough, at the price of ``level``."""
        band, total = sample.band[0], self.problem.total_bandwidth_hz
        if not band.sum() <= total:
            return None
        price, gamma = self.price(level), self.gamma
        own = self.objective.value(self.problem, gamma)
        slope = sample.slope[0] + price * sample.band_slope[0]
        reach = np.where(slope > 0, gamma - self.low, self.high - gamma)
        reach = np.where(passed == 2, 2 * self.kink_width, reach)  # the slopes on both sides of the kink point to it
        value, bound = float(own.sum()), dual_value(own + price * band, slope, reach, price, total)
        if not value - bound <= tolerance * abs(value):
            return None
        return CertifiedPoint(gamma, band, value, min(bound, value), price, self.evaluations)

    def next_level(self, level: float, rise: bool) -> float:
        """Level just beyond the next knot: where every device rests at a knot, none answers to a small change."""
        knots = self.knot_levels
        if rise:
            above = knots[knots > level]
            return float(above.min()) * 1.001 if above.size else np.nan
        under = knots[(knots < level) & (knots > 0)]
        return float(under.max()) * 0.999 if under.size else 0.0


def newton_point(
    problem: ResourceProblem,
    objective: SeparableObjective,
    curve: BandwidthCurve,
    low: FloatArray,
    high: FloatArray,
    *,
    tolerance: float = 1e-12,
    max_steps: int = 20,
) -> CertifiedPoint | None:
    """Minimise the reduced problem over [low, high] by Newton's method on the price and all dropout rates together.

    Parameters
    ----------
    problem : ResourceProblem
        FDMA, every device takes part and all fit together at ``high``.
    objective : SeparableObjective
        phi_k, convex on the box.
    curve : BandwidthCurve
        b_min of the devices.
    low, high : ndarray
        Shape (K,), the box.
    tolerance : float
        Largest relative distance of the dual value.
    max_steps : int
        Guard; six are usual.

    Returns
    -------
    CertifiedPoint or None
        None where the iteration does not certify its point: at a boundary of the model, or started too far away.
    """
    with np.errstate(all="ignore"):  # what is not finite is never certified
        search = _Search(problem, objective, curve, low, high)
        return _iterate(search, tolerance, max_steps) if search.usable else None


def _iterate(search: _Search, tolerance: float, max_steps: int) -> CertifiedPoint | None:
    """Newton steps until the point is certified; None if they do not get there."""
    total_hz, margin = search.problem.total_bandwidth_hz, 2e-14  # a margin, for rounding must not push the sum above W
    level, passed = search.start_level, search.place(search.start_level)
    free = passed % 2 == 1
    for _ in range(max_steps):
        below, above = search.piece(passed)
        inward = np.where(search.gamma - below > above - search.gamma, below, above) - search.gamma
        shift = np.where(free, _QUOTIENT * inward, 0.0)
        sample = search.sample(np.array([search.gamma, search.gamma + shift]))
        found = search.certified(sample, level, passed, tolerance)
        if found is not None:
            return found
        inverse = np.where(free, shift / (sample.level[1] - sample.level[0]), 0.0)  # dgamma/dt
        demand, needed = _demand(sample, inverse, level)
        excess = float(sample.band[0].sum()) / total_hz - 1.0
        margin *= 4.0 if 0 < excess < 1e-11 else 1.0
        surplus = total_hz * (1.0 - margin) - demand
        level = max(level + surplus / needed, 0.0) if needed < 0 else search.next_level(level, surplus < 0)
        if not np.isfinite(level):
            return None
        step = np.where(free, (level - sample.level[0]) * inverse, 0.0)
        passed = search.place(level)
        free = passed % 2 == 1
        search.gamma = search.move(step, passed)
    return None


def _demand(sample: _Sample, inverse: FloatArray, level: float) -> tuple[float, float]:
    """Bandwidth that linearised answers to ``level`` take, and its derivative in the level."""
    response = sample.band_slope[0] * inverse
    return float((sample.band[0] + response * (level - sample.level[0])).sum()), float(response.sum())
