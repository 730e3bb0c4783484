"""Charts over rounds: learning curves, predicted bound and measured gap, solver, time and energy."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fedlodrop.report.data import SPLITS, Record, Run, curve
from fedlodrop.report.html import Chart, significant
from fedlodrop.report.plot import (
    LIMIT,
    WORDS,
    axis,
    compared,
    decades,
    layout,
    limit_line,
    line,
    round_axis,
    round_step,
    short_name,
    with_unit,
)
from optimizer.objective import empirical_part, stability_gap
from optimizer.problem import BoundConstants

# Horizontal axes of the learning curves: name -> title, key of a curve row, factor to the title's unit.
AXES: dict[str, tuple[str, str, float]] = {
    "round": ("round", "round", 1.0),
    "time": ("simulated time (s)", "time_s", 1.0),
    "energy": ("simulated energy, all devices (J)", "energy_j", 1.0),
    "upload": ("uploaded, all devices (MB)", "upload_bytes", 1e-6),
}
_BOUND_CURVES = ("predicted bound", "its stability part", "measured gap")
_SPLIT_WORDS = {
    "validation": "Validation: held out from the training data; it chooses the best round.",
    "train_eval": "Training sample: examples that devices train on.",
    "in_training": "Devices, while training: mean over their steps, with dropout on.",
}
_SMALLEST_GAP = 1e-16  # below rounding; the logarithmic axis has no zero


def last_round(runs: Sequence[Run]) -> int:
    """Highest round that any of the runs finished."""
    return max((run.rounds[-1]["round"] for run in runs if run.rounds), default=0)


def _told(traces: Sequence[dict[str, Any]]) -> str:
    """Say where all curves start and end, for screen readers."""
    ends = []
    for trace in traces:
        known = [value for value in trace["y"] if value is not None]
        ends.append(f"{trace['name']} " + (f"from {known[0]:.4g} to {known[-1]:.4g}" if known else "without values"))
    return "; ".join(ends)


def learning_chart(runs: Sequence[Run], measure: str, key: str) -> Chart | None:
    """Draw one measure (``loss`` or a metric) of all splits and runs; None if nothing was scored."""
    traces, splits, columns, owners = [], [], [], []
    for index, run in enumerate(runs):
        rows = curve(run)
        for dash, (split, words) in enumerate(SPLITS):
            if points := [row for row in rows if measure in (row.get(split) or {})]:
                values = [row[split][measure] for row in points]
                # Colours tell curves of one run apart, or several runs, whose curves differ by dash.
                name, color = (words, dash) if len(runs) == 1 else (f"{short_name(run.name)} · {words}", index)
                traces.append(line([row["round"] for row in points], values, name, (color, dash)))
                splits.append(split)
                columns.append(points)
                owners.append(index)
    if not traces:
        return None
    axes: dict[str, Any] = {}
    for choice, (title, column, factor) in AXES.items():
        x = [[significant(row[column] * factor, 7) for row in points] for points in columns]
        axes[choice] = {"title": title, "dtick": round_step(last_round(runs)) if choice == "round" else None, "x": x}
    explained = [_SPLIT_WORDS[split] for split in splits if split in _SPLIT_WORDS and len(runs) == 1]
    chart = Chart(
        key,
        measure.upper() if len(measure) < 4 else measure.capitalize(),
        " ".join(["Round 0 is the model before training.", *explained]),
        f"Line chart of {measure} against rounds: {_told(traces)}. The table below holds all values.",
        traces,
        layout(round_axis(last_round(runs)), axis(unit_of(runs, measure))),
        400,
        axes,
        splits,
    )
    return compared(chart, owners) if len(runs) > 1 else chart


def unit_of(runs: Sequence[Run], measure: str) -> str:
    """Return a measure with its unit, for an axis."""
    return with_unit(measure, regression=any(run.setting("task.kind") == "regression" for run in runs))


def bound_parts(run: Run, record: Record) -> tuple[float | None, float | None]:
    """Return the plan's objective and the part of it that is the stability gap, None where they are unknown."""
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


def prediction_charts(runs: Sequence[Run]) -> list[Chart]:
    """Draw predicted bound, its stability part and measured gap: together, or for several runs apart."""
    several, found = len(runs) > 1, []  # kind of curve, run, curve
    for index, run in enumerate(runs):
        rounds = [record["round"] for record in run.rounds]
        parts = [bound_parts(run, record) for record in run.rounds]
        gaps = {row["round"]: row["gap"]["loss"] for row in curve(run) if row.get("gap")}
        curves = ((rounds, [both[0] for both in parts]), (rounds, [both[1] for both in parts]), (gaps, gaps.values()))
        for kind, (x, y) in enumerate(curves):
            if any(value is not None for value in y):
                name, look = (short_name(run.name), (index, 0)) if several else (_BOUND_CURVES[kind], (kind, kind))
                found.append((kind, index, line(list(x), list(y), name, look)))
    charts = []
    apart, alone = {"bound": ("bound", (0,)), "gap": ("gap", (2,))}, {"bound": ("bound-and-gap", (0, 1, 2))}
    for key, (words, kinds) in (apart if several else alone).items():
        traces = [trace for kind, _, trace in found if kind in kinds]
        label = f"Line chart against rounds: {_told(traces) or 'nothing to show'}."
        shown = layout(round_axis(last_round(runs)), axis(unit_of(runs, "loss")))
        chart = Chart(key, *WORDS[words][:2], label, traces, shown)
        charts.append(compared(chart, [owner for kind, owner, _ in found if kind in kinds]) if several else chart)
    return charts


