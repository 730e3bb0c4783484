"""The resource optimizer: dropout rates, bandwidth or subcarriers, and power that minimise the generalization bound.

The optimizer that trains is always called ``torch_optimizer``; this package decides resources only. A round reads

    solution = make_allocator("exact", fallback=("equal", "none")).allocate(problem, rng=rng)

Solvers behind the names in `optimizer.allocator.METHODS` are imported when they are first used.
"""

from optimizer.allocator import AllocationError, FallbackChain, ResourceAllocator, make_allocator
from optimizer.feasibility import Violation, check_solution
from optimizer.objective import GeneralizationBound, SeparableObjective
from optimizer.problem import (
    BoundConstants,
    Goal,
    InfeasibleProblemError,
    ProblemError,
    ResourceProblem,
    Solution,
    SolverStatus,
)

__all__ = [
    "AllocationError",
    "BoundConstants",
    "FallbackChain",
    "GeneralizationBound",
    "Goal",
    "InfeasibleProblemError",
    "ProblemError",
    "ResourceAllocator",
    "ResourceProblem",
    "SeparableObjective",
    "Solution",
    "SolverStatus",
    "Violation",
    "check_solution",
    "make_allocator",
]
