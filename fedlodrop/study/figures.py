"""Figures as PNG files: learning curves and calibration of a study, jobs of a sweep, those of `fedlodrop figures`.

How they look is decided in `optimizer.plots`.
"""

from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fedlodrop.report.data import curve, load_runs
from fedlodrop.report.plot import with_unit
from fedlodrop.study.paired_statistics import estimate
from optimizer.bench import plot_times, time_against_size, write_horizon, write_sweeps
from optimizer.objective import bound_value, empirical_part, stability_gap, unconstrained_minimiser
from optimizer.plots import BLUE, GREY, VERMILION, new_figure, new_panels, plain, save, shared_legend, style, write_csv
from optimizer.problem import BoundConstants

# Learning curves: name -> (x column, x label, y columns)
_CURVES = {
    "rounds": ("round", "round", ("test_metric", "gap_loss")),
    "time": ("sim_time_s", "simulated time (s)", ("test_metric", "gap_loss")),
    "energy": ("energy_j", "simulated energy (J)", ("test_metric", "gap_loss")),
    "bytes": ("uplink_bytes", "uploaded (bytes)", ("test_metric", "test_loss")),
}
_LABELS = {"test_metric": "test score", "gap_loss": "loss gap, test − train", "test_loss": "test loss"}
# Jobs of a sweep: column, title, scale
_JOB_PANELS = (
    ("final.eval.{metric}", "test {unit}, last round", 1.0),
    ("final.gap.loss", "generalization gap, {loss}", 1.0),
    ("uplink_bytes", "upload (MB)", 1e-6),
    ("energy_j", "simulated energy (J)", 1.0),
)
_SIDE_BY_SIDE = 4  # settings of a study
_BESIDE = "outside right center"  # where its legend is: a long title has the top for itself
_UNITS = {"hz": "Hz", "s": "s", "j": "J", "w": "W", "db": "dB", "dbm": "dBm", "bps": "bit/s", "m": "m"}
# `fedlodrop figures`
_SCHEMES = ("exact", "common", "equal", "proportional", "fixed", "none", "random")
_SIZES = {"exact": 300, "bnb": 300, "psca": 100}  # method -> most devices
_TIMES = ("devices", "method", "median_s", "least_s", "objective", "gap", "nodes", "iterations")
_EXAMPLES = (100, 300, 1000)


def draw_curves(rounds: pd.DataFrame, name: str, path: Path, title: str) -> None:
    """Draw the learning curves of a study: a row per quantity, four settings side by side, mean and range over seeds.

    ``name`` is the horizontal axis: ``rounds``, ``time``, ``energy`` or ``bytes``; any other raises ValueError.
    """
    if name not in _CURVES:
        raise ValueError(f"figure: expected one of {', '.join(_CURVES)}, found {name!r}")
    x, label, ys = _CURVES[name]
    settings = list(dict.fromkeys(rounds["setting"]))
    figure, axes = _panels(title, len(ys), settings)
    for panel, (setting, y) in zip(axes, product(settings, ys), strict=True):
        here = rounds[rounds["setting"] == setting]
        for position, (method, runs) in enumerate(here.groupby("method", sort=False)):
            by_round, look = runs.groupby("round"), style("", position) | {"marker": "", "label": plain(str(method))}
            middle, low, high = by_round[y].mean(), by_round[y].min(), by_round[y].max()
            across = by_round[x].mean() if x != "round" else middle.index.to_series()
            panel.plot(across, middle, **look)
            panel.fill_between(across, low, high, color=look["color"], alpha=0.12, linewidth=0)
        panel.set(xlabel=label, ylabel=_LABELS[y])
    shared_legend(figure, axes, place=_BESIDE)
    save(figure, path)