def _per_round(runs: Sequence[Run], key: str, value: Callable[[Record], Any], **y: Any) -> Chart:
    """Draw one number per round, one curve per run."""
    title, caption, unit = WORDS[key]
    traces = [
        line([r["round"] for r in run.rounds], [value(r) for r in run.rounds], short_name(run.name), (index, 0))
        for index, run in enumerate(runs)
    ]
    shown = layout(round_axis(last_round(runs)), axis(unit, **y), showlegend=False)
    chart = Chart(key, title, caption, f"Line chart against rounds, {unit}: {_told(traces)}.", traces, shown, 320)
    return compared(chart, range(len(runs))) if len(runs) > 1 else chart


def solver_charts(runs: Sequence[Run]) -> list[Chart]:
    """Draw the certified gap and the solver's time."""

    def gap(record: Record) -> float | None:
        known = record["plan"].get("gap") if any(row["scheduled"] for row in record["devices"]) else None
        return None if known is None else float(max(known, _SMALLEST_GAP))

    asked = {run.setting("allocator.gap") for run in runs}
    seen = [max(record["plan"].get("gap") or 0.0, _SMALLEST_GAP) for run in runs for record in run.rounds]
    powers = decades([*seen, *filter(None, asked)])
    powers |= {"tickformat": "", "exponentformat": "power", "tickfont": {"size": 11}}
    certificate = _per_round(runs, "certificate", gap, **powers)
    if len(asked) == 1 and (wanted := asked.pop()):
        certificate.layout.update(limit_line(wanted, "requested gap", logarithmic=True))
    spent = _per_round(runs, "solve-time", lambda record: 1e3 * record["plan"]["solve_time_s"], rangemode="tozero")
    return [certificate, spent]


def cost_charts(runs: Sequence[Run]) -> list[Chart]:
    """Draw time and energy of every round beside their limits."""

    def deadline(record: Record) -> float | None:
        return max((row["deadline_s"] for row in record["devices"]), default=None)

    def budget(record: Record) -> float | None:
        return sum(row["energy_budget_j"] for row in record["devices"] if row["scheduled"]) or None

    joules = decades([value for run in runs for r in run.rounds for value in (r["energy_j"], budget(r)) if value])
    time = _per_round(runs, "round-time", lambda record: record["sim_latency_s"], rangemode="tozero")
    energy = _per_round(runs, "round-energy", lambda record: record["energy_j"] or None, **joules)
    _add_limit(time, runs, deadline, "deadline")
    _add_limit(energy, runs, budget, "budget")
    return [time, energy, *_battery_charts(runs)]


def _battery_charts(runs: Sequence[Run]) -> list[Chart]:
    """Draw what batteries hold and what a joule in them is worth; nothing where everybody is on the mains."""

    def mean(record: Record, key: str) -> float | None:
        found = [row[key] for row in record["devices"] if row.get("charge_j") is not None]
        return float(np.mean(found)) if found else None

    def emptiest(record: Record) -> float | None:
        return min((row["charge_j"] for row in record["devices"] if row.get("charge_j") is not None), default=None)

    if not any(emptiest(record) is not None for run in runs for record in run.rounds):
        return []
    charge = _per_round(runs, "charge", lambda record: mean(record, "charge_j"), rangemode="tozero")
    _add_limit(charge, runs, emptiest, "emptiest device", own="mean")
    return [charge, _per_round(runs, "joule-price", lambda record: mean(record, "price_per_j"), rangemode="tozero")]


def _add_limit(
    chart: Chart, runs: Sequence[Run], limit: Callable[[Record], float | None], words: str, own: str = "used"
) -> None:
    """Draw a dashed limit that may change from round to round; runs with the same limits share one line.

    ``words`` name the limit, ``own`` the line of a single run.
    """
    shared: dict[tuple[Any, ...], list[int]] = {}
    for index, run in enumerate(runs):
        shared.setdefault(tuple((record["round"], limit(record)) for record in run.rounds), []).append(index)
    for limits, owners in shared.items():
        single = owners[0] if len(owners) == 1 and len(runs) > 1 else None
        name = words if single is None else f"{short_name(runs[single].name)} · {words}"
        trace = line([x for x, _ in limits], [y for _, y in limits], name, (single or 0, 1)) | {"mode": "lines"}
        if single is None:
            trace["line"] |= {"color": LIMIT}
        chart.data.append(trace)
        chart.owners.extend([single] * (len(runs) > 1))
    if len(runs) == 1:
        chart.data[0]["name"] = own
        chart.layout["showlegend"] = True
