"""Measure the methods: a table over instances, time against fleet size, objective against deadline and energy.

Every cell of the table runs in a fresh process, so times and peak memory do not mix. An objective sums over the devices
that take part, so methods that serve different devices cannot be compared by it alone: ``excess`` compares each with
the optimum for the devices it serves (FDMA), and the weight served stands beside it.
"""

import resource
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.allocator import AllocationError, make_allocator
from optimizer.apart import ChildError, run_apart
from optimizer.instances import sample_problem
from optimizer.plots import Row, draw_single, write_csv
from optimizer.problem import ResourceProblem
from optimizer.sweeps import excess_over_optimum, write_sweeps

SCHEMES = ("exact", "bnb", "psca", "common", "equal", "proportional", "fixed", "none", "random")
COLUMNS = (
    "instance devices method status objective gap nodes iterations "
    "served_weight excess median_s least_s peak_rss_mib note"
).split()
_LARGEST = {"exact": 10_000, "bnb": 10_000, "psca": 300, "equal": 10_000, "scip": 3}  # devices: slow beyond
_LIKE_EXACT = ("bnb", "psca", "scip")  # in the sweeps their curves would lie on that of exact


def measure(problem: ResourceProblem, method: str, *, repeats: int, time_limit_s: float, gap: float) -> Row:
    """Solve ``repeats`` times after one warm-up in this process and return a row of the table."""
    row: Row = {"method": method, "devices": problem.num_devices}
    allocator = make_allocator(method, time_limit_s=time_limit_s, gap=gap)
    try:
        solutions = [allocator.allocate(problem, rng=np.random.default_rng(0)) for _ in range(repeats + 1)]
    except AllocationError as error:
        return row | {"note": str(error)}
    times, last = [solution.solve_time_s for solution in solutions[1:]], solutions[-1]
    peak_kib = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    figures = {name: getattr(last, name) for name in ("objective", "gap", "nodes", "iterations")}
    row |= {"status": last.status.value, **figures, "served_weight": float(problem.weights[last.scheduled].sum())}
    row |= {"excess": excess_over_optimum(problem, last), "peak_rss_mib": peak_kib / 1024.0}
    return row | {"median_s": statistics.median(times), "least_s": min(times)}


def measure_apart(problem: ResourceProblem, method: str, **options: Any) -> Row:
    """`measure` in a fresh process; a process that dies becomes a row with a note."""
    try:
        row: Row = run_apart(measure, problem, method, **options)
    except ChildError as error:
        return {"method": method, "devices": problem.num_devices, "note": str(error)}
    return row


def table(problems: Mapping[str, ResourceProblem], methods: Sequence[str], **options: Any) -> list[Row]:
    """One row per instance and method; options as of `measure`."""
    cells = [(name, problem, method) for name, problem in problems.items() for method in methods]
    return [{"instance": name} | measure_apart(problem, method, **options) for name, problem, method in cells]


def time_against_size(sizes: Sequence[int], methods: Mapping[str, int], repeats: int, *, apart: bool) -> list[Row]:
    """Solve time of seeded FDMA fleets; ``methods`` maps each name to the largest size it is asked for.

    ``apart``: every measurement in a process of its own, which peak memory needs.
    """
    run = partial(measure_apart if apart else measure, repeats=repeats, time_limit_s=60.0, gap=1e-6)
    cells = [(size, method) for size in sizes for method, largest in methods.items() if size <= largest]
    return [{"instance": f"fleet-{size}"} | run(sample_problem(size, 0), method) for size, method in cells]


def plot_times(path: Path, rows: Sequence[Row]) -> None:
    """Median solve time against the number of devices, both logarithmic."""
    labels = {"xlabel": "devices (FDMA)", "ylabel": "solve time, median (s)"}
    draw_single(path, rows, "devices", "median_s", xscale="log", yscale="log", **labels)


def run_bench(
    out: Path, problems: Mapping[str, ResourceProblem], methods: Sequence[str], *, repeats: int, **limits: float
) -> list[Row]:
    """Write the table, times and sweeps (CSV and PNG, see `optimizer.sweeps`) into ``out`` and return the table.

    ``limits``: time_limit_s and gap of every solve in the table.
    """
    out.mkdir(parents=True, exist_ok=True)
    rows = table(problems, methods, repeats=repeats, **limits)
    write_csv(out / "table.csv", rows, COLUMNS)
    largest = {name: size for name, size in _LARGEST.items() if name in methods}
    times = time_against_size((3, 10, 30, 100, 300, 1000, 3000), largest, repeats, apart=True)
    write_csv(out / "times.csv", times, COLUMNS)
    plot_times(out / "times.png", times)
    write_sweeps(out, [name for name in methods if name not in _LIKE_EXACT])
    return rows
