"""One look for every figure: a colour, a marker and a dash per method; none is told apart by colour alone.

The colours are those of Okabe and Ito (Color Universal Design, 2008). matplotlib is imported when the first figure is
drawn.
"""

import csv
import importlib
from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import inf, sqrt
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.atomic import written_whole

Row = dict[str, Any]

BLUE, VERMILION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, GREY, BLACK = "#E69F00", "#56B4E9", "#8A8A8A", "#000000"
# In the order in which they stand out from white and from black; Okabe and Ito's yellow and black do not.
PALETTE = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, GREY)
_MARKERS, _DASHES = ("o", "s", "D", "^", "P", "X", "*"), ("-", "--", "-.", ":")
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
_TEXT, _SMALL = 10, 8  # axes and titles, legends [pt]
_TURN = 45  # tick labels without room beside each other [degrees]


def pair(position: int) -> tuple[int, int]:
    """Colour and symbol of the ``position``-th curve, as positions in `PALETTE` and among symbols; 49 differ."""
    count = len(PALETTE)
    return position % count, (position + position // count) % count


def style(name: str, position: int = 0) -> dict[str, Any]:
    """Line style of a method, or of the ``position``-th curve of another kind."""
    colour, marker = pair(position)
    own = (PALETTE[colour], _MARKERS[marker], _DASHES[position % len(_DASHES)])
    look = dict(zip(("color", "marker", "linestyle"), STYLES.get(name, own), strict=True))
    return look | {"markersize": 4, "linewidth": 1.4, "label": plain(name)}


def plain(name: str) -> str:
    """A name as matplotlib shows it unchanged: dollars begin no formula, underscores hide nothing from the legend."""
    return (" " if name.startswith("_") else "") + name.replace("$", r"\$")


def new_figure(columns: int = 1, width: float = 4.6, height: float = 3.6, *, rows: int = 1) -> tuple[Any, Any]:
    """A figure without a display, with ``rows`` times ``columns`` panels; returns it and its axes, row by row."""
    module: Any = importlib.import_module("matplotlib.figure")
    figure = module.Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        for text in (axis.title, axis.xaxis.label, axis.yaxis.label):
            text.set_fontsize(_TEXT)
    return figure, axes


def new_panels(count: int, across: int, width: float, height: float, *, rows: int = 1) -> tuple[Any, list[Any]]:
    """A figure with ``rows`` panels below each other per thing, ``across`` things side by side; its axes, by thing."""
    columns = min(count, across)
    figure, axes = new_figure(columns, width, height, rows=rows * -(-count // columns))
    by_thing = axes.reshape(-1, rows, columns).transpose(0, 2, 1).reshape(-1, rows)  # (things and unused, rows)
    for axis in by_thing[count:].ravel():
        axis.set_visible(False)
    return figure, list(by_thing[:count].ravel())


def draw_lines(axis: Any, rows: Sequence[Row], x: str, y: str) -> None:
    """One line per method through its (x, y) points."""
    for position, name in enumerate(dict.fromkeys(str(row["method"]) for row in rows)):
        points = [row for row in rows if str(row["method"]) == name and np.isfinite(row.get(y, np.nan))]
        points.sort(key=lambda row: float(row[x]))
        if points:
            axis.plot([row[x] for row in points], [row[y] for row in points], **style(name, position))


def draw_single(path: Path, rows: Sequence[Row], x: str, y: str, **settings: Any) -> None:
    """Write a figure with one panel of `draw_lines`; ``settings`` are those of its axes."""
    figure, axes = new_figure(width=5.6)
    draw_lines(axes[0], rows, x, y)
    axes[0].set(**settings)
    shared_legend(figure, axes)
    save(figure, path)


def shared_legend(figure: Any, axes: Sequence[Any], *, place: str = "outside right upper", title: str = "") -> None:
    """One legend for all panels, outside them, so that it hides nothing; on the right unless names are long."""
    found: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    if found:
        longest = 0.6 * _SMALL * (max(map(len, found)) + 6)  # [pt]
        columns = 1 if "right" in place else max(1, min(len(found), int(figure.get_figwidth() * 72 / longest)))
        small = {"fontsize": _SMALL, "title_fontsize": _SMALL, "frameon": False}
        figure.legend(found.values(), found.keys(), loc=place, ncols=columns, title=plain(title) or None, **small)


def save(figure: Any, path: Path) -> None:
    """Write a PNG whole or not at all; the folder is made if missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _part_tick_labels(figure)
    with written_whole(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png", metadata={"Software": None})


def _part_tick_labels(figure: Any) -> None:
    """Turn the tick labels of a horizontal axis where they touch, and leave out those that have no room even then."""
    figure.draw_without_rendering()
    for axis in figure.axes:
        low, high = sorted(axis.get_xlim())
        labels = [t for t in axis.get_xticklabels(which="both") if t.get_text() and low <= t.get_position()[0] <= high]
        boxes = sorted(((t.get_window_extent(), t) for t in labels), key=lambda pair: pair[0].x0 + pair[0].x1)
        if all(left.x1 < right.x0 for (left, _), (right, _) in pairwise(boxes)):
            continue
        last = -inf
        for box, label in boxes:
            label.set(rotation=_TURN, ha="right", rotation_mode="anchor")
            middle, line = (box.x0 + box.x1) / 2, 1.3 * label.get_fontsize() * figure.dpi / 72
            label.set_visible(middle - last >= line * sqrt(2))
            last = middle if label.get_visible() else last


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Write rows with the given columns; what a row lacks stays empty."""
    with written_whole(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, columns, restval="", extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
