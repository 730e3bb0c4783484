"""What the extensions buy: shortest deadline against the bound, bound against the battery, energy against outage."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from optimizer.allocator import make_allocator
from optimizer.instances import sample_problem
from optimizer.multi_round.battery import Rounds, allowances, offline_plan
from optimizer.plots import Row, draw_lines, new_figure, save, write_csv
from optimizer.problem import FloatArray, Goal, ResourceProblem
from wireless.outage import outage_margin

COLUMNS = ("panel", "x", "method", "value")
_LABELS = {
    "time": ("mean bound on the error (nats)", "shortest deadline (s)"),
    "battery": ("battery, share of all rounds' budgets (1)", "cost of a round, above the unlimited one (%)"),
    "outage": ("outage probability (1)", "energy of a round (J)"),
}
_ROUNDS = 12


def write_horizon(out: Path, *, every: int = 1) -> Path:
    """Write horizon.csv and horizon.png of one seeded cell, over each ``every``-th point; returns the picture."""
    fleet = replace(sample_problem(12, 0), total_bandwidth_hz=1.2e6)
    fleet = replace(fleet.subset(make_allocator("equal").allocate(fleet).scheduled), total_examples=0.0)
    panels = {"time": _time, "battery": _battery, "outage": _outage}
    rows = [{"panel": name} | row for name, draw in panels.items() for row in draw(fleet, every)]
    write_csv(out / "horizon.csv", rows, COLUMNS)
    figure, axes = new_figure(3)
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
