"""Measure the methods: a table, times against fleet size, and figures of what every resource and extension buys.

Every cell of the table runs in a fresh process, so times and peak memory do not mix. An objective sums over the devices
that take part, so methods that serve different devices cannot be compared by it alone: ``excess`` compares each with
the optimum for the devices it serves (FDMA), and the weight served stands beside it. The figures show every scheme
against one resource, what a free clock buys, and the extensions: the shortest deadline against the bound, the bound
against the battery, energy against outage, and one number type for all against one per device.
"""

import resource
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from optimizer.allocator import AllocationError, make_allocator
from optimizer.apart import ChildError, run_apart
from optimizer.fdma.bandwidth_curve import BandwidthCurve
from optimizer.fdma.exact import solve_box
from optimizer.instances import sample_problem
from optimizer.multi_round.battery import Rounds, allowances, offline_plan
from optimizer.objective import GeneralizationBound
from optimizer.plots import Row, draw_lines, draw_single, new_figure, save, shared_legend, write_csv
from optimizer.problem import FloatArray, Goal, IntArray, ResourceProblem, Solution
from wireless.channel import outage_margin

SCHEMES = ("exact", "bnb", "psca", "common", "equal", "proportional", "fixed", "none", "random")
COLUMNS = (
    "instance devices method status objective gap nodes iterations "
    "served_weight excess median_s least_s peak_rss_mib note"
).split()
_LARGEST = {"exact": 10_000, "bnb": 10_000, "psca": 300, "equal": 10_000, "scip": 3}  # devices: slow beyond
_LIKE_EXACT = ("bnb", "psca", "scip")  # in the sweeps their curves would lie on that of exact
SWEEP_COLUMNS = ("resource", "value", "method", "objective", "objective_std", "excess", "served_weight")
CLOCK_COLUMNS = ("share", "method", "objective", "objective_std", "served_weight")
_FLEETS, _TOTAL_HZ = 5, 1.2e6
_ERROR = "bound on the error, all served (nats)"
_PANELS = {"objective": _ERROR, "excess": "excess over their optimum (%)", "served_weight": "examples served (%)"}
# Share of the fp32 bits, and the relative variance that rounding adds to a change (conf/config.yaml).
_TYPES = {"fp32": (1.0, 0.0), "int8": (0.25, 3e-5), "int4": (0.125, 0.01)}
_ROUNDS = 12  # of the battery

Points = Iterator[tuple[float, str, float]]  # x, method, y


class Resource(NamedTuple):
    """One axis: its words with the unit, the values tried, and how a fleet is given one of them."""

    label: str
    values: np.ndarray
    apply: Callable[[ResourceProblem, float], ResourceProblem]


def _energy(fleet: ResourceProblem, mean_j: float) -> ResourceProblem:
    return replace(fleet, energy_budget_j=fleet.energy_budget_j * mean_j / float(fleet.energy_budget_j.mean()))


def _alone(fleet: ResourceProblem, keep: IntArray) -> ResourceProblem:
    return replace(fleet.subset(keep), total_examples=0.0)


RESOURCES = {
    "deadline": Resource("round deadline (s)", np.linspace(2.8, 8.0, 14), lambda cell, s: replace(cell, deadline_s=s)),
    "energy": Resource("mean energy budget (J)", np.linspace(0.65, 1.8, 14), _energy),
    "bandwidth": Resource(
        "total bandwidth (MHz)",
        np.linspace(0.8, 2.4, 14),
        lambda cell, mhz: replace(cell, total_bandwidth_hz=1e6 * mhz),
    ),
    "devices": Resource("devices in the cell", np.arange(4, 21, 2), lambda cell, n: _alone(cell, np.arange(int(n)))),
}


def _solve(fleet: ResourceProblem, method: str = "exact", seed: int = 0) -> Solution:
    return make_allocator(method).allocate(fleet, rng=np.random.default_rng(seed))


def excess_over_optimum(problem: ResourceProblem, solution: Solution) -> float:
    """(objective - optimum)/optimum for the devices that are served; NaN under OFDMA or when nobody is."""
    if problem.access == "ofdma" or not solution.scheduled.any():
        return float("nan")
    part = problem.subset(solution.scheduled)
    optimum = solve_box(BandwidthCurve(part), GeneralizationBound()).lower_bound
    return float((solution.objective - optimum) / optimum)


