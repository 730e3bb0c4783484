"""Measure the methods: a table over instances, time against fleet size, objective against deadline and energy.

Every cell of the table runs in a fresh process, so times and peak memory do not mix. An objective sums over the devices that
take part, so methods that serve different devices cannot be compared by it alone: ``excess`` compares each with the optimum
for the devices it serves (FDMA), and the weight served stands beside it.
"""

from __future__ import annotations

import csv
import importlib
import os
import pickle
import resource
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.allocator import AllocationError, make_allocator
from optimizer.bound import GeneralizationBound
from optimizer.fdma import solve_box
from optimizer.problem import BoundConstants, ResourceProblem, Solution
from wireless.channel import Cell, fdma_gain, large_scale, ofdma_gain
from wireless.units import noise_psd_w_per_hz

SCHEMES = ("exact", "bnb", "psca", "common", "equal", "proportional", "fixed", "none", "random")
COLUMNS = (
    "instance", "devices", "method", "status", "objective", "gap", "nodes", "iterations", "served_weight", "excess",
    "median_s", "least_s", "peak_rss_mib", "note",
)  # fmt: skip
_MARK = b"\x00row\x00"
Row = dict[str, Any]


def sample_problem(num_devices: int, seed: int, *, access: str = "fdma", num_subcarriers: int = 0) -> ResourceProblem:
    """A seeded fleet in a 250 m cell whose bandwidth, energy and time all bind: 60 kHz per device, or 90 kHz subcarriers."""
    rng = np.random.default_rng([seed, num_devices])
    mean_gain = large_scale(rng, num_devices, Cell(radius_m=250.0)).mean_gain
    ofdma = access == "ofdma"
    gain = ofdma_gain(rng, mean_gain, num_subcarriers, 90e3) if ofdma else fdma_gain(rng, mean_gain)
    per_device_hz = 90e3 * num_subcarriers / num_devices if ofdma else 60e3
    return ResourceProblem(
        access=access, deadline_s=4.0, noise_psd_w_per_hz=noise_psd_w_per_hz(7.0), max_dropout_rate=0.9,
        bound=BoundConstants(0.05, 1.0, 1.0, 0.5, 2.0, 0.1), device_ids=tuple(f"device-{k}" for k in range(num_devices)),
        num_examples=rng.integers(200, 1000, num_devices).astype(np.float64), channel_gain=gain,
        downlink_rate_bps=np.array(5e7), cpu_hz=rng.uniform(0.5e9, 2e9, num_devices), capacitance=np.array(1e-28),
        fixed_cycles=np.array(2e9 / 3), adapter_cycles=np.array(4e8), max_tx_power_w=np.array(0.2),
        energy_budget_j=rng.uniform(0.45, 1.35, num_devices), droppable_bits=np.array(210.0 * per_device_hz),
        fixed_bits=np.array(65600.0), total_bandwidth_hz=60e3 * num_devices, subcarrier_hz=90e3 if ofdma else 0.0,
    )  # fmt: skip


def excess_over_optimum(problem: ResourceProblem, solution: Solution) -> float:
    """(objective - optimum)/optimum for the devices that the solution serves; NaN under OFDMA or when it serves nobody."""
    if problem.access != "fdma" or not solution.scheduled.any():
        return float("nan")
    part = problem.subset(solution.scheduled)
    zeros = np.zeros(part.num_devices)
    optimum = solve_box(part, GeneralizationBound(), zeros, zeros + part.max_dropout_rate).lower_bound
    return float((solution.objective - optimum) / optimum)


