"""Rows and figures: every scheme against one resource, and what a free clock and the extensions buy.

The extensions are the shortest deadline against the bound, the bound against the battery, energy against outage, and
one number type for all against one per device.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from optimizer.allocator import make_allocator
from optimizer.fdma.exact import solve_box
from optimizer.instances import sample_problem
from optimizer.multi_round.battery import Rounds, allowances, offline_plan
from optimizer.objective import GeneralizationBound
from optimizer.plots import Row, draw_lines, new_figure, save, shared_legend, write_csv
from optimizer.problem import FloatArray, Goal, ResourceProblem, Solution
from wireless.channel import outage_margin

SWEEP_COLUMNS = ("resource", "value", "method", "objective", "objective_std", "excess", "served_weight")
CLOCK_COLUMNS = ("share", "method", "objective", "objective_std", "served_weight")
_FLEETS = 5
_EXTENSION_COLUMNS = ("panel", "x", "method", "value")
_LABELS = {
    "time": ("mean bound on the error (nats)", "shortest deadline (s)"),
    "battery": ("battery, share of all rounds' budgets (1)", "cost of a round, above the unlimited one (%)"),
    "outage": ("outage probability (1)", "energy of a round (J)"),
    "choices": ("total bandwidth (MHz)", "bound on the error, all served (nats)"),
}
# Share of the fp32 bits, and the relative variance that rounding adds to a change (conf/config.yaml).
_TYPES = {"fp32": (1.0, 0.0), "int8": (0.25, 3e-5), "int4": (0.125, 0.01)}
_ROUNDS = 12  # of the battery


@dataclass(frozen=True)
class Resource:
    """One axis: its words with the unit, the values tried, and how a fleet is given one of them."""

    label: str
    values: tuple[float, ...]
    apply: Callable[[ResourceProblem, float], ResourceProblem]


def _energy(fleet: ResourceProblem, mean_j: float) -> ResourceProblem:
    return replace(fleet, energy_budget_j=fleet.energy_budget_j * mean_j / float(fleet.energy_budget_j.mean()))


def _first(fleet: ResourceProblem, count: float) -> ResourceProblem:
    return replace(fleet.subset(np.arange(int(count))), total_examples=0.0)


def _evenly(low: float, high: float) -> tuple[float, ...]:
    return tuple(np.linspace(low, high, 14).tolist())


RESOURCES: dict[str, Resource] = {
    "deadline": Resource("round deadline (s)", _evenly(2.8, 8.0), lambda fleet, t: replace(fleet, deadline_s=t)),
    "energy": Resource("mean energy budget (J)", _evenly(0.65, 1.8), _energy),
    "bandwidth": Resource(
        "total bandwidth (MHz)", _evenly(0.8, 2.4), lambda fleet, mhz: replace(fleet, total_bandwidth_hz=1e6 * mhz)
    ),
    "devices": Resource("devices in the cell", tuple(np.arange(4.0, 21.0, 2.0).tolist()), _first),
}


def excess_over_optimum(problem: ResourceProblem, solution: Solution) -> float:
    """(objective - optimum)/optimum for the devices that are served; NaN under OFDMA or when nobody is."""
    if problem.access == "ofdma" or not solution.scheduled.any():
        return float("nan")
    part = problem.subset(solution.scheduled)
    zeros = np.zeros(part.num_devices)
    optimum = solve_box(part, GeneralizationBound(), zeros, zeros + part.max_dropout_rate).lower_bound
    return float((solution.objective - optimum) / optimum)


def objective_against(name: str, methods: Sequence[str], *, values: Sequence[float] | None = None) -> list[Row]:
    """Means over five seeded cells of 20 devices as one of `RESOURCES` changes.

    The cells hold the devices that equal bandwidth can serve at the tightest setting, so that the flexible methods
    serve everyone throughout and their objectives can be compared; ``objective`` is left out where a method does not.
    """
    resource, rows, count = RESOURCES[name], [], 48 if name == "devices" else 20
    tried = resource.values if values is None else tuple(values)
    tightest = max(tried) if name == "devices" else min(tried)
    fleets = [_servable(sample_problem(count, seed), resource, tightest) for seed in range(_FLEETS)]
    for value in tried:
        scaled = [resource.apply(fleet, value) for fleet in fleets]
        for method in methods:
            allocator = make_allocator(method)
            found = [allocator.allocate(fleet, rng=np.random.default_rng(seed)) for seed, fleet in enumerate(scaled)]
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


def _servable(fleet: ResourceProblem, resource: Resource, tightest: float) -> ResourceProblem:
    """The devices that equal bandwidth serves at the tightest setting, with weights of their own; 1.2 MHz in all."""
    cell = replace(fleet, total_bandwidth_hz=1.2e6)
    if resource is RESOURCES["devices"]:  # those that an equal part for everyone would serve
        alone = replace(cell, total_bandwidth_hz=1.2e6 / tightest * fleet.num_devices)
        keep = np.flatnonzero(make_allocator("equal").allocate(alone).scheduled)[: int(tightest)]
        return replace(cell.subset(keep), total_examples=0.0)
    tight = resource.apply(cell, tightest)
    return replace(cell.subset(make_allocator("equal").allocate(tight).scheduled), total_examples=0.0)


def objective_against_clock(shares: Sequence[float]) -> list[Row]:
    """Objective with clocks free from 0.3 to ``shares`` times their own, beside fixed ones; same cells and energy."""
    fleets = [_servable(sample_problem(20, seed), RESOURCES["deadline"], 2.8) for seed in range(_FLEETS)]

    def solved(cells: list[ResourceProblem]) -> Row:
        return _summary(fleets, [make_allocator("exact").allocate(cell) for cell in cells])

    rows, fixed = [], solved(fleets)
    for share in shares:
        free = [replace(fleet, min_cpu_hz=0.3 * fleet.cpu_hz, max_cpu_hz=share * fleet.cpu_hz) for fleet in fleets]
        rows += [
            {"share": share, "method": "clock fixed"} | fixed,
            {"share": share, "method": "clock free"} | solved(free),
        ]
    return rows


def plot_objectives(path: Path, rows: Sequence[Row]) -> None:
    """Objective, excess over the optimum and share of examples served against one resource."""
    figure, axes = new_figure(3)
    words = {
        "objective": "bound on the error, all served (nats)",
        "excess": "excess over their optimum (%)",
        "served_weight": "examples of devices served (%)",
    }
    percent = [row | {"excess": 100 * row["excess"], "served_weight": 100 * row["served_weight"]} for row in rows]
    for axis, (y, label) in zip(axes, words.items(), strict=True):
        draw_lines(axis, percent, "value", y)
        axis.set(xlabel=RESOURCES[rows[0]["resource"]].label, ylabel=label)
    axes[1].set_yscale("symlog", linthresh=0.1)
    if rows[0]["resource"] == "devices":
        for axis in axes:
            axis.xaxis.get_major_locator().set_params(integer=True)
    axes[2].set_ylim(-3, 105)
    shared_legend(figure, axes)
    save(figure, path)


def plot_clock(path: Path, rows: Sequence[Row]) -> None:
    """Objective against the largest clock allowed."""
    figure, (axis,) = new_figure(width=5.6)
    draw_lines(axis, rows, "share", "objective")
    axis.set(xlabel="largest clock, relative to the device's own (1)", ylabel="bound on the error (nats)")
    shared_legend(figure, [axis])
    save(figure, path)


def write_sweeps(out: Path, methods: Sequence[str], *, every: int = 1) -> list[Path]:
    """Write <name>.csv and .png of every sweep, each ``every``-th point, and of the clock; returns the pictures."""
    pictures = []
    for name, resource in RESOURCES.items():
        rows = objective_against(name, methods, values=resource.values[::every])
        write_csv(out / f"{name}.csv", rows, SWEEP_COLUMNS)
        plot_objectives(out / f"{name}.png", rows)
        pictures.append(out / f"{name}.png")
    clock = objective_against_clock((1.0, 1.25, 1.5, 1.75, 2.0)[::every])
    write_csv(out / "clock.csv", clock, CLOCK_COLUMNS)
    plot_clock(out / "clock.png", clock)
    return [*pictures, out / "clock.png"]


def write_horizon(out: Path, *, every: int = 1) -> Path:
    """Write horizon.csv and horizon.png of one seeded cell, over each ``every``-th point; returns the picture."""
    fleet = replace(sample_problem(12, 0), total_bandwidth_hz=1.2e6)
    fleet = replace(fleet.subset(make_allocator("equal").allocate(fleet).scheduled), total_examples=0.0)
    panels = {"time": _time, "battery": _battery, "outage": _outage, "choices": _choices}
    rows = [{"panel": name} | row for name, draw in panels.items() for row in draw(fleet, every)]
    write_csv(out / "horizon.csv", rows, _EXTENSION_COLUMNS)
    figure, axes = new_figure(2, rows=2)
    for axis, (name, (x, y)) in zip(axes, _LABELS.items(), strict=True):
        draw_lines(axis, [row for row in rows if row["panel"] == name], "x", "value")
        axis.set(xlabel=x, ylabel=y)
        axis.legend(fontsize=8, frameon=False)
    save(figure, out / "horizon.png")
    return out / "horizon.png"


def _time(fleet: ResourceProblem, every: int) -> list[Row]:
    """Shortest deadline of two methods for bounds that the exact one reaches within the longest."""
    least, rows = make_allocator("exact").allocate(fleet).objective, []
    for bound in np.linspace(1.005, 1.4, 12)[::every] * least:
        for method in ("exact", "equal"):
            found = make_allocator(method).allocate(replace(fleet, goal=Goal("time", max_bound=float(bound))))
            if found.scheduled.any():
                rows.append({"x": float(bound), "method": method, "value": found.objective})
    return rows


def _battery(fleet: ResourceProblem, every: int) -> list[Row]:
    """Cost of rounds with batteries under Rayleigh fading: offline bound, prices online, the same share every round."""
    gain = fleet.channel_gain * np.random.default_rng(0).exponential(1.0, (_ROUNDS, fleet.num_devices))
    rounds, rows = Rounds.of(fleet, gain), []
    budget = _ROUNDS * fleet.energy_budget_j
    unlimited = offline_plan(rounds, 2 * budget).lower_bound
    for share in np.linspace(0.1, 1.0, 8)[::every]:
        bound = offline_plan(rounds, share * budget).lower_bound
        costs = {"offline bound": bound} | {
            name: run_cost(fleet, gain, share * budget, online=name == "prices") for name in ("prices", "even shares")
        }
        rows += [{"x": share, "method": name, "value": 100 * (cost / unlimited - 1)} for name, cost in costs.items()]
    return rows


def run_cost(fleet: ResourceProblem, gain: FloatArray, battery_j: FloatArray, *, online: bool) -> float:
    """Cost of rounds with gains (R, K) whose energy is allotted by prices, or as the same share of the battery each."""
    charge, cost, count = battery_j.copy(), 0.0, len(gain)
    absence = Rounds.of(fleet, gain[:1]).absence[0]
    for row in range(count):
        now = replace(fleet, channel_gain=gain[row])
        allotted = np.minimum(np.minimum(battery_j / count, charge), fleet.energy_budget_j)
        if online:
            allotted = allowances(now, gain[:row], charge, count - row)[0]
        found = make_allocator("exact").allocate(replace(now, energy_budget_j=allotted))
        on = found.scheduled
        cost += float(absence[~on].sum()) + (found.objective if on.any() else 0.0)
        charge = np.maximum(charge - np.where(on, np.nan_to_num(found.energy_j), 0.0), 0.0)
    return cost


def _outage(fleet: ResourceProblem, every: int) -> list[Row]:
    """Least energy at which all are served within a bound that is reached at every outage probability shown."""
    rows: list[Row] = []
    for rician_k, name in ((0.0, "Rayleigh"), (4.0, "Rician, 6 dB")):
        for probability in np.geomspace(0.05, 0.5, 10)[::every]:
            gain = fleet.channel_gain * float(outage_margin(float(probability), rician_k))
            goal = Goal("tradeoff", energy_weight_per_j=0.02)
            found = make_allocator("exact").allocate(replace(fleet, channel_gain=gain, goal=goal))
            if found.scheduled.all():
                rows.append({"x": float(probability), "method": name, "value": float(found.energy_j.sum())})
    return rows


def _choices(fleet: ResourceProblem, every: int) -> list[Row]:
    """Bound with one number type for all and with one chosen per device, where all are served."""
    ways = {
        name: {"noise": noise, "fixed_bits": share * fleet.fixed_bits, "droppable_bits": share * fleet.droppable_bits}
        for name, (share, noise) in _TYPES.items()
    }
    rows: list[Row] = []
    for hertz in np.geomspace(0.05, 1.0, 12)[::every] * fleet.total_bandwidth_hz:
        for name, offered in ({name: {name: way} for name, way in ways.items()} | {"chosen": ways}).items():
            found = make_allocator("exact").allocate(replace(fleet, total_bandwidth_hz=float(hertz), choices=offered))
            if found.scheduled.all():
                rows.append({"x": float(hertz) / 1e6, "method": name, "value": found.objective})
    return rows
