"""The resource optimizer: dropout rates, bandwidth or subcarriers, and power that minimise the generalization bound.

The optimizer that trains is always called ``torch_optimizer``; this package decides resources only. A round reads

    solution = make_allocator("exact", fallback=("equal", "none")).allocate(problem, rng=rng)

Solvers behind the names in `optimizer.allocator.METHODS` are imported when they are first used.
"""

from optimizer.allocator import make_allocator
from optimizer.feasibility import check_solution
from optimizer.problem import BoundConstants, Goal, ProblemError, ResourceProblem, Solution

__all__ = ["BoundConstants", "Goal", "ProblemError", "ResourceProblem", "Solution", "check_solution", "make_allocator"]
