"""Bracketed root finding for many increasing functions at once.

References
----------
[Chandrupatla1997] A new hybrid quadratic/bisection algorithm for finding the zero of a nonlinear function without using
derivatives, Advances in Engineering Software 28(3).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from optimizer.problem import FloatArray
from optimizer.timing import OutOfTime, time_is_up

Function = Callable[[FloatArray], FloatArray]
_MOST_EVALUATIONS = 200


class Bracket(NamedTuple):
    """Both sides (K,) of the roots: functions are <= 0 at ``low`` and >= 0 at ``high``; ``evaluations``: calls."""

    low: FloatArray
    high: FloatArray
    evaluations: int


def increasing_root(
    function: Function, low: FloatArray, high: FloatArray, *, tolerance: float = 4e-16, in_time: bool = False
) -> Bracket:
    """Bracket the roots (K,) of increasing functions of one variable by Chandrupatla's method [Chandrupatla1997].

    ``function`` maps (K,) to (K,), elementwise and non-decreasing; infinite values are allowed, NaN is not. One that is
    >= 0 at ``low`` returns the bracket (low, low), one that is <= 0 at ``high`` returns (high, high); a jump through
    zero is bracketed like a root. The final bracket is as wide as ``tolerance`` and twice the spacing of floating-point
    numbers at the root; bisection alone needs about 60 evaluations. ``in_time`` raises `OutOfTime` when time is up.
    """

    def at(x: FloatArray) -> FloatArray:
        if in_time and time_is_up():
            raise OutOfTime
        return function(x)

    x1, x2 = np.array(low, dtype=np.float64), np.array(high, dtype=np.float64)  # the newest point, and the opposite end
    f1, f2 = at(x1), at(x2)
    at_low, at_high = f1 >= 0, (f2 <= 0) & (f1 < 0)
    x1, x2, done = np.where(at_high, x2, x1), np.where(at_low, x1, x2), at_low | at_high
    step, evaluations = np.full_like(x1, 0.5), 2  # relative to the bracket, from x1
    while not done.all() and evaluations < _MOST_EVALUATIONS:
        x = np.where(done, x1, x1 + step * (x2 - x1))  # who has finished stays at x1
        f, evaluations = at(x), evaluations + 1
        same = (f > 0) == (f1 > 0)
        x3, f3 = np.where(same, x1, x2), np.where(same, f1, f2)
        x2, f2 = np.where(same, x2, x1), np.where(same, f2, f1)
        exact = (f == 0) & ~done
        x1, f1, x2 = x, f, np.where(exact, x, x2)
        width = np.abs(x2 - x)
        smallest = 0.5 * tolerance + 2.2e-16 * np.maximum(np.abs(x), np.abs(x2))
        done = done | exact | (width <= 2 * smallest)
        with np.errstate(all="ignore"):
            xi, phi = (x - x2) / (x3 - x2), (f - f2) / (f3 - f2)
            inside = (phi**2 < xi) & ((1 - phi) ** 2 < 1 - xi)  # where inverse quadratic interpolation can be trusted
            quadratic = f / (f2 - f) * f3 / (f2 - f3) + (x3 - x) / (x2 - x) * f / (f3 - f) * f2 / (f3 - f2)
            margin = np.minimum(smallest / width, 0.5)
            step = np.clip(np.where(inside & np.isfinite(quadratic), quadratic, 0.5), margin, 1 - margin)
    return Bracket(np.minimum(x1, x2), np.maximum(x1, x2), evaluations)
