"""Charts over rounds: learning curves, predicted bound and measured gap, solver, time and energy."""

from collections.abc import Callable, Sequence
from statistics import mean
from typing import Any

from fedlodrop.report import plot
from fedlodrop.report.data import SPLITS, Record, Run, curve
from fedlodrop.report.html import Chart, esc, significant

# Horizontal axes of the learning curves: name -> title, key of a curve row, factor to the title's unit.
AXES: dict[str, tuple[str, str, float]] = {
    "round": ("round", "round", 1.0),
    "time": ("simulated time (s)", "time_s", 1.0),
    "energy": ("simulated energy, all devices (J)", "energy_j", 1.0),
    "upload": ("uploaded, all devices (MB)", "upload_bytes", 1e-6),
}
_SPLIT_WORDS = {
    "validation": "Validation: held out from the training data; it chooses the best round.",
    "train_eval": "Training sample: examples that devices train on.",
    "in_training": "Devices, while training: mean over their steps, with dropout on.",
}
Value = Callable[[Record], float | None]  # of a round
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
    found = []  # curve, split, its rows, run
    for index, run in enumerate(runs):
        rows = curve(run)
        for dash, (split, words) in enumerate(SPLITS):
            if points := [row for row in rows if measure in (row.get(split) or {})]:
                values = [row[split][measure] for row in points]
                # Colours tell curves of one run apart, or several runs, whose curves differ by dash.
                name, color = (words, dash) if len(runs) == 1 else (f"{esc(run.name)} · {words}", index)
                trace = plot.line([row["round"] for row in points], values, name, (color, dash))
                found.append((trace, split, points, index))
    if not found:
        return None
    traces, splits, columns, owners = map(list, zip(*found, strict=True))
    axes: dict[str, Any] = {}
    for choice, (title, column, factor) in AXES.items():
        x = [[significant(row[column] * factor, 7) for row in points] for points in columns]
        axes[choice] = {"title": title, "dtick": None, "x": x}
    rounds = plot.round_axis(last_round(runs))
    axes["round"]["dtick"] = rounds["dtick"]
    explained = [_SPLIT_WORDS[split] for split in splits if split in _SPLIT_WORDS and len(runs) == 1]
    chart = Chart(
        key,
        measure.upper() if len(measure) < 4 else measure.capitalize(),
        " ".join(["Round 0 is the model before training.", *explained]),
        f"Line chart of {measure} against rounds: {_told(traces)}. The table below holds all values.",
        traces,
        plot.layout(rounds, plot.axis(unit_of(runs, measure))),
        400,
        axes,
        splits,
    )
    return plot.compared(chart, owners) if len(runs) > 1 else chart


def unit_of(runs: Sequence[Run], measure: str) -> str:
    """Return a measure with its unit, for an axis."""
    return plot.with_unit(measure, regression=any(run.setting("task.kind") == "regression" for run in runs))


def prediction_charts(runs: Sequence[Run]) -> list[Chart]:
    """Draw the predicted bound and the measured gap."""
    gap = _per_round(runs, "gap", lambda record: (record.get("gap") or {}).get("loss"))
    for trace in gap.data:
        trace["connectgaps"] = True  # rounds in which nothing was scored
    return [_per_round(runs, "bound", lambda record: record["plan"]["objective"] if _served(record) else None), gap]


def _served(record: Record) -> bool:
    return any(row["scheduled"] for row in record["devices"])


def _per_round(runs: Sequence[Run], key: str, value: Value, **y: Any) -> Chart:
    title, caption, unit = plot.WORDS[key]
    unit = unit or unit_of(runs, "loss")
    traces = [
        plot.line([r["round"] for r in run.rounds], [value(r) for r in run.rounds], esc(run.name), (index, 0))
        for index, run in enumerate(runs)
    ]
    shown = plot.layout(plot.round_axis(last_round(runs)), plot.axis(unit, **y), showlegend=False)
    chart = Chart(key, title, caption, f"Line chart against rounds, {unit}: {_told(traces)}.", traces, shown, 320)
    return plot.compared(chart, range(len(runs))) if len(runs) > 1 else chart


def solver_charts(runs: Sequence[Run]) -> list[Chart]:
    """Draw the certified gap and the solver's time."""

    def gap(record: Record) -> float | None:
        known = record["plan"].get("gap") if _served(record) else None
        return None if known is None else float(max(known, _SMALLEST_GAP))

    asked = {run.setting("allocator.gap") for run in runs}
    seen = [max(record["plan"].get("gap") or 0.0, _SMALLEST_GAP) for run in runs for record in run.rounds]
    powers = plot.decades([*seen, *filter(None, asked)])
    powers |= {"tickformat": "", "exponentformat": "power", "tickfont": {"size": 11}}
    certificate = _per_round(runs, "certificate", gap, **powers)
    if len(asked) == 1 and (wanted := asked.pop()):
        certificate.layout.update(plot.limit_line(wanted, "requested gap", logarithmic=True))
    spent = _per_round(runs, "solve-time", lambda record: 1e3 * record["plan"]["solve_time_s"], rangemode="tozero")
    return [certificate, spent]


def cost_charts(runs: Sequence[Run]) -> list[Chart]:
    """Draw time and energy of every round beside their limits."""

    def budget(record: Record) -> float | None:
        return sum(row["energy_budget_j"] for row in record["devices"] if row["scheduled"]) or None

    joules = plot.decades([value for run in runs for r in run.rounds for value in (r["energy_j"], budget(r)) if value])
    time = _per_round(runs, "round-time", lambda record: record["sim_latency_s"], rangemode="tozero")
    energy = _per_round(runs, "round-energy", lambda record: record["energy_j"] or None, **joules)
    _add_limit(
        time, runs, lambda record: max((row["deadline_s"] for row in record["devices"]), default=None), "deadline"
    )
    _add_limit(energy, runs, budget, "budget")
    return [time, energy, *_battery_charts(runs)]


def _battery_charts(runs: Sequence[Run]) -> list[Chart]:
    """Draw what batteries hold and what a joule in them is worth; nothing where everybody is on the mains."""

    def of(record: Record, key: str, summary: Callable[[list[float]], float]) -> float | None:
        found = [row[key] for row in record["devices"] if row.get("charge_j") is not None]
        return float(summary(found)) if found else None

    if not any(of(record, "charge_j", min) is not None for run in runs for record in run.rounds):
        return []
    charge = _per_round(runs, "charge", lambda record: of(record, "charge_j", mean), rangemode="tozero")
    _add_limit(charge, runs, lambda record: of(record, "charge_j", min), "emptiest device", own="mean")
    return [charge, _per_round(runs, "joule-price", lambda record: of(record, "price_per_j", mean), rangemode="tozero")]


def _add_limit(chart: Chart, runs: Sequence[Run], limit: Value, words: str, own: str = "used") -> None:
    """Draw a dashed limit that may change from round to round; ``own`` names the other curve of a single run."""
    for index, run in enumerate(runs):
        name = words if len(runs) == 1 else f"{esc(run.name)} · {words}"
        rounds = [record["round"] for record in run.rounds]
        chart.data.append(plot.line(rounds, list(map(limit, run.rounds)), name, (index, 1)) | {"mode": "lines"})
    if len(runs) > 1:
        chart.owners.extend(range(len(runs)))
        return
    chart.data[1]["line"]["color"] = plot.LIMIT
    chart.data[0]["name"] = own
    chart.layout["showlegend"] = True
