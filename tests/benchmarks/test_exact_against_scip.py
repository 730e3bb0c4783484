"""The exact method beside Pyomo and SCIP on the shared instance, timed in one run. It reports; nothing timed is asserted.

SCIP is timed twice: as the method `scip`, whose child process starts an interpreter and imports Pyomo for every solve,
and warm, model and solver alone in a process that has imported everything. The second ratio is the one between the
algorithms.
"""

from __future__ import annotations

import time
from statistics import median

import pytest

from optimizer.allocator import make_allocator
from optimizer.fdma.exact import solve_fdma
from optimizer.problem import SolverStatus
from optimizer.reference import scip
from tests.optimizer.fleets import shared_instance

EXACT_REPEATS, SCIP_REPEATS = 100, 5


@pytest.mark.benchmark
def test_exact_against_scip(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pyscipopt", reason="the extra fedlodrop[scip] is not installed")
    problem = shared_instance("fdma_k3")
    exact, _ = solve_fdma(problem), scip.solve_model(problem, 60.0, 1e-4)  # imports and caches
    times: dict[str, list[float]] = {"exact": [], "scip": [], "scip, warm": []}
    for _ in range(SCIP_REPEATS):  # in turns, so that all see the same load of the machine
        times["exact"] += [make_allocator("exact").allocate(problem).solve_time_s for _ in range(EXACT_REPEATS)]
        reference = make_allocator("scip", time_limit_s=60).allocate(problem)  # at its own default gap, the easier task
        times["scip"].append(reference.solve_time_s)
        began = time.perf_counter()
        scip.solve_model(problem, 60.0, 1e-4)
        times["scip, warm"].append(time.perf_counter() - began)
    assert exact.status is SolverStatus.OPTIMAL and exact.gap <= 1e-8
    assert reference.objective == pytest.approx(exact.objective, rel=1e-5)
    with capsys.disabled():
        print(f"\nfdma_k3: exact {exact.objective:.9f} (gap {exact.gap:.1e}), scip {reference.objective:.9f}")
        for name, spent in times.items():
            ratio = median(spent) / median(times["exact"])
            print(
                f"{name:>10}: min {min(spent) * 1e3:.3f}, median {median(spent) * 1e3:.3f}, max {max(spent) * 1e3:.3f} ms "
                f"({len(spent)} repeats), {ratio:.0f} times exact"
            )
