r"""A bound that predicts: dropout acts first as time, then as a regulariser.

After t rounds with dropout rate gamma training stands where it stood without dropout at

    t_eff = t (1 - gamma)^(a0 + a1 ln t),        a0 + a1 ln t in [0, 3],

and the gap between test and training loss is smaller by one more power of 1 - gamma:

    phi(gamma, t) = train(t_eff) + (test(t_eff) - train(t_eff)) (1 - gamma)^b.

The curves train and test come from one pilot run without dropout, or from the rounds that have passed; a0, a1 and b are
three numbers, fitted to runs with dropout, of this task or of others. This is this project's own model, made from its
measurements; studies/learning_curve.yaml holds what it predicts, and misses.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import optimize
from scipy.interpolate import CubicSpline

from optimizer.problem import FloatArray, ProblemError, ResourceProblem

_START = (0.4, 0.2, 0.1)  # near what SST-2 and RTE give
_LARGEST_EXPONENT = 3.0
_KNOTS = np.linspace(0.0, 0.99, 34)  # dropout rates between which the bound is a cubic
_PRIOR_WEIGHT = 0.1  # a loss that is missed by a tenth weighs as much as an exponent that is moved by one
_TRAINING_WEIGHT = 0.3  # of the training losses' residuals beside the test losses', which matter


@dataclass(frozen=True)
class Curve:
    """Losses of a run: ``rounds`` (n,) ascending from 0, ``train`` and ``test`` (n,)."""

    rounds: FloatArray
    train: FloatArray
    test: FloatArray

    def __post_init__(self) -> None:
        """Check shapes and values."""
        sizes = {self.rounds.shape, self.train.shape, self.test.shape}
        ascending = self.rounds.ndim == 1 and self.rounds.size > 1 and (np.diff(self.rounds) > 0).all()
        if len(sizes) > 1 or not ascending or not (np.isfinite(self.train) & (self.test > 0)).all():
            raise ProblemError("a learning curve needs ascending rounds with finite training and positive test losses")


@dataclass(frozen=True)
class Exponents:
    """What dropout does to time (a0, a1) and to the gap (b); see the module."""

    a0: float
    a1: float
    b: float

    def effective_round(self, dropout_rate: FloatArray | float, rounds: FloatArray | float) -> FloatArray:
        """Return t_eff, broadcast shape."""
        exponent = np.clip(self.a0 + self.a1 * np.log(np.maximum(rounds, 1.0)), 0.0, _LARGEST_EXPONENT)
        return np.asarray(rounds * (1 - dropout_rate) ** exponent)

    def test_loss(self, pilot: Curve, dropout_rate: FloatArray | float, rounds: FloatArray | float) -> FloatArray:
        """Return phi(gamma, t) for the curve of a run without dropout, broadcast shape."""
        moment = self.effective_round(dropout_rate, rounds)
        train, test = (np.interp(moment, pilot.rounds, losses) for losses in (pilot.train, pilot.test))
        return np.asarray(train + (test - train) * (1 - dropout_rate) ** self.b)


@dataclass(frozen=True)
class LearningCurveBound:
    """The objective phi_k = w_k phi(gamma_k, t): a `optimizer.objective.SeparableObjective`, convex or not.

    Between `_KNOTS` it is the cubic spline through phi, so that its derivative is smooth and its curvature, linear from
    knot to knot, has an exact floor: branch and bound certifies it.
    """

    pilot: Curve
    exponents: Exponents
    rounds: float

    @cached_property
    def _spline(self) -> CubicSpline:
        return CubicSpline(_KNOTS, self.exponents.test_loss(self.pilot, _KNOTS, self.rounds))

    def value(self, problem: ResourceProblem, dropout_rate: FloatArray) -> FloatArray:
        """w_k phi, shape of ``dropout_rate``."""
        return np.asarray(problem.weights * self._spline(dropout_rate))

    def derivative(self, problem: ResourceProblem, dropout_rate: FloatArray) -> FloatArray:
        """w_k phi', shape of ``dropout_rate``."""
        return np.asarray(problem.weights * self._spline(dropout_rate, 1))

    def curvature_floor(self, problem: ResourceProblem, low: FloatArray, high: FloatArray) -> FloatArray:
        """The least curvature on [low_k, high_k]: at an end or at a knot."""
        low, high = np.broadcast_arrays(low, high)
        inside = (_KNOTS > low[..., None]) & (_KNOTS < high[..., None])  # (..., K, knots)
        knots = np.where(inside, self._spline(_KNOTS, 2), np.inf).min(axis=-1)
        ends = np.minimum(self._spline(low, 2), self._spline(high, 2))
        return np.asarray(problem.weights * np.minimum(knots, ends))


def fit_exponents(
    runs: Sequence[tuple[Curve, FloatArray | float, Curve]], last_round: float = np.inf, prior: Exponents | None = None
) -> Exponents:
    """Fit a0, a1 and b by least squares to rounds up to ``last_round``.

    ``runs``: the pilot run of a task, a dropout rate above 0 (or one for every round of the curve), and the curve of a
    run with it. Given a ``prior``, few rounds move it little.
    """
    if not runs:
        raise ProblemError("fitting the exponents of a learning curve needs a run with dropout, found none")
    begin = np.array(_START if prior is None else (prior.a0, prior.a1, prior.b))

    def residuals(x: FloatArray) -> FloatArray:
        exponents, parts = Exponents(*x), [_PRIOR_WEIGHT * (x - begin)] * (prior is not None)
        for pilot, rates, run in runs:
            seen = (run.rounds > 0) & (run.rounds <= last_round)
            t, gamma = run.rounds[seen], np.broadcast_to(rates, run.rounds.shape)[seen]
            parts.append(np.log(np.maximum(exponents.test_loss(pilot, gamma, t), 1e-12) / run.test[seen]))
            train = np.interp(exponents.effective_round(gamma, t), pilot.rounds, pilot.train)
            parts.append(_TRAINING_WEIGHT * (train - run.train[seen]) / pilot.train[0])
        return np.concatenate(parts)

    return Exponents(*map(float, optimize.least_squares(residuals, begin).x))