def draw_calibration(table: pd.DataFrame, path: Path, title: str) -> None:
    """Draw measured and predicted error over the dropout rate, a panel per task.

    The columns of ``table`` are task, dropout_rate, seed, measured, predicted.
    """
    tasks = list(dict.fromkeys(table["task"]))
    figure, axes = _panels(title, 1, tasks)
    for panel, task in zip(axes, tasks, strict=True):
        here = table[table["task"] == task]
        mean = here.groupby("dropout_rate")[["measured", "predicted"]].mean()
        panel.plot(here["dropout_rate"], here["measured"], ".", color=GREY, label="measured, each seed")
        panel.plot(mean.index, mean["measured"], "o-", color=BLUE, label="measured, mean")
        panel.plot(mean.index, mean["predicted"], "s--", color=VERMILION, label="calibrated bound")
        panel.set(xlabel="dropout rate (1)", ylabel="test loss")
    shared_legend(figure, axes, place=_BESIDE)
    save(figure, path)


def _panels(title: str, rows: int, names: Sequence[str]) -> tuple[Any, list[Any]]:
    """Return a figure with ``rows`` panels below each other per name, and the panels, name by name."""
    figure, axes = new_panels(len(names), _SIDE_BY_SIDE, 4.0, 3.0, rows=rows)
    figure.suptitle(plain(title), fontsize=11)
    for panel, name in zip(axes[::rows], names, strict=True):
        panel.set_title(plain(name))
    return figure, axes


def draw_jobs(table: pd.DataFrame, path: Path, varied: list[str]) -> None:
    """Draw the finished jobs of a sweep against what was varied: mean over seeds with its 95 % interval.

    The x axis is the first varied key with numbers, if there is one; all others name the series.
    """
    done = table[table["status"] == "finished"]
    metric = str(table["primary_metric"].dropna().iloc[0])
    axis = next((key for key in varied if pd.api.types.is_numeric_dtype(done[key])), varied[0] if varied else None)
    series = [name for name in varied if name != axis]
    regression = "task_kind" in done and "regression" in set(done["task_kind"])
    words = {"unit": with_unit(metric, regression=regression), "loss": with_unit("loss", regression=regression)}
    panels = [(key.format(metric=metric), title.format(**words), scale) for key, title, scale in _JOB_PANELS]
    panels = [panel for panel in panels if panel[0] in done]
    figure, grid = new_figure(2, rows=2, width=5.5)
    for axes, (key, title, scale) in zip(grid, panels, strict=False):
        _draw_job_panel(axes, done.assign(**{key: done[key].astype(float) * scale}), key, axis, series)
        axes.set_ylabel(title)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    if series:
        shared_legend(figure, grid[:1], place="outside upper center", title=", ".join(series))
    seeds = done["run.seed"].nunique() if "run.seed" in done else 1
    caption = f"points: mean over {seeds} seeds; bars: 95 % interval (Student's t)" if seeds > 1 else "one seed"
    figure.supxlabel(caption, fontsize=9)
    save(figure, path)


