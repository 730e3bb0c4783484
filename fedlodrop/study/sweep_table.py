"""All jobs of a sweep as one tidy table (CSV and Parquet) and one picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedlodrop.report.plot import with_unit
from fedlodrop.study.runner import tasks_of
from optimizer.atomic import written_whole
from optimizer.plots import new_figure, plain, save, shared_legend, style
from server_app.results import leaves, write_atomic

_SEED = "run.seed"
_PANELS = (
    ("final.eval.{metric}", "test {metric}, last round", 1.0),
    ("final.gap.loss", "generalization gap, {loss}", 1.0),
    ("uplink_bytes", "upload (MB)", 1e-6),
    ("energy_j", "simulated energy (J)", 1.0),
)
_MOST_TICKS = 12  # varied values that all get a tick


def read_jobs(folder: Path) -> pd.DataFrame:
    """Return one row per job: its overrides, then its summary flattened with dots, then status, message and folder."""
    rows, names = [], []
    for path, record in tasks_of(folder):
        overrides = record["overrides"]
        names += [key for key in overrides if key not in names]
        summary = path / "summary.json"
        content = json.loads(summary.read_text()) if summary.exists() else {}
        flat = {key: json.dumps(value) if isinstance(value, list) else value for key, value in leaves(content).items()}
        flat = {key: value for key, value in flat.items() if key not in overrides}
        status = {"status": record["status"], "message": record["message"], "folder": path.name}
        rows.append({**overrides, **flat, **status})
    table = pd.DataFrame(rows)
    last = ["status", "message", "folder"]
    table = table[
        [*names, *(c for c in table.columns if c not in names and c not in last), *(c for c in last if c in table)]
    ]
    for name in names:
        numbers = pd.to_numeric(table[name], errors="coerce")
        if numbers.notna().all():
            table[name] = numbers
    return table.sort_values(names, kind="stable", ignore_index=True) if names else table


def write_table(folder: Path) -> pd.DataFrame:
    """Write jobs.csv, jobs.parquet and jobs.png of a sweep and return the table."""
    table = read_jobs(folder)
    write_atomic(folder / "jobs.csv", table.to_csv(index=False))
    with written_whole(folder / "jobs.parquet") as temporary:
        table.to_parquet(temporary, index=False)
    if "primary_metric" in table and table["primary_metric"].notna().any():
        draw(table, folder / "jobs.png")
    return table


def swept_keys(table: pd.DataFrame) -> list[str]:
    """Return the override columns that take more than one value; overrides come first in the table."""
    columns = list(table.columns)
    first = columns.index("rounds_done") if "rounds_done" in columns else columns.index("status")
    return [name for name in columns[:first] if table[name].nunique(dropna=False) > 1]


def print_table(console: Console, table: pd.DataFrame, folder: Path, program: str) -> None:
    """Print the jobs with what was varied and the scores, and where everything is."""
    metric = _metric(table)
    swept = swept_keys(table) or ["folder"]
    shown = Table(title=f"{len(table)} jobs", title_justify="left")
    for name in swept:
        shown.add_column(name.rsplit(".", 1)[-1], overflow="fold")
    columns = [
        (f"final.eval.{metric}", f"test {metric}", 1.0, ".3f"),
        ("final.gap.loss", "gap", 1.0, "+.3f"),
        ("uplink_bytes", "up MB", 1e-6, ".2f"),
        ("energy_j", "energy J", 1.0, ".1f"),
    ]
    columns = [column for column in columns if column[0] in table]
    for _, title, _, _ in columns:
        shown.add_column(title, justify="right")
    failed = (table["status"] != "finished").any()
    if failed:
        shown.add_column("status")
    for row in table.to_dict("records"):
        values = ["" if pd.isna(row[key]) else format(row[key] * scale, form) for key, _, scale, form in columns]
        shown.add_row(*(Text(_short(row[name])) for name in swept), *values, *([row["status"]] if failed else []))
    console.print(shown)
    for name in ("jobs.csv", "jobs.parquet", "jobs.png"):
        if (folder / name).exists():
            console.print(f"{name + ':':14}{folder / name}", highlight=False, soft_wrap=True)
    console.print(
        f"next:         {program} report {folder}/*/ --out {folder}/report.html", highlight=False, soft_wrap=True
    )


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def draw(table: pd.DataFrame, path: Path) -> None:
    """Draw the scores of all finished jobs against what was varied: mean over seeds, a bar from the least to the largest."""
    done = table[table["status"] == "finished"]
    metric = _metric(table)
    axis, series = _roles(done)
    regression = "task_kind" in done and "regression" in set(done["task_kind"])
    words = {name: with_unit(name, regression=regression) for name in (metric, "loss")}
    panels = [
        (key.format(metric=metric), title.format(metric=words[metric], loss=words["loss"]), scale)
        for key, title, scale in _PANELS
    ]
    panels = [panel for panel in panels if panel[0] in done]
    figure, grid = new_figure(2, rows=2, width=5.5)
    for axes, (key, title, scale) in zip(grid, panels, strict=False):
        _panel(axes, done.assign(**{key: done[key].astype(float) * scale}), key, axis, series)
        axes.set_ylabel(title)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    if series:
        shared_legend(figure, grid[:1], place="outside upper center", title=", ".join(series))
    seeds = done[_SEED].nunique() if _SEED in done else 1
    figure.supxlabel(
        f"points: mean over {seeds} seeds; bars: least to largest" if seeds > 1 else "one seed", fontsize=9
    )
    save(figure, path)


def _roles(table: pd.DataFrame) -> tuple[str | None, list[str]]:
    """Choose the varied key of the x axis (a number if there is one); all others but the seed name the series."""
    keys = [name for name in swept_keys(table) if name != _SEED]
    numbers = [name for name in keys if pd.api.types.is_numeric_dtype(table[name])]
    axis = next(iter([*numbers, *keys]), None)
    return axis, [name for name in keys if name != axis]


def _panel(axes: Any, table: pd.DataFrame, key: str, axis: str | None, series: list[str]) -> None:
    axis_values = table[axis] if axis else pd.Series("all jobs", index=table.index)
    numeric = pd.api.types.is_numeric_dtype(axis_values)
    ticks: list[Any] = sorted(axis_values.unique())
    logarithmic = numeric and ticks[0] > 0 and ticks[-1] / ticks[0] > 20
    groups = list(table.groupby(series, sort=True)) if series else [((), table)]
    for number, (names, part) in enumerate(groups):
        stats = part.groupby(axis_values[part.index])[key].agg(["mean", "min", "max"])
        beside = 0.012 * (number - (len(groups) - 1) / 2)  # equal results side by side instead of on top of each other
        if logarithmic:
            places = [x * (ticks[-1] / ticks[0]) ** beside for x in stats.index]
        else:
            places = [
                beside * (ticks[-1] - ticks[0]) + x if numeric else ticks.index(x) + 4 * beside for x in stats.index
            ]
        look = style(", ".join(str(name) for name in names), number) | ({} if numeric else {"linestyle": "none"})
        spread = [stats["mean"] - stats["min"], stats["max"] - stats["mean"]]
        axes.errorbar(places, stats["mean"], yerr=spread, capsize=3, **look | {"markersize": 6})
    if logarithmic:
        axes.set_xscale("log")
    if numeric and len(ticks) <= _MOST_TICKS:
        axes.set_xticks([], minor=True)
        axes.set_xticks(ticks, [_prefixed(tick) for tick in ticks])
    if not numeric:
        axes.set_xticks(range(len(ticks)), [plain(str(tick)) for tick in ticks])
        axes.margins(x=0.2)
    axes.set_xlabel(_with_unit(axis) if axis else "")


def _prefixed(value: float) -> str:
    """Return 400 k for 400000; what is small stays as it is written in a configuration."""
    from matplotlib.ticker import EngFormatter

    return EngFormatter()(value) if abs(value) >= 1e4 else f"{value:g}"


def _with_unit(key: str) -> str:
    """Return a configuration key with the unit that its last part names: ``network.total_bandwidth_hz (Hz)``."""
    units = {"hz": "Hz", "s": "s", "j": "J", "w": "W", "db": "dB", "dbm": "dBm", "bps": "bit/s", "m": "m"}
    unit = units.get(key.rsplit("_", 1)[-1]) if "_" in key else None
    return f"{key} ({unit})" if unit else key


def _metric(table: pd.DataFrame) -> str:
    known = table["primary_metric"].dropna() if "primary_metric" in table else pd.Series(dtype=str)
    return str(known.iloc[0]) if len(known) else "metric"
