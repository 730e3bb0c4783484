"""Convex under-estimators of separable objectives that are not convex.

On a box, with a number m_k <= phi_k'' from the objective (`curvature_floor`) and alpha = max(0, -m),

    phi(gamma) - alpha/2 (gamma - low)(high - gamma)

is convex, never above phi, equal to it at both ends, and short of it by at most alpha (high - low)^2 / 8 [Adjiman1998].

References
----------
[Adjiman1998] Adjiman et al., A global optimization method, alphaBB, for general twice-differentiable constrained NLPs,
Computers & Chemical Engineering 22(9), 1998.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from optimizer.bound import SeparableObjective
from optimizer.problem import FloatArray, ResourceProblem
from optimizer.rootfinding import increasing_root


@dataclass(frozen=True)
class ConvexUnderestimator:
    """The under-estimator of ``objective`` on [low, high] (K,), itself a `SeparableObjective`; ``alpha`` has shape (K,)."""

    objective: SeparableObjective
    low: FloatArray
    high: FloatArray
    alpha: FloatArray

    @classmethod
    def on_box(
        cls, problem: ResourceProblem, objective: SeparableObjective, low: FloatArray, high: FloatArray
    ) -> ConvexUnderestimator:
        """Build it from the objective's curvature floor on the box."""
        alpha = np.maximum(-objective.curvature_floor(problem, low, high), 0.0)
        return cls(objective, low, high, alpha)

    def deficit(self, dropout_rate: FloatArray) -> FloatArray:
        """How far it lies below the objective, alpha/2 (gamma - low)(high - gamma), never negative on the box."""
        return 0.5 * self.alpha * np.maximum((dropout_rate - self.low) * (self.high - dropout_rate), 0.0)

    def value(self, problem: ResourceProblem, dropout_rate: FloatArray) -> FloatArray:
        """Under-estimated phi_k."""
        return self.objective.value(problem, dropout_rate) - self.deficit(dropout_rate)

    def derivative(self, problem: ResourceProblem, dropout_rate: FloatArray) -> FloatArray:
        """Its derivative."""
        return self.objective.derivative(problem, dropout_rate) - 0.5 * self.alpha * (self.low + self.high - 2 * dropout_rate)

    def curvature_floor(self, problem: ResourceProblem, low: FloatArray, high: FloatArray) -> FloatArray:
        """Zero: it is convex."""
        return np.zeros(np.broadcast(low, high).shape)


def is_convex(problem: ResourceProblem, objective: SeparableObjective) -> bool:
    """Whether the objective declares itself convex on the whole range of dropout rates."""
    low, high = np.zeros(problem.num_devices), np.full(problem.num_devices, problem.max_dropout_rate)
    return bool((objective.curvature_floor(problem, low, high) >= 0).all())


def free_bound(problem: ResourceProblem, objective: SeparableObjective) -> float:
    """Sum of the minima of all phi_k (of their under-estimators) without any resource limit: below every allocation."""
    low, high = np.zeros(problem.num_devices), np.full(problem.num_devices, problem.max_dropout_rate)
    convex = ConvexUnderestimator.on_box(problem, objective, low, high)
    gamma = increasing_root(lambda rate: convex.derivative(problem, rate), low, high).high
    value = convex.value(problem, gamma)
    return float(value.sum()) - 1e-14 * float(np.abs(value).sum())
