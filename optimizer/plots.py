"""One look for every figure: colours that colour-blind people can tell apart, a marker and a dash per method, units on axes.

Colours are those of Okabe and Ito (Color Universal Design, 2008); no method is told apart by colour alone. matplotlib is
imported when the first figure is drawn.
"""

from __future__ import annotations

import csv
import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Row = dict[str, Any]

BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, GREY, BLACK = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8A8A8A", "#000000",
)  # fmt: skip
# method -> colour, marker, dash; the order is that of legends.
STYLES: dict[str, tuple[str, str, str]] = {
    "exact": (BLUE, "o", "-"),
    "bnb": (VERMILION, "s", "--"),
    "psca": (GREEN, "^", "-."),
    "scip": (BLACK, "x", ":"),
    "common": (ORANGE, "D", "-"),
    "equal": (VERMILION, "s", "-"),
    "proportional": (GREEN, "^", "-"),
    "fixed": (PURPLE, "v", "-"),
    "none": (GREY, "X", "--"),
    "random": (SKY, "P", ":"),
}
_OTHERS = (
    (BLUE, "o", "-"),
    (VERMILION, "s", "--"),
    (GREEN, "^", "-."),
    (PURPLE, "v", ":"),
    (ORANGE, "D", "-"),
    (SKY, "P", "--"),
)


def style(name: str, position: int = 0) -> dict[str, Any]:
    """Line style of a method, or of the ``position``-th curve of another kind."""
    colour, marker, dash = STYLES.get(name, _OTHERS[position % len(_OTHERS)])
    return {"color": colour, "marker": marker, "linestyle": dash, "markersize": 4, "linewidth": 1.4, "label": name}


def new_figure(columns: int = 1, width: float = 4.6, height: float = 3.6) -> tuple[Any, Any]:
    """A figure without a display, with ``columns`` panels side by side; returns the figure and its axes."""
    module: Any = importlib.import_module("matplotlib.figure")
    figure = module.Figure(figsize=(width * columns, height), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def draw_lines(axis: Any, rows: Sequence[Row], x: str, y: str, *, by: str = "method", spread: str | None = None) -> None:
    """One line per value of ``by`` through its (x, y) points; ``spread`` names the column of the shaded half-width."""
    for position, name in enumerate(dict.fromkeys(str(row[by]) for row in rows)):
        points = [row for row in rows if str(row[by]) == name and np.isfinite(row.get(y, np.nan))]
        points.sort(key=lambda row: float(row[x]))
        if not points:
            continue
        where, height = [row[x] for row in points], np.array([row[y] for row in points], dtype=float)
        look = style(name, position)
        axis.plot(where, height, **look)
        if spread is not None:
            half = np.array([row.get(spread, 0.0) for row in points], dtype=float)
            axis.fill_between(where, height - half, height + half, color=look["color"], alpha=0.15, linewidth=0)


def shared_legend(figure: Any, axes: Sequence[Any], *, place: str = "outside right upper") -> None:
    """One legend for all panels, outside them, so that it hides nothing; on the right unless names are long."""
    found: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    figure.legend(found.values(), found.keys(), loc=place, fontsize=8, frameon=False)


def save(figure: Any, path: Path) -> None:
    """Write a PNG whole or not at all."""
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, dpi=150, format="png")
    temporary.replace(path)


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Write rows with the given columns; what a row lacks stays empty."""
    temporary = path.with_name(f".{path.name}")
    with temporary.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, columns, restval="", extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    temporary.replace(path)