def _draw_job_panel(axes: Any, table: pd.DataFrame, key: str, axis: str | None, series: list[str]) -> None:
    """Draw a curve per series over the values of ``axis`` in order, at equal distances, with bars for the interval."""
    across = table[axis] if axis else pd.Series("all jobs", index=table.index)
    numeric, ticks = pd.api.types.is_numeric_dtype(across), sorted(across.unique())
    groups = list(table.groupby(series, sort=True)) if series else [((), table)]
    for number, (names, part) in enumerate(groups):
        values = part.groupby(across[part.index])[key]
        mean, low = values.mean(), values.apply(lambda sample: estimate(sample).low)
        beside = 0.05 * (number - (len(groups) - 1) / 2)  # equal results side by side instead of on top of each other
        places = [ticks.index(x) + beside for x in mean.index]
        look = style(", ".join(map(str, names)), number) | ({} if numeric else {"linestyle": "none"})
        axes.errorbar(places, mean, yerr=(mean - low).fillna(0.0), capsize=3, **look | {"markersize": 6})
    shown = range(0, len(ticks), -(-len(ticks) // 12) if numeric else 1)  # of many values some
    axes.set_xticks(shown, [f"{ticks[k]:g}" if numeric else plain(str(ticks[k])) for k in shown])
    axes.margins(x=0.1 if numeric else 0.2)
    unit = _UNITS.get(axis.rsplit("_", 1)[-1]) if axis and "_" in axis else None
    axes.set_xlabel(f"{axis} ({unit})" if unit else axis or "")


def write_figures(
    out: Path, bound: BoundConstants, folders: Sequence[Path], *, say: Callable[[str], None], every: int = 1
) -> list[Path]:
    """Draw the figures of the paper's kind and return them; every one has a CSV beside it.

    Without a run: the bound against the dropout rate, every scheme's objective against deadline, energy, bandwidth and
    number of devices, what a free clock buys, and solve times; ``every`` takes only each n-th point of these sweeps.
    With runs also test metric and generalization gap against rounds and simulated time.
    """
    out.mkdir(parents=True, exist_ok=True)
    pictures = [_draw_bound(out, bound), *(_draw_runs(out, folders) if folders else [])]
    say("measuring solve times")
    times = time_against_size((3, 10, 30, 100, 300)[::every], _SIZES, 3, apart=False)
    write_csv(out / "runtime.csv", times, _TIMES)
    plot_times(out / "runtime.png", times)
    say("solving every scheme against deadline, energy, bandwidth, devices and clock")
    pictures += [out / "runtime.png", *write_sweeps(out, _SCHEMES, every=every)]
    say("solving for the shortest deadline, for batteries and for outage")
    return [*pictures, write_horizon(out, every=every)]


def _draw_bound(out: Path, bound: BoundConstants) -> Path:
    gamma = np.linspace(0.0, 0.9, 181)
    columns = ("examples", "dropout_rate", "bound", "empirical", "gap")
    rows: list[dict[str, Any]] = []
    figure, (whole, parts) = new_figure(2)
    for position, n in enumerate(_EXAMPLES):
        values = bound_value(gamma, n, bound), empirical_part(gamma, bound), stability_gap(gamma, n, bound)
        rows += [dict(zip(columns, (n, *row), strict=True)) for row in zip(gamma, *values, strict=True)]
        whole.plot(gamma, values[0], **style("", position) | {"label": f"n = {n}", "markevery": 12})
    best = unconstrained_minimiser(np.array(_EXAMPLES, dtype=float), bound, 0.9)
    star = {"linestyle": "none", "marker": "*", "markersize": 11, "color": "black", "label": "least"}
    whole.plot(best, bound_value(best, np.array(_EXAMPLES), bound), **star)
    parts.plot(gamma, values[1], color=BLUE, linestyle="-", label="underfitting")
    parts.plot(gamma, values[2], color=VERMILION, linestyle="--", label=f"stability gap, n = {n}")
    whole.set(xlabel="dropout rate (1)", ylabel="bound on the error (nats)")
    parts.set(xlabel="dropout rate (1)", ylabel="parts of the bound (nats)")
    shared_legend(figure, (whole, parts))
    write_csv(out / "bound.csv", rows, columns)
    save(figure, out / "bound.png")
    return out / "bound.png"


def _draw_runs(out: Path, folders: Sequence[Path]) -> list[Path]:
    """Draw test score and generalization gap against rounds and simulated time; nothing without a scored round."""
    rows: list[dict[str, Any]] = [
        {
            "method": run.name,
            "round": row["round"],
            "sim_time_s": row["time_s"],
            "test_metric": row["eval"][run.metric],
            "gap_loss": row.get("gap", {}).get("loss", np.nan),
        }
        for run in load_runs(folders)
        for row in curve(run)
        if row["round"] and run.metric in (row.get("eval") or {})
    ]
    if not rows:
        return []
    write_csv(out / "runs.csv", rows, list(rows[0]))
    pictures = {name: out / f"runs-{name}.png" for name in ("rounds", "time")}
    for name, path in pictures.items():
        draw_curves(pd.DataFrame(rows).assign(setting=""), name, path, "")
    return list(pictures.values())
