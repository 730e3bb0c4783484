"""Figures of the paper's kind, each as PNG and CSV: `fedlodrop figures`.

Without a run: the bound against the dropout rate, every scheme's objective against deadline, energy, bandwidth and
number of devices, what a free clock buys, and solve times. With runs also test metric and generalization gap against
rounds and simulated time. How they look is decided in `optimizer.plots`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedlodrop.report.curves import unit_of
from fedlodrop.report.data import Run, load_runs
from optimizer.bench import plot_times, time_against_size
from optimizer.objective import bound_value, empirical_part, stability_gap, unconstrained_minimiser
from optimizer.plots import BLUE, VERMILION, Row, draw_lines, new_figure, save, shared_legend, write_csv
from optimizer.problem import BoundConstants
from optimizer.sweeps import write_sweeps

_SCHEMES = ("exact", "common", "equal", "proportional", "fixed", "none", "random")
_SIZES = {"exact": 300, "bnb": 300, "psca": 100}  # method -> most devices
_EXAMPLES = (100, 300, 1000)


def write_figures(
    out: Path,
    bound: BoundConstants,
    folders: Sequence[Path] = (),
    *,
    say: Callable[[str], None] = lambda line: None,
    every: int = 1,
) -> list[Path]:
    """Draw everything into a folder.

    Parameters
    ----------
    out : Path
        Folder; made if missing.
    bound : BoundConstants
        Constants of the bound that is drawn.
    folders : sequence of Path
        Runs to compare.
    say : callable
        Takes one line of progress.
    every : int
        Coarser sweeps: every so-manieth point only.

    Returns
    -------
    list of Path
        The pictures; every one has a CSV beside it.
    """
    runs = load_runs(folders) if folders else []
    out.mkdir(parents=True, exist_ok=True)
    pictures = [draw_bound(out, bound)]
    for picture in draw_runs(out, runs):
        pictures.append(picture)
    say("measuring solve times")
    times = time_against_size((3, 10, 30, 100, 300)[::every], _SIZES, repeats=3, apart=False)
    write_csv(
        out / "runtime.csv",
        times,
        ("devices", "method", "median_s", "least_s", "objective", "gap", "nodes", "iterations"),
    )
    plot_times(out / "runtime.png", times)
    say("solving every scheme against deadline, energy, bandwidth, devices and clock")
    return [*pictures, out / "runtime.png", *write_sweeps(out, _SCHEMES, every=every)]


def draw_bound(out: Path, bound: BoundConstants) -> Path:
    """Bound, and its two parts, against the dropout rate for several numbers of examples."""
    gamma = np.linspace(0.0, 0.9, 181)
    rows: list[Row] = []
    figure, axes = new_figure(2)
    for n in _EXAMPLES:
        total, gap = bound_value(gamma, n, bound), stability_gap(gamma, n, bound)
        rows += [
            {"examples": n, "dropout_rate": g, "bound": t, "empirical": e, "gap": s}
            for g, t, e, s in zip(gamma, total, empirical_part(gamma, bound), gap, strict=True)
        ]
    marked = [row | {"curve": f"n = {row['examples']}"} for i, row in enumerate(rows) if i % len(gamma) % 12 == 0]
    draw_lines(axes[0], marked, "dropout_rate", "bound", by="curve")
    best = unconstrained_minimiser(np.array(_EXAMPLES, dtype=float), bound, 0.9)
    axes[0].plot(
        best,
        bound_value(best, np.array(_EXAMPLES), bound),
        linestyle="none",
        marker="*",
        markersize=11,
        color="black",
        label="least",
    )
    middle = [row for row in rows if row["examples"] == _EXAMPLES[1]]
    for column, words, colour, dash in (
        ("empirical", "underfitting", BLUE, "-"),
        ("gap", "stability gap", VERMILION, "--"),
    ):
        axes[1].plot(
            [row["dropout_rate"] for row in middle],
            [row[column] for row in middle],
            color=colour,
            linestyle=dash,
            label=words,
        )
    axes[0].set(xlabel="dropout rate (1)", ylabel="bound on the error (nats)")
    axes[1].set(xlabel="dropout rate (1)", ylabel=f"part of the bound, n = {_EXAMPLES[1]} (nats)")
    shared_legend(figure, axes)
    write_csv(out / "bound.csv", rows, ("examples", "dropout_rate", "bound", "empirical", "gap"))
    save(figure, out / "bound.png")
    return out / "bound.png"


def run_rows(run: Run) -> list[Row]:
    """One row per evaluated round: round, simulated time, test metric, and gap of the loss."""
    rows: list[Row] = []
    for record in run.rounds:
        scores: dict[str, Any] = record.get("eval") or {}
        if run.metric in scores:
            gap = (record.get("gap") or {}).get("loss", math.nan)
            rows.append(
                {
                    "run": run.name,
                    "round": record["round"],
                    "sim_time_s": record["sim_time_s"],
                    "metric": scores[run.metric],
                    "gap": gap,
                }
            )
    return rows


def draw_runs(out: Path, runs: Sequence[Run]) -> list[Path]:
    """Test metric and generalization gap against rounds and simulated time; nothing without a scored round."""
    rows = [row for run in runs for row in run_rows(run)]
    if not rows:
        return []
    write_csv(out / "runs.csv", rows, ("run", "round", "sim_time_s", "metric", "gap"))
    metrics = sorted({unit_of(runs, run.metric) for run in runs if run.metric})
    pictures = []
    for column, words in (
        ("metric", f"test {' / '.join(metrics)}"),
        ("gap", f"{unit_of(runs, 'loss')}, test minus training"),
    ):
        figure, axes = new_figure(2, height=3.6 + 0.17 * len(runs))  # room for the legend
        for axis, x, label in zip(axes, ("round", "sim_time_s"), ("round", "simulated time (s)"), strict=True):
            draw_lines(axis, rows, x, column, by="run")
            axis.set(xlabel=label, ylabel=words)
        axes[0].xaxis.get_major_locator().set_params(integer=True)
        shared_legend(figure, axes, place="outside upper left")
        save(figure, out / f"runs-{column}.png")
        pictures.append(out / f"runs-{column}.png")
    return pictures
