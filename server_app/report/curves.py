"""Charts over rounds: learning curves, predicted bound and measured gap, solver, time and energy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import log10
from typing import Any

import numpy as np

from optimizer.objective import empirical_part, stability_gap
from optimizer.problem import BoundConstants
from server_app.report.data import SPLITS, Record, Run, curve
from server_app.report.html import Chart, significant
from server_app.report.plot import (
    axis,
    dash_key,
    decades,
    first_and_last,
    layout,
    limit_line,
    line,
    round_axis,
    round_step,
    run_legend,
    short_name,
    with_unit,
)

# Horizontal axes of the learning curves: name -> title, key of a curve row, factor to the title's unit.
AXES: dict[str, tuple[str, str, float]] = {
    "round": ("round", "round", 1.0),
    "time": ("simulated time (s)", "time_s", 1.0),
    "energy": ("simulated energy, all devices (J)", "energy_j", 1.0),
    "upload": ("uploaded, all devices (MB)", "upload_bytes", 1e-6),
}
_BOUND_CURVES = ("predicted bound", "of it stability gap", "measured gap")
_SMALLEST_GAP = 1e-16  # below rounding; the logarithmic axis has no zero


def last_round(runs: Sequence[Run]) -> int:
    """Highest round that any of the runs finished."""
    return max((run.rounds[-1]["round"] for run in runs if run.rounds), default=0)


def learning_chart(runs: Sequence[Run], measure: str, key: str) -> Chart | None:
    """Draw one measure (``loss`` or a metric) of all splits and runs; None if nothing was scored."""
    traces, splits, columns, owners = [], [], [], []
    for index, run in enumerate(runs):
        rows = curve(run)
        for dash, (split, words) in enumerate(SPLITS):
            points = [row for row in rows if measure in (row.get(split) or {})]
            if not points:
                continue
            name, look = curve_name(runs, index, words, dash)
            traces.append(line([row["round"] for row in points], [row[split][measure] for row in points], name, look))
            splits.append(split)
            columns.append(points)
            owners.append(index)
    if not traces:
        return None
    spoken = "; ".join(first_and_last(str(trace["name"]), trace["y"]) for trace in traces)
    legend = run_legend([run.name for run in runs], traces, owners) if len(runs) > 1 else []
    axes: dict[str, Any] = {}
    for choice, (title, column, factor) in AXES.items():
        x = [[significant(row[column] * factor, 7) for row in points] for points in columns]
        x += [[None]] * len(legend)
        axes[choice] = {"title": title, "dtick": round_step(last_round(runs)) if choice == "round" else None, "x": x}
    return Chart(
        key, measure.upper() if len(measure) < 4 else measure.capitalize(), "Round 0 is the model before training.",
        f"Line chart of {measure} against rounds: {spoken}. The table below holds all values.",
        [*traces, *legend], layout(round_axis(last_round(runs)), axis(unit_of(runs, measure))), 400, axes,
        [*splits, *("" for _ in legend)],
    )  # fmt: skip


def curve_name(runs: Sequence[Run], index: int, words: str, dash: int) -> tuple[str, tuple[int, int]]:
    """Return name and look of a curve: colours tell curves of one run apart, or several runs, whose curves differ by dash."""
    if len(runs) > 1:
        return f"{short_name(runs[index].name)} · {words}", (index, dash)
    return words, (dash, dash)


def unit_of(runs: Sequence[Run], measure: str) -> str:
    """Return a measure with its unit, for an axis."""
    return with_unit(measure, regression=any(run.setting("task.kind") == "regression" for run in runs))


def bound_parts(run: Run, record: Record) -> tuple[float | None, float | None]:
    """Return the plan's objective and the part of it that is the stability gap; (None, None) without scheduled devices."""
    rows = [row for row in record["devices"] if row["scheduled"] and row["dropout_rate"] is not None]
    if not rows:
        return None, None
    objective = record["plan"]["objective"]
    try:
        constants = BoundConstants(**run.config["bound"])
    except (KeyError, TypeError, ValueError):
        return objective, None
    gamma, examples = (np.array([row[key] for row in rows], dtype=float) for key in ("dropout_rate", "num_examples"))
    # Both parts carry the same weights n_k / (examples of the fleet), so their ratio needs no knowledge of the fleet.
    gap = float((examples * stability_gap(gamma, examples, constants)).sum())
    fit = float((examples * empirical_part(gamma, constants)).sum())
    return objective, objective * gap / (gap + fit) if gap + fit > 0 else None


def bound_chart(runs: Sequence[Run]) -> Chart:
    """Draw the predicted bound, its stability part, and the measured generalization gap."""
    traces, owners = [], []
    for index, run in enumerate(runs):
        rounds = [record["round"] for record in run.rounds]
        parts = [bound_parts(run, record) for record in run.rounds]
        measured = [(row["round"], row["gap"]["loss"]) for row in curve(run) if row.get("gap")]
        curves: list[tuple[list[Any], list[Any]]] = [
            (rounds, [objective for objective, _ in parts]),
            (rounds, [gap for _, gap in parts]),
            ([r for r, _ in measured], [gap for _, gap in measured]),
        ]
        for dash, (x, y) in enumerate(curves):
            if any(value is not None for value in y):
                traces.append(line(x, y, *curve_name(runs, index, _BOUND_CURVES[dash], dash)))
                owners.append(index)
    spoken = "; ".join(first_and_last(str(trace["name"]), trace["y"]) for trace in traces) or "nothing to show"
    key = "".join(dash_key(dash, words) for dash, words in enumerate(_BOUND_CURVES)) + "<br>" if len(runs) > 1 else ""
    legend = run_legend([run.name for run in runs], traces, owners) if len(runs) > 1 else []
    return Chart(
        "bound", "Predicted bound and measured gap",
        f"{key}Predicted: the objective the optimizer minimised, a sum over the devices that take part, weighted by their "
        "share of the fleet's examples; it falls when devices sit out. Measured: loss on the test set minus loss on the "
        "training sample. The bound's constants are not fitted to the task: compare direction and order, not height.",
        f"Line chart against rounds: {spoken}.", [*traces, *legend],
        layout(round_axis(last_round(runs)), axis(unit_of(runs, "loss"))),
    )  # fmt: skip


