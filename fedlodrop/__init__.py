"""The product as people use it: the `fedlodrop` command and, from Python, `import fedlodrop`.

What the commands do, as functions with typed results: `run`, `resume`, `sweep`, `load` and `solve`. They leave the
process as they found it and show nothing unless ``progress=True``. Overrides are written as for Hydra's compose.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedlodrop.runs import load, resume, run, speaker

if TYPE_CHECKING:
    from fedlodrop.study.sweep import Sweep
    from optimizer.problem import Goal, ResourceProblem, Solution

__all__ = ["load", "resume", "run", "solve", "sweep"]


def sweep(*overrides: str, folder: str | Path | None = None, jobs: int = 0, progress: bool = False) -> "Sweep":
    """Run all combinations of several values; called again, finished jobs are skipped and failed ones tried once more.

    ``jobs`` run side by side, in processes of one thread each; 0: one after the other in this process.

    Examples
    --------
    >>> import fedlodrop
    >>> tiny = ["model=tiny", "task.train_limit=100", "network.num_devices=3", "run.num_rounds=1"]
    >>> found = fedlodrop.sweep(*tiny, "allocator=equal,none", folder="results/allocators")
    >>> found.jobs[["allocator", "status"]].to_numpy().tolist()
    [['equal', 'finished'], ['none', 'finished']]
    """
    from fedlodrop.study.sweep import sweep as run_sweep

    return run_sweep(list(overrides), None if folder is None else Path(folder), jobs, speaker(progress))


def solve(
    problem: "ResourceProblem | str | Path",
    method: str = "exact",
    *,
    goal: "Goal | None" = None,
    seed: int = 0,
    **options: Any,
) -> "Solution":
    """Decide dropout rates, bandwidth or subcarriers, and power for one round, as `python -m optimizer solve` does.

    ``problem`` may be a file that describes one (schema fedlodrop/resource-problem/2). ``method`` is a key of
    `optimizer.allocator.METHODS`; ``goal`` is minimised in place of what the problem says, such as
    ``optimizer.Goal("time", max_bound=0.45)``; ``options`` are ``time_limit_s``, ``gap``, ``dropout_rate`` and others
    of `optimizer.allocator.make_allocator`.

    Examples
    --------
    >>> import fedlodrop
    >>> from optimizer.instances import sample_problem
    >>> solution = fedlodrop.solve(sample_problem(3, seed=0), method="exact")
    >>> solution.status.value, int(solution.scheduled.sum())
    ('optimal', 3)
    """
    from dataclasses import replace

    import numpy as np

    from optimizer.allocator import make_allocator
    from optimizer.files import read_problem

    given = read_problem(problem) if isinstance(problem, str | Path) else problem
    given = given if goal is None else replace(given, goal=goal)
    return make_allocator(method, **options).allocate(given, rng=np.random.default_rng(seed))