def measure(problem: ResourceProblem, method: str, *, repeats: int, time_limit_s: float, gap: float) -> Row:
    """Solve ``repeats`` times after one warm-up in this process and return a row of the table."""
    allocator = make_allocator(method, time_limit_s=time_limit_s, gap=gap)
    try:
        solutions = [allocator.allocate(problem, rng=np.random.default_rng(0)) for _ in range(repeats + 1)]
    except AllocationError as error:
        return {"method": method, "devices": problem.num_devices, "note": str(error)}
    times = [solution.solve_time_s for solution in solutions[1:]]
    last = solutions[-1]
    peak_kib = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return {
        "method": method, "devices": problem.num_devices, "status": last.status.value, "objective": last.objective,
        "gap": last.gap, "nodes": last.nodes, "iterations": last.iterations,
        "served_weight": float(problem.weights[last.scheduled].sum()), "excess": excess_over_optimum(problem, last),
        "median_s": statistics.median(times), "least_s": min(times), "peak_rss_mib": peak_kib / 1024.0,
    }  # fmt: skip


def measure_apart(problem: ResourceProblem, method: str, **options: Any) -> Row:
    """`measure` in a fresh process; a process that dies becomes a row with a note."""
    root = str(Path(__file__).resolve().parents[1])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))}
    request = pickle.dumps((problem, method, options))
    done = subprocess.run(
        [sys.executable, "-m", "optimizer.bench"], input=request, capture_output=True, env=environment, check=False
    )
    if done.returncode != 0 or _MARK not in done.stdout:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit status {done.returncode}"]
        return {"method": method, "devices": problem.num_devices, "note": lines[-1]}
    row: Row = pickle.loads(done.stdout[done.stdout.index(_MARK) + len(_MARK) :])
    return row


def table(
    problems: Mapping[str, ResourceProblem], methods: Sequence[str], *, repeats: int, time_limit_s: float, gap: float
) -> list[Row]:
    """One row per instance and method."""
    return [
        {"instance": name} | measure_apart(problem, method, repeats=repeats, time_limit_s=time_limit_s, gap=gap)
        for name, problem in problems.items()
        for method in methods
    ]


def time_against_size(sizes: Sequence[int], methods: Mapping[str, int], *, repeats: int) -> list[Row]:
    """Solve time of seeded FDMA fleets; ``methods`` maps each name to the largest size it is asked for."""
    options = {"repeats": repeats, "time_limit_s": 60.0, "gap": 1e-6}
    return [
        {"instance": f"fleet-{size}"} | measure_apart(sample_problem(size, 0), method, **options)
        for size in sizes
        for method, largest in methods.items()
        if size <= largest
    ]


def objective_against(field: str, factors: Sequence[float], methods: Sequence[str], *, num_devices: int = 20) -> list[Row]:
    """Means over five seeded fleets as one resource (``deadline_s`` or ``energy_budget_j``) is scaled.

    The fleets hold the devices that equal bandwidth can serve at the tightest setting, so that the flexible methods serve
    everyone throughout and their objectives can be compared; ``objective`` is left out where a method does not.
    """
    rows = []
    fleets = [_servable(sample_problem(num_devices, seed), field, min(factors)) for seed in range(5)]
    for factor in factors:
        for method in methods:
            allocator = make_allocator(method)
            scaled = [replace(fleet, **{field: getattr(fleet, field) * factor}) for fleet in fleets]
            found = [allocator.allocate(fleet, rng=np.random.default_rng(seed)) for seed, fleet in enumerate(scaled)]
            pairs = list(zip(scaled, found, strict=True))
            row = {
                "resource": field, "factor": factor, "method": method,
                "excess": statistics.mean(excess_over_optimum(fleet, one) for fleet, one in pairs),
                "served_weight": statistics.mean(float(fleet.weights[one.scheduled].sum()) for fleet, one in pairs),
            }  # fmt: skip
            if all(one.scheduled.all() for one in found):
                row["objective"] = statistics.mean(one.objective for one in found)
            rows.append(row)
    return rows


def _servable(fleet: ResourceProblem, field: str, factor: float) -> ResourceProblem:
    """The devices that equal bandwidth serves at the tightest setting, with weights of their own."""
    tight = replace(fleet, **{field: getattr(fleet, field) * factor})
    return replace(fleet.subset(make_allocator("equal").allocate(tight).scheduled), total_examples=0.0)


