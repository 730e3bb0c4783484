"""The generalization bound that the resource optimizer minimises, one term per device.

Entry (i, j) of B A survives only if row i of B and column j of A both do, so the update's sparsity is
s(gamma) = 1 - (1 - gamma)^2. With n examples, and the constants of `BoundConstants`,

    J(gamma) = a gamma/(1 - gamma) + sqrt((C^2 + 24 C rho^2/(Lambda + 2 lambda s(gamma))) / (2 n delta)).

The first term is underfitting (gradient variance grows as gamma/(1 - gamma), [Xie2024]); the second is the stability
gap ([Fu2023], [Lin2024]), convex and decreasing in gamma. J is convex with one unconstrained minimiser
(docs/formulation.md).

References
----------
[Xie2024] Federated Dropout, arXiv 2501.00379.  [Lin2024] LoRA Dropout as a Sparsity Regularizer, arXiv 2404.09610.
[Fu2023] On the Effectiveness of Parameter-Efficient Fine-Tuning, AAAI 2023.
[Adjiman1998] Adjiman et al., A global optimization method, alphaBB, for general twice-differentiable constrained NLPs,
Computers & Chemical Engineering 22(9), 1998.
"""

from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt

from optimizer.problem import BoundConstants, FloatArray, IntArray, ResourceProblem
from optimizer.rootfinding import increasing_root

Part = IntArray | slice  # numbers of devices, of the shape of what is asked; `EVERY` one in order
EVERY = slice(None)


def sparsity(dropout_rate: npt.ArrayLike) -> FloatArray:
    """Share of zero entries of B A, s = 1 - (1 - gamma)^2 = gamma (2 - gamma)."""
    gamma = np.asarray(dropout_rate, dtype=np.float64)
    return gamma * (2.0 - gamma)


def empirical_part(dropout_rate: npt.ArrayLike, constants: BoundConstants) -> FloatArray:
    """Underfitting term a gamma/(1 - gamma)."""
    gamma = np.asarray(dropout_rate, dtype=np.float64)
    return constants.empirical_scale * gamma / (1.0 - gamma)


def stability_gap(dropout_rate: npt.ArrayLike, num_examples: npt.ArrayLike, constants: BoundConstants) -> FloatArray:
    """Stability gap sqrt((C^2 + 24 C rho^2/(Lambda + 2 lambda s)) / (2 n delta))."""
    curvature = constants.curvature_min + 2.0 * constants.sparsity_regularization * sparsity(dropout_rate)
    loss, examples = constants.loss_bound, np.asarray(num_examples, dtype=np.float64)
    radicand = loss**2 + 24.0 * loss * constants.lipschitz**2 / curvature
    return np.sqrt(radicand / (2.0 * examples * constants.confidence))


def bound_value(dropout_rate: npt.ArrayLike, num_examples: npt.ArrayLike, constants: BoundConstants) -> FloatArray:
    """Bound J(gamma) of one device, unweighted: gamma in [0, 1) and n > 0 broadcast."""
    return empirical_part(dropout_rate, constants) + stability_gap(dropout_rate, num_examples, constants)


def bound_gradient(dropout_rate: npt.ArrayLike, num_examples: npt.ArrayLike, constants: BoundConstants) -> FloatArray:
    """Derivative of `bound_value` in gamma: a/(1 - gamma)^2 + G'(gamma), broadcast shape."""
    gamma, examples = (np.asarray(value, dtype=np.float64) for value in (dropout_rate, num_examples))
    regularization = constants.sparsity_regularization
    curvature = constants.curvature_min + 2.0 * regularization * sparsity(gamma)
    gap = stability_gap(gamma, examples, constants)
    # d/dgamma of the radicand: -24 C rho^2 / curvature^2 * 2 lambda * 2 (1 - gamma), over 2 n delta
    radicand_slope = -48.0 * constants.loss_bound * constants.lipschitz**2 * regularization * (1.0 - gamma)
    radicand_slope = radicand_slope / (curvature**2 * examples * constants.confidence)
    gap_slope = np.divide(radicand_slope, 2.0 * gap, out=np.zeros_like(gap), where=gap > 0)
    return constants.empirical_scale / (1.0 - gamma) ** 2 + gap_slope


def first_rise(slope: Callable[[FloatArray], FloatArray], top: FloatArray) -> FloatArray:
    """Where each rising slope of one dropout rate in [0, top] stops being negative, by halving; shape of ``top``."""
    low, high = np.zeros_like(top), top
    rising = slope(low) >= 0
    for _ in range(60):
        middle = 0.5 * (low + high)
        falling = slope(middle) < 0
        low, high = np.where(falling, middle, low), np.where(falling, high, middle)
    return np.where(rising, 0.0, high)


def unconstrained_minimiser(
    num_examples: npt.ArrayLike, constants: BoundConstants, max_dropout_rate: float
) -> FloatArray:
    """Dropout rate that minimises the bound on [0, max_dropout_rate] without any resource limit, shape of n > 0."""
    top = np.full(np.shape(num_examples), max_dropout_rate)
    return first_rise(lambda gamma: bound_gradient(gamma, num_examples, constants), top)