def order_chart(runs: Sequence[Run]) -> Chart | None:
    """Place every run by its mean predicted bound and its final measured gap; None if fewer than two can be placed."""
    points = []
    for index, run in enumerate(runs):
        bounds = [bound for bound, _ in (bound_parts(run, record) for record in run.rounds) if bound is not None]
        final = run.summary.get("final")
        if bounds and final:
            trace = line([sum(bounds) / len(bounds)], [final["gap"]["loss"]], short_name(run.name), (index, 0))
            points.append({**trace, "mode": "markers", "marker": {**trace["marker"], "size": 12}})
    if len(points) < 2:
        return None
    spoken = "; ".join(f"{point['name']} predicted {point['x'][0]}, measured {point['y'][0]}" for point in points)
    return Chart(
        "order", "Predicted and measured order",
        "One mark per run: the further right, the larger the predicted bound (mean over rounds); the higher, the larger the "
        "measured gap after the last round.",
        f"Scatter chart: {spoken}.", points, layout(axis("predicted bound, mean (nats)"), axis("measured gap (nats)")),
    )  # fmt: skip


def _per_round(
    runs: Sequence[Run], key: str, title: str, caption: str, unit: str, value: Callable[[Record], float | None], **y: Any
) -> Chart:
    """Draw one number per round, one curve per run."""
    traces = []
    for index, run in enumerate(runs):
        values = [value(record) for record in run.rounds]
        traces.append(line([record["round"] for record in run.rounds], values, short_name(run.name), (index, 0)))
    spoken = "; ".join(first_and_last(str(trace["name"]), trace["y"]) for trace in traces)
    shown = layout(round_axis(last_round(runs)), axis(unit, **y), showlegend=len(runs) > 1)
    return Chart(key, title, caption, f"Line chart against rounds, {unit}: {spoken}.", traces, shown, 320)


def _gaps(runs: Sequence[Run]) -> list[float]:
    """Return everything the axis of certified gaps has to show, the requested gaps included."""
    found = [max(record["plan"].get("gap") or 0.0, _SMALLEST_GAP) for run in runs for record in run.rounds]
    return [*found, *(wanted for run in runs if (wanted := run.setting("allocator.gap")))]


def solver_charts(runs: Sequence[Run]) -> list[Chart]:
    """Draw the certified gap and the solver's time."""

    def gap(record: Record) -> float | None:
        known = record["plan"].get("gap") if any(row["scheduled"] for row in record["devices"]) else None
        return None if known is None else float(max(known, _SMALLEST_GAP))

    def milliseconds(record: Record) -> float | None:
        return 1e3 * float(record["plan"]["solve_time_s"])

    charts = [
        _per_round(
            runs, "certificate", "Certified gap",
            "Objective against the solver's lower bound for the same devices; a hole means that there was "
            "no certificate, or nobody to serve. Gaps below 1e-16 are drawn there.",
            "relative gap (1)", gap,
            **{**decades(_gaps(runs)), "tickformat": "", "exponentformat": "power", "tickfont": {"size": 11}},
        ),
        _per_round(
            runs, "solve-time", "Solver time", "Wall time of the resource optimizer alone.", "time (ms)", milliseconds,
            rangemode="tozero",
        ),
    ]  # fmt: skip
    wanted = {run.setting("allocator.gap") for run in runs}
    if len(wanted) == 1 and (asked := wanted.pop()):
        charts[0].layout.update(limit_line(asked, "requested gap"))
        charts[0].layout["annotations"][0]["y"] = log10(asked)  # plotly: exponents for annotations, values for shapes
    return charts


def cost_charts(runs: Sequence[Run]) -> list[Chart]:
    """Draw time and energy of every round beside their limits."""

    def deadline(record: Record) -> float | None:
        return max((row["deadline_s"] for row in record["devices"]), default=None)

    def budget(record: Record) -> float | None:
        return sum(row["energy_budget_j"] for row in record["devices"] if row["scheduled"]) or None

    charts = [
        _per_round(
            runs, "round-time", "Time per round and deadline",
            "Simulated latency of the slowest scheduled device (download, training, upload); dashed: the deadline.",
            "time (s)", lambda record: record["sim_latency_s"], rangemode="tozero",
        ),
        _per_round(
            runs, "round-energy", "Energy per round and budget",
            "Sum over the scheduled devices; dashed: the sum of their budgets. Logarithmic: use is often a small part.",
            "energy (J)", lambda record: record["energy_j"] or None,
            **decades([value for run in runs for r in run.rounds for value in (r["energy_j"], budget(r)) if value]),
        ),
    ]  # fmt: skip
    for chart, limit, words in zip(charts, (deadline, budget), ("deadline", "budget"), strict=True):
        for index, run in enumerate(runs):
            x, y = [record["round"] for record in run.rounds], [limit(record) for record in run.rounds]
            name, (color, _) = curve_name(runs, index, words, 1)
            chart.data.append({**line(x, y, name, (color, 1)), "mode": "lines"})
        if len(runs) > 1:
            owners = [*range(len(runs)), *range(len(runs))]
            chart.data.extend(run_legend([run.name for run in runs], chart.data, owners))
        else:
            chart.data[0]["name"] = "used"
        chart.layout["showlegend"] = True
    return charts
