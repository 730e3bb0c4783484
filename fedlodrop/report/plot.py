"""What all charts of the report share: axes, how runs and curves are told apart; charts.json has look and words."""

import json
from collections.abc import Sequence
from dataclasses import replace
from math import ceil, floor, log10
from pathlib import Path
from typing import Any

from fedlodrop.report.html import Chart, esc, significant
from optimizer.plots import PALETTE, PURPLE, VERMILION, pair

SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star")
GLYPHS = "●■◆▲✚✖★"  # the same shapes as characters, for the legend of runs
# Dashes of curves, as plotly names them and as SVG draws them.
STROKES = {"solid": "", "dash": "9 5", "dot": "2 4", "dashdot": "9 4 2 4", "longdash": "15 5"}
_DASHES = tuple(STROKES)
SAT_OUT, FAILED, LIMIT = VERMILION, PURPLE, VERMILION
_FORM = json.loads((Path(__file__).parent / "charts.json").read_text(encoding="utf-8"))
WORDS: dict[str, tuple[str, str, str]] = _FORM["words"]  # key of a chart -> title, caption, name of the vertical axis
_MARKED_POINTS = 40  # longer curves have no marker on every point, unless a lone point between holes would vanish
_MARKS, _SMALL = 10, 195  # of charts that compare several runs: marks on a curve, height [px]


def axis(title: str, **extra: Any) -> dict[str, Any]:
    """Return an axis; its title names the unit."""
    return {"title": {"text": title}, **extra}


def layout(xaxis: dict[str, Any], yaxis: dict[str, Any], *, showlegend: bool = True) -> dict[str, Any]:
    """Return the layout of a chart; the page's style sheet colours text and grid."""
    return {"template": _FORM["look"], "xaxis": xaxis, "yaxis": yaxis, "showlegend": showlegend}


def decades(values: Sequence[float]) -> dict[str, Any]:
    """Return settings of a logarithmic axis over positive values, in whole decades: labels in between would collide."""
    low, high = (floor(log10(min(values)) - 0.1), ceil(log10(max(values)) + 0.1)) if values else (0, 1)
    return {"type": "log", "range": [low, high], "tick0": 0, "dtick": max(1, (high - low) // 6), "tickformat": "~g"}


def round_axis(last: int) -> dict[str, Any]:
    """Return the axis of rounds; where there are many, plotly chooses the ticks, in whole numbers."""
    return axis("round", dtick=1 if last <= 12 else None, tickformat="d")


def line(x: Sequence[float | None], y: Sequence[float | None], name: str, look: tuple[int, int]) -> dict[str, Any]:
    """Return a curve; None is a hole, ``name`` is escaped, ``look`` is which colour and symbol, and which dash."""
    (color, symbol), dash = pair(look[0]), look[1]
    few, holes = len(x) <= _MARKED_POINTS, any(value is None for value in y)
    return {
        "type": "scatter",
        "mode": "lines+markers" if few or holes else "lines",
        "name": name,
        "x": [significant(v, 7) for v in x],
        "y": [significant(v) for v in y],
        "line": {"color": PALETTE[color], "dash": _DASHES[dash % len(_DASHES)], "width": 2},
        "marker": {"color": PALETTE[color], "symbol": SYMBOLS[symbol], "size": 7 if few else 4},
    }


def compared(chart: Chart, owners: Sequence[int | None]) -> Chart:
    """Make a chart one of several small ones that compare runs; the page has one legend for all of them."""
    for trace in chart.data:
        if "lines" in trace["mode"]:
            # Some marks on every curve, as colours alone do not tell runs apart; all where a lone point would vanish.
            marks = {"size": 6, "maxdisplayed": 0 if None in trace["y"] else _MARKS}
            own = {"line": trace["line"] | {"width": 1.5}, "marker": trace["marker"] | marks}
            trace |= {"mode": "lines+markers", **own}
    small = chart.layout | {"showlegend": False, "font": {"size": 11.5}}
    return replace(chart, layout=small, height=_SMALL, owners=list(owners))


def with_unit(measure: str, *, regression: bool) -> str:
    """Return a measure (``loss`` or a metric) with its unit."""
    if measure == "loss":
        return "loss (squared label units)" if regression else "loss (nats)"
    shares = ("accuracy", "worst_class", "f1", "teacher_forced_match")
    return f"{measure} (0 to 1)" if measure in shares else f"{measure} (1)"


def limit_line(y: float, text: str, *, logarithmic: bool = False) -> dict[str, Any]:
    """Return layout entries of a dashed limit with its name at the left, above the line."""
    # plotly: exponents for annotations, values for shapes
    return {"shapes": [{"y0": y, "y1": y}], "annotations": [{"y": log10(y) if logarithmic else y, "text": esc(text)}]}