def objective_against(
    name: str, methods: Sequence[str], *, values: Sequence[float] | np.ndarray | None = None
) -> list[Row]:
    """Means over five seeded cells of 20 devices as one of `RESOURCES` changes.

    The cells hold the devices that equal bandwidth can serve at the tightest setting, so that the flexible methods
    serve everyone throughout and their objectives can be compared; ``objective`` is left out where a method does not.
    """
    axis, rows = RESOURCES[name], []
    tried = np.array(axis.values if values is None else values).tolist()
    fleets = _servable_fleets(name, max(tried) if name == "devices" else min(tried))
    for value in tried:
        scaled = [axis.apply(fleet, value) for fleet in fleets]
        for method in methods:
            found = [_solve(fleet, method, seed) for seed, fleet in enumerate(scaled)]
            rows.append({"resource": name, "value": value, "method": method} | _summary(scaled, found))
    return rows


def _summary(fleets: Sequence[ResourceProblem], found: Sequence[Solution]) -> Row:
    pairs = list(zip(fleets, found, strict=True))
    excess = [excess_over_optimum(fleet, one) for fleet, one in pairs]
    row: Row = {
        "excess": statistics.mean(excess) if np.isfinite(excess).all() else float("nan"),
        "served_weight": statistics.mean(float(fleet.weights[one.scheduled].sum()) for fleet, one in pairs),
    }
    if all(one.scheduled.all() for one in found):
        row["objective"] = statistics.mean(one.objective for one in found)
        row["objective_std"] = statistics.stdev(one.objective for one in found)
    return row


def _servable_fleets(name: str, tightest: float) -> list[ResourceProblem]:
    """Seeded cells of 1.2 MHz with the devices that equal bandwidth serves at the tightest setting."""
    fleets, crowd = [], name == "devices"
    for seed in range(_FLEETS):
        cell = replace(sample_problem(48 if crowd else 20, seed), total_bandwidth_hz=_TOTAL_HZ)
        # As many devices as are tried last: those whom an equal part for each of these would serve.
        tight = replace(cell, total_bandwidth_hz=_TOTAL_HZ / tightest * cell.num_devices) if crowd else None
        served = _solve(tight or RESOURCES[name].apply(cell, tightest), "equal").scheduled
        fleets.append(_alone(cell, np.flatnonzero(served)[: int(tightest) if crowd else None]))
    return fleets


def objective_against_clock(shares: Sequence[float]) -> list[Row]:
    """Objective with clocks free from 0.3 to ``shares`` times their own, beside fixed ones; same cells and energy."""
    fleets = _servable_fleets("deadline", 2.8)
    fixed, rows = _summary(fleets, [_solve(fleet) for fleet in fleets]), []
    for share in shares:
        free = [replace(fleet, min_cpu_hz=0.3 * fleet.cpu_hz, max_cpu_hz=share * fleet.cpu_hz) for fleet in fleets]
        moved = _summary(fleets, [_solve(fleet) for fleet in free])
        rows += [{"share": share, "method": "clock fixed"} | fixed, {"share": share, "method": "clock free"} | moved]
    return rows


def plot_objectives(path: Path, rows: Sequence[Row]) -> None:
    """Objective, excess over the optimum and share of examples served against one resource."""
    figure, axes = new_figure(3)
    percent = [row | {"excess": 100 * row["excess"], "served_weight": 100 * row["served_weight"]} for row in rows]
    for axis, (y, label) in zip(axes, _PANELS.items(), strict=True):
        draw_lines(axis, percent, "value", y)
        axis.set(xlabel=RESOURCES[rows[0]["resource"]].label, ylabel=label)
        axis.xaxis.get_major_locator().set_params(integer=rows[0]["resource"] == "devices")
    axes[1].set_yscale("symlog", linthresh=0.1)
    axes[2].set_ylim(-3, 105)
    shared_legend(figure, axes)
    save(figure, path)


def write_sweeps(out: Path, methods: Sequence[str], *, every: int = 1) -> list[Path]:
    """Write <name>.csv and .png of every sweep, each ``every``-th point, and of the clock; returns the pictures."""
    for name, axis in RESOURCES.items():
        rows = objective_against(name, methods, values=axis.values[::every])
        write_csv(out / f"{name}.csv", rows, SWEEP_COLUMNS)
        plot_objectives(out / f"{name}.png", rows)
    clock = objective_against_clock((1.0, 1.25, 1.5, 1.75, 2.0)[::every])
    write_csv(out / "clock.csv", clock, CLOCK_COLUMNS)
    labels = {"xlabel": "largest clock, relative to the device's own (1)", "ylabel": "bound on the error (nats)"}
    draw_single(out / "clock.png", clock, "share", "objective", **labels)
    return [out / f"{name}.png" for name in (*RESOURCES, "clock")]