def write_csv(path: Path, rows: Sequence[Row], columns: Sequence[str]) -> None:
    """Write rows with the given columns; what a row lacks stays empty."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, columns, restval="", extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _figure(columns: int) -> tuple[Any, Any]:
    """A figure without a display, with ``columns`` panels."""
    pyplot: Any = importlib.import_module("matplotlib.figure")
    figure = pyplot.Figure(figsize=(5.5 * columns, 4.0), layout="constrained")
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def _lines(axis: Any, rows: Sequence[Row], x: str, y: str) -> None:
    for method in dict.fromkeys(row["method"] for row in rows):
        points = sorted((row[x], row[y]) for row in rows if row["method"] == method and np.isfinite(row.get(y, np.nan)))
        axis.plot([p[0] for p in points], [p[1] for p in points], marker="o", markersize=3, label=method)


def plot_times(path: Path, rows: Sequence[Row]) -> None:
    """Median solve time against the number of devices, both logarithmic."""
    figure, (axis,) = _figure(1)
    _lines(axis, rows, "devices", "median_s")
    axis.set(xscale="log", yscale="log", xlabel="devices", ylabel="solve time, median [s]", title="FDMA, seeded fleets")
    axis.legend(fontsize=8)
    axis.grid(alpha=0.3, which="both")
    figure.savefig(path, dpi=150)


def plot_objectives(path: Path, rows: Sequence[Row]) -> None:
    """Objective, excess over the optimum and weight served against the scaled resource."""
    figure, panels = _figure(3)
    labels = {
        "objective": "objective, where the whole fleet is served",
        "excess": "excess over the optimum of the devices served",
        "served_weight": "weight served",
    }  # fmt: skip
    for axis, (y, label) in zip(panels, labels.items(), strict=True):
        _lines(axis, rows, "factor", y)
        axis.set(xlabel=f"{rows[0]['resource']}, relative", ylabel=label)
        axis.grid(alpha=0.3)
    panels[1].set_yscale("symlog", linthresh=1e-3)
    panels[2].legend(fontsize=8)
    figure.savefig(path, dpi=150)


def run_bench(
    out: Path, problems: Mapping[str, ResourceProblem], methods: Sequence[str], *, repeats: int, time_limit_s: float, gap: float
) -> list[Row]:
    """Write table.csv, times.csv/.png, deadline.csv/.png and energy.csv/.png into ``out`` and return the table."""
    out.mkdir(parents=True, exist_ok=True)
    rows = table(problems, methods, repeats=repeats, time_limit_s=time_limit_s, gap=gap)
    write_csv(out / "table.csv", rows, COLUMNS)
    largest = {"exact": 10_000, "bnb": 10_000, "psca": 300, "equal": 10_000, "scip": 3}  # beyond it a method takes too long
    limits = {name: size for name, size in largest.items() if name in methods}
    times = time_against_size((3, 10, 30, 100, 300, 1000, 3000), limits, repeats=repeats)
    write_csv(out / "times.csv", times, COLUMNS)
    plot_times(out / "times.png", times)
    rules = [name for name in methods if name not in ("bnb", "psca", "scip")]  # these three coincide with exact
    for field, name in (("deadline_s", "deadline"), ("energy_budget_j", "energy")):
        sweep = objective_against(field, np.linspace(0.7, 2.0, 14).tolist(), rules)
        write_csv(out / f"{name}.csv", sweep, ("resource", "factor", "method", "objective", "excess", "served_weight"))
        plot_objectives(out / f"{name}.png", sweep)
    return rows


if __name__ == "__main__":
    problem_, method_, options_ = pickle.loads(sys.stdin.buffer.read())
    row_ = measure(problem_, method_, **options_)
    sys.stdout.flush()
    sys.stdout.buffer.write(_MARK + pickle.dumps(row_))