class SeparableObjective(Protocol):
    """Any objective that is a sum of one function per device, phi_k(gamma_k), weights included.

    ``dropout_rate`` has shape (..., K), with the devices of ``problem`` last; results have the same shape.
    """

    def value(self, problem: ResourceProblem, dropout_rate: FloatArray) -> FloatArray:
        """phi_k(gamma_k)."""

    def derivative(self, problem: ResourceProblem, dropout_rate: FloatArray) -> FloatArray:
        """phi_k'(gamma_k)."""

    def curvature_floor(self, problem: ResourceProblem, low: FloatArray, high: FloatArray) -> FloatArray:
        """A number that phi_k'' never falls below on [low_k, high_k]; >= 0 declares phi_k convex there."""


class Convex:
    """An objective that is convex, to be inherited."""

    def curvature_floor(self, problem: ResourceProblem, low: FloatArray, high: FloatArray) -> FloatArray:
        """Zero."""
        return np.zeros(np.broadcast(low, high).shape)


class GeneralizationBound(Convex):
    """The default objective, phi_k = w_k J_k(gamma_k), with rounding noise q on the wire w_k (J_k + a q/(1 - gamma)).

    gamma/(1 - gamma) is the relative variance of unbiased dropout, and that of two unbiased operators in turn is
    (1 + q)/(1 - gamma) - 1.
    """

    def value(self, problem: ResourceProblem, dropout_rate: FloatArray, who: Part = EVERY) -> FloatArray:
        """w_k J_k of the devices ``who``, one per entry of ``dropout_rate``, and of its shape."""
        bound = bound_value(dropout_rate, problem.num_examples[who], problem.bound)
        if problem.noise is not None:
            bound = bound + problem.bound.empirical_scale * problem.noise[who] / (1.0 - dropout_rate)
        return problem.weights[who] * bound

    def derivative(self, problem: ResourceProblem, dropout_rate: FloatArray, who: Part = EVERY) -> FloatArray:
        """w_k J_k' of the devices ``who``, shape of ``dropout_rate``."""
        slope = bound_gradient(dropout_rate, problem.num_examples[who], problem.bound)
        if problem.noise is not None:
            slope = slope + problem.bound.empirical_scale * problem.noise[who] / (1.0 - dropout_rate) ** 2
        return problem.weights[who] * slope


class ConvexUnderestimator(Convex):
    """Convex under-estimator of ``objective`` on the box [low, high] (K,), itself a `SeparableObjective`.

    With a number m_k <= phi_k'' (`curvature_floor`) and ``alpha`` = max(0, -m), phi - alpha/2 (gamma - low)(high -
    gamma) is convex, never above phi, equal to it at both ends, and short of it by at most alpha (high - low)^2 / 8
    [Adjiman1998].
    """

    def __init__(self, problem: ResourceProblem, objective: SeparableObjective, low: FloatArray, high: FloatArray):
        self.objective, self.low, self.high = objective, low, high
        self.alpha = np.maximum(-objective.curvature_floor(problem, low, high), 0.0)

    def deficit(self, dropout_rate: FloatArray) -> FloatArray:
        """How far it lies below the objective, alpha/2 (gamma - low)(high - gamma), never negative on the box."""
        return 0.5 * self.alpha * np.maximum((dropout_rate - self.low) * (self.high - dropout_rate), 0.0)

    def value(self, problem: ResourceProblem, dropout_rate: FloatArray) -> FloatArray:
        """Under-estimated phi_k."""
        return self.objective.value(problem, dropout_rate) - self.deficit(dropout_rate)

    def derivative(self, problem: ResourceProblem, dropout_rate: FloatArray) -> FloatArray:
        """Its derivative."""
        tilt = 0.5 * self.alpha * (self.low + self.high - 2 * dropout_rate)
        return self.objective.derivative(problem, dropout_rate) - tilt


def _range(problem: ResourceProblem) -> tuple[FloatArray, FloatArray]:
    return np.zeros(problem.num_devices), np.full(problem.num_devices, problem.max_dropout_rate)


def is_convex(problem: ResourceProblem, objective: SeparableObjective) -> bool:
    """Whether the objective declares itself convex on the whole range of dropout rates."""
    return bool((objective.curvature_floor(problem, *_range(problem)) >= 0).all())


def free_rates(problem: ResourceProblem, objective: SeparableObjective) -> FloatArray:
    """Minimisers (K,) of all phi_k (of their under-estimators) without any resource limit."""
    convex = ConvexUnderestimator(problem, objective, *_range(problem))
    return increasing_root(lambda rate: convex.derivative(problem, rate), *_range(problem)).high


def free_bound(problem: ResourceProblem, objective: SeparableObjective) -> float:
    """Sum of the minima of all phi_k (of their under-estimators) without any resource limit: below every allocation."""
    convex = ConvexUnderestimator(problem, objective, *_range(problem))
    value = convex.value(problem, free_rates(problem, objective))
    return float(value.sum()) - 1e-14 * float(np.abs(value).sum())