def write_horizon(out: Path, *, every: int = 1) -> Path:
    """Write horizon.csv and horizon.png of one seeded cell, over each ``every``-th point; returns the picture."""
    fleet = replace(sample_problem(12, 0), total_bandwidth_hz=_TOTAL_HZ)
    fleet = _alone(fleet, np.flatnonzero(_solve(fleet, "equal").scheduled))
    panels: dict[str, tuple[Points, str, str]] = {
        "time": (_time(fleet, every), "mean bound on the error (nats)", "shortest deadline (s)"),
        "battery": (_battery(fleet, every), "battery, share of all budgets (1)", "cost above the unlimited (%)"),
        "outage": (_outage(fleet, every), "outage probability (1)", "energy of a round (J)"),
        "choices": (_choices(fleet, every), "total bandwidth (MHz)", _ERROR),
    }
    figure, axes = new_figure(2, rows=2)
    written: list[Row] = []
    for axis, (name, (points, x, y)) in zip(axes, panels.items(), strict=True):
        rows: list[Row] = [{"panel": name, "x": at, "method": method, "value": value} for at, method, value in points]
        draw_lines(axis, rows, "x", "value")
        axis.set(xlabel=x, ylabel=y)
        axis.legend(fontsize=8, frameon=False)
        written += rows
    write_csv(out / "horizon.csv", written, ("panel", "x", "method", "value"))
    save(figure, out / "horizon.png")
    return out / "horizon.png"


def _time(fleet: ResourceProblem, every: int) -> Points:
    """Shortest deadline of two methods for bounds that the exact one reaches within the longest."""
    for bound in (np.linspace(1.005, 1.4, 12)[::every] * _solve(fleet).objective).tolist():
        for method in ("exact", "equal"):
            found = _solve(replace(fleet, goal=Goal("time", max_bound=bound)), method)
            if found.scheduled.any():
                yield bound, method, found.objective


def _battery(fleet: ResourceProblem, every: int) -> Points:
    """Cost of rounds with batteries under Rayleigh fading: offline bound, prices online, the same share every round."""
    gain = fleet.channel_gain * np.random.default_rng(0).exponential(1.0, (_ROUNDS, fleet.num_devices))
    rounds, budget = Rounds(fleet, gain), _ROUNDS * fleet.energy_budget_j
    unlimited = offline_plan(rounds, 2 * budget).lower_bound
    for share in np.linspace(0.1, 1.0, 8)[::every].tolist():
        yield share, "offline bound", 100 * (offline_plan(rounds, share * budget).lower_bound / unlimited - 1)
        for method in ("prices", "even shares"):
            yield share, method, 100 * (_run_cost(fleet, gain, share * budget, method) / unlimited - 1)


def _run_cost(fleet: ResourceProblem, gain: FloatArray, battery_j: FloatArray, method: str) -> float:
    """Cost of rounds with gains (R, K) whose energy is allotted by prices, or as the same share of the battery each."""
    charge, cost, count = battery_j, 0.0, len(gain)
    absence = Rounds(fleet, gain[:1]).absence[0]
    for row in range(count):
        now = replace(fleet, channel_gain=gain[row])
        allotted = np.minimum(np.minimum(battery_j / count, charge), fleet.energy_budget_j)
        if method == "prices":
            allotted = allowances(now, gain[:row], charge, count - row)[0]
        found = _solve(replace(now, energy_budget_j=allotted))
        cost += float(absence[~found.scheduled].sum()) + found.objective  # 0 where nobody is served
        charge = np.maximum(charge - np.where(found.scheduled, np.nan_to_num(found.energy_j), 0.0), 0.0)
    return cost


def _outage(fleet: ResourceProblem, every: int) -> Points:
    """Least energy at which all are served within a bound that is reached at every outage probability shown."""
    goal = Goal("tradeoff", energy_weight_per_j=0.02)
    for rician_k, name in ((0.0, "Rayleigh"), (4.0, "Rician, 6 dB")):
        for probability in np.geomspace(0.05, 0.5, 10)[::every].tolist():
            gain = fleet.channel_gain * float(outage_margin(probability, rician_k))
            found = _solve(replace(fleet, channel_gain=gain, goal=goal))
            if found.scheduled.all():
                yield probability, name, float(found.energy_j.sum())


def _choices(fleet: ResourceProblem, every: int) -> Points:
    """Bound with one number type for all and with one chosen per device, where all are served."""
    ways: dict[str, Any] = {
        name: {"noise": noise, "fixed_bits": share * fleet.fixed_bits, "droppable_bits": share * fleet.droppable_bits}
        for name, (share, noise) in _TYPES.items()
    }
    for hertz in (np.geomspace(0.05, 1.0, 12)[::every] * fleet.total_bandwidth_hz).tolist():
        for name, offered in ({name: {name: way} for name, way in ways.items()} | {"chosen": ways}).items():
            found = _solve(replace(fleet, total_bandwidth_hz=hertz, choices=offered))
            if found.scheduled.all():
                yield hertz / 1e6, name, found.objective


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
    """Write the table, times and sweeps (CSV and PNG) into ``out`` and return the table.

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
