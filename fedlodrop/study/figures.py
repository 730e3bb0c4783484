"""Figures of a study, as PNG files."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from fedlodrop.study.statistics import estimate
from optimizer.plots import BLUE, GREY, VERMILION, new_figure, plain, save, shared_legend, style

# figure name -> (x column, x label, y columns)
_CURVES = {
    "rounds": ("round", "round", ("test_metric", "gap_loss")),
    "time": ("sim_time_s", "simulated time (s)", ("test_metric", "gap_loss")),
    "energy": ("energy_j", "simulated energy (J)", ("test_metric", "gap_loss")),
    "bytes": ("uplink_bytes", "uploaded (bytes)", ("test_metric", "test_loss")),
}
_LABELS = {"test_metric": "test score", "gap_loss": "loss gap, test − train", "test_loss": "test loss"}


def draw(rounds: pd.DataFrame, name: str, path: Path, title: str) -> None:
    """Draw the learning curves of all methods: one row per quantity, one column per setting, mean and range over seeds.

    Parameters
    ----------
    rounds : DataFrame
        From `fedlodrop.study.tables.collect`.
    name : str
        ``rounds``, ``time``, ``energy`` or ``bytes``: the horizontal axis.
    path : Path
        PNG file, written whole or not at all.
    title : str
        Above the figure.

    Raises
    ------
    ValueError
        If there is no such figure.
    """
    if name not in _CURVES:
        raise ValueError(f"figure: expected one of {', '.join(_CURVES)}, found {name!r}")
    x, label, ys = _CURVES[name]
    settings = list(dict.fromkeys(rounds["setting"]))
    figure, axes = _panels(title, len(ys), settings)
    for panel, (y, setting) in zip(axes, product(ys, settings), strict=True):
        here = rounds[rounds["setting"] == setting]
        for position, (method, runs) in enumerate(here.groupby("method", sort=False)):
            by_round, look = runs.groupby("round"), style("", position) | {"marker": "", "label": plain(str(method))}
            middle, low, high = by_round[y].mean(), by_round[y].min(), by_round[y].max()
            across = by_round[x].mean() if x != "round" else middle.index.to_series()
            panel.plot(across, middle, **look)
            panel.fill_between(across, low, high, color=look["color"], alpha=0.12, linewidth=0)
        panel.set(xlabel=label, ylabel=_LABELS[y])
    shared_legend(figure, axes)
    save(figure, path)


def draw_calibration(table: pd.DataFrame, path: Path, title: str) -> None:
    """Draw measured against predicted error over the dropout rate: one panel per task.

    Parameters
    ----------
    table : DataFrame
        Columns task, dropout_rate, seed, measured, predicted.
    path, title
        As for `draw`.
    """
    tasks = list(dict.fromkeys(table["task"]))
    figure, axes = _panels(title, 1, tasks)
    for panel, task in zip(axes, tasks, strict=True):
        here = table[table["task"] == task]
        found = {rate: estimate(runs["measured"]) for rate, runs in here.groupby("dropout_rate")}
        panel.plot(here["dropout_rate"], here["measured"], ".", color=GREY, label="measured, each seed")
        panel.plot(list(found), [value.mean for value in found.values()], "o-", color=BLUE, label="measured, mean")
        predicted = here.groupby("dropout_rate")["predicted"].mean()
        panel.plot(predicted.index, predicted, "s--", color=VERMILION, label="calibrated bound")
        panel.set(xlabel="dropout rate (1)", ylabel="test loss")
    shared_legend(figure, axes)
    save(figure, path)


def _panels(title: str, rows: int, columns: Sequence[str]) -> tuple[Any, Any]:
    """A figure with one column per setting, named above."""
    figure, axes = new_figure(len(columns), rows=rows, width=4.0, height=3.0)
    figure.suptitle(plain(title), fontsize=11)
    for panel, name in zip(axes, columns, strict=False):
        panel.set_title(plain(name))
    return figure, axes
