"""What all charts of the report share: layout, axes, and how runs and curves are told apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import ceil, floor, log10
from typing import Any

from fedlodrop.report.html import Chart, esc, significant
from fedlodrop.report.style import DASHES, GLYPHS, LIMIT, PALETTE, SYMBOLS
from optimizer.palette import pair

_FONT = 'system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans","Liberation Sans",sans-serif'
_CLEAR, _DARK = "rgba(0,0,0,0)", "#20242c"
_MARKED_POINTS = 40  # longer curves have no marker on every point, unless a lone point between holes would vanish
_MARKS, _SMALL = 10, 195  # of charts that compare several runs: marks on a curve, height [px]
_STROKES = {"solid": "", "dash": "9 5", "dot": "2 4", "dashdot": "9 4 2 4", "longdash": "15 5"}  # of SVG
_NAME_LENGTH = 30  # longer run names would push the curves out of a chart; the tables show them whole


def axis(title: str, **extra: Any) -> dict[str, Any]:
    """Return an axis; its title names the unit."""
    return {
        "title": {"text": title, "standoff": 10, "font": {"size": 13}},
        "automargin": True,
        "showline": True,
        "linewidth": 1,
        "linecolor": "#8a8f99",
        "ticks": "outside",
        "ticklen": 4,
        "tickcolor": "#8a8f99",
        "gridcolor": "#e4e7ec",
        "zeroline": False,
        "fixedrange": False,
        **extra,
    }


def layout(xaxis: dict[str, Any], yaxis: dict[str, Any], **extra: Any) -> dict[str, Any]:
    """Return the layout of a chart: transparent, legend above; the page's style sheet colours text and grid."""
    label = {"color": "#ffffff", "size": 12.5, "family": _FONT}
    above = {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"}
    return {
        "paper_bgcolor": _CLEAR,
        "plot_bgcolor": _CLEAR,
        "font": {"family": _FONT, "size": 12.5},
        "margin": {"l": 56, "r": 14, "t": 12, "b": 46},
        "xaxis": xaxis,
        "yaxis": yaxis,
        "hovermode": "closest",
        "hoverlabel": {"bgcolor": _DARK, "bordercolor": _DARK, "font": label, "align": "left", "namelength": -1},
        "modebar": {"bgcolor": _CLEAR, "color": "#8a8f99", "activecolor": "#0072B2"},
        "legend": {**above, "font": {"size": 12.5}},
        "showlegend": True,
        **extra,
    }


def decades(values: Sequence[float]) -> dict[str, Any]:
    """Return settings of a logarithmic axis over positive values, in whole decades: labels in between would collide."""
    low, high = (floor(log10(min(values)) - 0.1), ceil(log10(max(values)) + 0.1)) if values else (0, 1)
    return {"type": "log", "range": [low, high], "tick0": 0, "dtick": max(1, (high - low) // 6), "tickformat": "~g"}


def round_axis(last: int) -> dict[str, Any]:
    """Return the axis of rounds, with whole numbers only."""
    return axis("round", dtick=round_step(last), tickformat="d", rangemode="normal")


def round_step(last: int) -> int | None:
    """Distance of ticks on an axis of rounds; None lets plotly choose, which it does in whole numbers from here on."""
    return 1 if last <= 12 else None


def short_name(name: str) -> str:
    """Return a run's name for a legend, escaped: plotly reads some HTML in its texts.

    Beginning and end stay: jobs of a sweep begin alike and differ in their last characters.
    """
    half = _NAME_LENGTH // 2
    return esc(name if len(name) <= _NAME_LENGTH else f"{name[: half - 1]}…{name[-half:]}")


def line(
    x: Sequence[float | None], y: Sequence[float | None], name: str, look: tuple[int, int], **extra: Any
) -> dict[str, Any]:
    """Return a curve; None is a hole, ``name`` is escaped, ``look`` is which colour and symbol, and which dash."""
    (color, symbol), dash = pair(look[0]), look[1]
    few, holes = len(x) <= _MARKED_POINTS, any(value is None for value in y)
    return {
        "type": "scatter",
        "mode": "lines+markers" if few or holes else "lines",
        "name": name,
        "x": [significant(v, 7) for v in x],
        "y": [significant(v) for v in y],
        "line": {"color": PALETTE[color], "dash": DASHES[dash % len(DASHES)], "width": 2},
        "marker": {"color": PALETTE[color], "symbol": SYMBOLS[symbol], "size": 7 if few else 4},
        **extra,
    }


def compared(chart: Chart, owners: Sequence[int | None]) -> Chart:
    """Make a chart one of several small ones that compare runs; the page has one legend for all of them."""
    for trace in chart.data:
        if "lines" in trace["mode"]:
            # Some marks on every curve, as colours alone do not tell runs apart; all where a lone point would vanish.
            marks = {"size": 6, "maxdisplayed": 0 if None in trace["y"] else _MARKS}
            trace |= {
                "mode": "lines+markers",
                "line": trace["line"] | {"width": 1.5},
                "marker": trace["marker"] | marks,
            }
    small = chart.layout | {"showlegend": False, "font": chart.layout["font"] | {"size": 11.5}}
    return replace(chart, layout=small, height=_SMALL, owners=list(owners))


def run_key(position: int) -> str:
    """Return a sample of how a run looks, as HTML."""
    color, symbol = pair(position)
    return (
        f'<span class="key" style="color:{PALETTE[color]}"><svg width="30" height="12" aria-hidden="true">'
        '<line x1="0" x2="30" y1="6" y2="6" stroke="currentColor" stroke-width="2"/>'
        f'<text x="15" y="10.5" text-anchor="middle" font-size="13" fill="currentColor">{GLYPHS[symbol]}</text>'
        "</svg></span>"
    )


def dash_key(dash: int) -> str:
    """Return a sample of a dash, as HTML."""
    pattern = _STROKES[DASHES[dash % len(DASHES)]]
    return (
        '<span class="key"><svg width="38" height="8" aria-hidden="true"><line x1="0" x2="38" y1="4" y2="4" '
        f'stroke="currentColor" stroke-width="2" stroke-dasharray="{pattern}"/></svg></span>'
    )


def with_unit(measure: str, *, regression: bool) -> str:
    """Return a measure (``loss`` or a metric) with its unit."""
    if measure == "loss":
        return "loss (squared label units)" if regression else "loss (nats)"
    shares = ("accuracy", "worst_class", "f1", "teacher_forced_match")
    return f"{measure} (0 to 1)" if measure in shares else f"{measure} (1)"


def limit_line(y: float, text: str) -> dict[str, Any]:
    """Return layout entries of a dashed limit with its name at the left, above the line."""
    across = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "yref": "y", "y0": y, "y1": y}
    place = {"xref": "paper", "x": 0.01, "xanchor": "left", "yref": "y", "y": y, "yanchor": "bottom"}
    return {
        "shapes": [{**across, "line": {"color": LIMIT, "dash": "dash", "width": 2}}],
        "annotations": [{**place, "text": esc(text), "showarrow": False, "yshift": 6, "font": {"size": 12}}],
    }
