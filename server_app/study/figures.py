"""Figures of a study, as PNG files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from server_app.study.statistics import estimate

# figure name -> (x column, x label, y columns)
_CURVES = {
    "rounds": ("round", "round", ("test_metric", "gap_loss")),
    "time": ("sim_time_s", "simulated time, s", ("test_metric", "gap_loss")),
    "energy": ("energy_j", "energy, J", ("test_metric", "gap_loss")),
    "bytes": ("uplink_bytes", "uplink, bytes", ("test_metric", "test_loss")),
}
_LABELS = {"test_metric": "test score", "gap_loss": "loss gap, test − train", "test_loss": "test loss"}


def draw(rounds: pd.DataFrame, name: str, path: Path, title: str) -> None:
    """Draw the learning curves of all methods: one row per quantity, one column per setting, mean and range over seeds.

    Parameters
    ----------
    rounds : DataFrame
        From `server_app.study.tables.collect`.
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

    def fill(axes: Any) -> None:
        for column, setting in enumerate(settings):
            here = rounds[rounds["setting"] == setting]
            for row, y in enumerate(ys):
                for method, runs in here.groupby("method", sort=False):
                    by_round = runs.groupby("round")
                    middle, low, high = by_round[y].mean(), by_round[y].min(), by_round[y].max()
                    across = by_round[x].mean() if x != "round" else middle.index.to_series()
                    (line,) = axes[row][column].plot(across, middle, label=method, linewidth=1.4)
                    axes[row][column].fill_between(across, low, high, color=line.get_color(), alpha=0.12, linewidth=0)
                axes[row][column].set_xlabel(label)
                axes[row][column].set_ylabel(_LABELS[y])
            axes[0][column].set_title(setting, fontsize=9)
        axes[0][0].legend(fontsize=7)

    _figure(path, title, len(ys), len(settings), fill)


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

    def fill(axes: Any) -> None:
        for column, task in enumerate(tasks):
            here = table[table["task"] == task]
            axis = axes[0][column]
            found = {rate: estimate(runs["measured"]) for rate, runs in here.groupby("dropout_rate")}
            rates = list(found)
            means = [found[rate].mean for rate in rates]
            axis.plot(here["dropout_rate"], here["measured"], ".", color="0.6", label="measured, each seed")
            axis.plot(rates, means, "o-", color="tab:blue", label="measured, mean")
            predicted = here.groupby("dropout_rate")["predicted"].mean()
            axis.plot(predicted.index, predicted, "s--", color="tab:red", label="calibrated bound")
            axis.set_title(task, fontsize=9)
            axis.set_xlabel("dropout rate")
            axis.set_ylabel("test loss")
        axes[0][0].legend(fontsize=7)

    _figure(path, title, 1, len(tasks), fill)


def _figure(path: Path, title: str, rows: int, columns: int, fill: Callable[[Any], None]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(rows, columns, figsize=(3.6 * columns, 2.7 * rows + 0.4), squeeze=False)
    try:
        fill(axes)
        figure.suptitle(title, fontsize=10)
        figure.tight_layout()
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        figure.savefig(temporary, dpi=110, format="png", metadata={"Software": None})
        temporary.replace(path)
    finally:
        pyplot.close(figure)
