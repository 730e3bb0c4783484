"""Fit the constants of the generalization bound to measured losses of a sweep over dropout rates.

The bound's two terms are fitted to what they describe: the underfitting term to the training loss and the stability
term to the gap between test and training loss,

    train(gamma) = t0 + a gamma/(1 - gamma),        gap(gamma) = sqrt(u + v/(1 + w s(gamma))),   s = gamma (2 - gamma),

with a, u, v, w >= 0, by least squares. Three numbers do not determine C, rho, Lambda, lambda and delta: Lambda and
delta keep given values, then C = sqrt(2 n delta u), rho^2 = v Lambda 2 n delta/(24 C), lambda = w Lambda/2 (see
`optimizer.objective`).
"""

from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

from optimizer.objective import bound_value, sparsity, unconstrained_minimiser
from optimizer.problem import BoundConstants, FloatArray, ProblemError

_STARTS = (0.1, 1.0, 10.0, 100.0)  # of w; u and v start at half the largest squared gap
_FLOOR = 1e-6  # u is at least this share of the largest squared gap: C = 0 would switch the stability term off


@dataclass(frozen=True)
class Sweep:
    """Measured losses of runs at three dropout rates or more; all arrays have shape (runs,)."""

    dropout_rate: FloatArray  # in [0, 1)
    train_loss: FloatArray
    gap: FloatArray  # test loss minus training loss
    seed: np.ndarray  # which runs belong together; resampled as a whole
    num_examples: float  # of one device, for training

    def __post_init__(self) -> None:
        """Check ranges."""
        rates = np.unique(self.dropout_rate)
        if rates.size < 3:
            raise ProblemError(f"a calibration needs runs at three dropout rates or more, found {rates.tolist()}")
        if not ((rates >= 0) & (rates < 1)).all():
            raise ProblemError(f"dropout rates must be in [0, 1), found {rates.tolist()}")
        if not (np.isfinite(self.train_loss).all() and np.isfinite(self.gap).all()):
            raise ProblemError("a calibration needs finite losses; leave out the runs that diverged")
        if not self.num_examples > 0:
            raise ProblemError(f"num_examples must be positive, found {self.num_examples}")

    @property
    def test_loss(self) -> FloatArray:
        """Shape (runs,)."""
        return self.train_loss + self.gap

    def take(self, index: np.ndarray) -> "Sweep":
        """Return the runs at ``index``."""
        rate, loss, gap, seed = (part[index] for part in (self.dropout_rate, self.train_loss, self.gap, self.seed))
        return Sweep(rate, loss, gap, seed, self.num_examples)


@dataclass(frozen=True)
class Calibration:
    """Fitted constants and the training loss without dropout (which no choice of gamma changes)."""

    constants: BoundConstants
    offset: float

    def predict(self, dropout_rate: FloatArray, num_examples: float) -> FloatArray:
        """Predicted test loss t0 + J(gamma), shape of ``dropout_rate``."""
        return self.offset + bound_value(dropout_rate, num_examples, self.constants)

    def best_rate(self, num_examples: float, max_dropout_rate: float) -> float:
        """The dropout rate that minimises the calibrated bound on [0, max_dropout_rate]."""
        return float(unconstrained_minimiser(num_examples, self.constants, max_dropout_rate))


def fit(sweep: Sweep, *, curvature_min: float, confidence: float) -> Calibration:
    """Fit the constants by least squares; Lambda (``curvature_min``) and delta (``confidence``) are kept."""
    odds = sweep.dropout_rate / (1 - sweep.dropout_rate)
    slope = max(0.0, float(np.polyfit(odds, sweep.train_loss, 1)[0]))
    offset = float(np.mean(sweep.train_loss - slope * odds))
    u, v, w = _fit_gap(sweep)
    samples = 2 * sweep.num_examples * confidence
    loss_bound = float(np.sqrt(samples * u))
    lipschitz = float(np.sqrt(v * curvature_min * samples / (24 * loss_bound))) if loss_bound > 0 else 0.0
    constants = BoundConstants(slope, loss_bound, lipschitz, curvature_min, w * curvature_min / 2, confidence)
    return Calibration(constants, offset)


def _fit_gap(sweep: Sweep) -> tuple[float, float, float]:
    share = sparsity(sweep.dropout_rate)
    largest = max(float(np.max(sweep.gap)) ** 2, 1e-12)

    def residual(x: FloatArray) -> FloatArray:
        return np.asarray(np.sqrt(x[0] + x[1] / (1 + x[2] * share)) - sweep.gap)

    bounds, scale = ([_FLOOR * largest, 0.0, 0.0], [np.inf, np.inf, 1e4]), [largest, largest, 1.0]
    starts = [[largest / 2, largest / 2, start] for start in _STARTS]
    found = [optimize.least_squares(residual, start, bounds=bounds, x_scale=scale) for start in starts]
    u, v, w = min(found, key=lambda result: float(result.cost)).x.tolist()
    return u, v, w


@dataclass(frozen=True)
class Judgement:
    """How well a calibrated bound orders the rates and finds the best one."""

    predicted_rate: float  # where the bound is smallest
    measured_rate: float  # where the mean measured test loss is smallest, on the grid of the sweep
    rank_correlation: float  # Spearman's, of predicted and mean measured test loss; NaN if either is constant

    @property
    def distance(self) -> float:
        """|predicted_rate - measured_rate|."""
        return abs(self.predicted_rate - self.measured_rate)


def judge(calibration: Calibration, sweep: Sweep) -> Judgement:
    """Compare a calibration with measured runs, its own or others."""
    rates = np.unique(sweep.dropout_rate)
    measured = np.array([sweep.test_loss[sweep.dropout_rate == rate].mean() for rate in rates])
    predicted = calibration.predict(rates, sweep.num_examples)
    constant = np.ptp(measured) == 0 or np.ptp(predicted) < 1e-12
    correlation = float("nan") if constant else float(stats.spearmanr(measured, predicted).statistic)
    best = calibration.best_rate(sweep.num_examples, float(rates[-1]))
    return Judgement(best, float(rates[measured.argmin()]), correlation)


def leave_one_seed_out(sweep: Sweep, **kept: float) -> list[Judgement]:
    """Fit without one seed (``kept``: as of `fit`) and judge on that seed alone; empty for a single seed."""
    seeds = np.unique(sweep.seed)
    fits = {seed: fit(sweep.take(sweep.seed != seed), **kept) for seed in seeds if seeds.size > 1}
    return [judge(fitted, sweep.take(sweep.seed == seed)) for seed, fitted in fits.items()]


def bootstrap(sweep: Sweep, *, repeats: int, rng: np.random.Generator, **kept: float) -> list[Calibration]:
    """Fit resamples of whole seeds; their spread is the uncertainty of the constants. Empty for a single seed."""
    seeds, fits = np.unique(sweep.seed), []
    for _ in range(repeats if seeds.size > 1 else 0):
        drawn = rng.choice(seeds, size=seeds.size)
        index = np.concatenate([np.flatnonzero(sweep.seed == seed) for seed in drawn])
        fits.append(fit(sweep.take(index), **kept))
    return fits
