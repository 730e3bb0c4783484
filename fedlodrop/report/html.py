"""Small pieces of the page: numbers with units, tables, and places of charts; the HTML itself is in parts.html."""

import base64
import gzip
import html
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import jinja2

MISSING = "–"
_FILES = jinja2.FileSystemLoader(Path(__file__).parent)
TEMPLATES = jinja2.Environment(loader=_FILES, autoescape=True, undefined=jinja2.StrictUndefined)
TEMPLATES.globals["missing"] = MISSING


@dataclass(frozen=True)
class Chart:
    """One figure in plotly's own JSON form, with the words around it."""

    key: str  # identifier within the page: letters, digits and dashes
    title: str
    caption: str  # HTML: what to read from it
    label: str  # what a screen reader says in place of the drawing
    data: list[dict[str, Any]]  # traces
    layout: dict[str, Any]
    height: int = 380  # pixels
    axes: dict[str, Any] = field(default_factory=dict)  # name -> {"title", "dtick", "x": one list per trace}
    splits: list[str] = field(default_factory=list)  # group of every trace, to switch groups on and off
    owners: list[int | None] = field(default_factory=list)  # run of every trace where several are compared; None: all
    wide: bool = False  # across the page


def part(name: str, *arguments: Any) -> str:
    """Return what a macro of parts.html makes; it escapes all but what it takes as HTML."""
    return f"{getattr(TEMPLATES.get_template('parts.html').module, name)(*arguments)}"


def esc(value: Any) -> str:
    """Escape anything that comes from a file, for text and for attributes."""
    return html.escape(str(value), quote=True)


def number(value: float | None, digits: int = 3, unit: str = "") -> str:
    """Return a number with significant digits and its unit; a dash for nothing."""
    if value is None or math.isnan(value):
        return MISSING
    size = abs(value)
    if 1 <= size < 1e6:
        text = f"{value:.{max(0, digits - len(str(int(size))))}f}"  # keeps trailing zeros, so that columns line up
    else:
        text = f"{value:.{digits}g}"
    return f"{text} {unit}".rstrip()


def score(value: float | None) -> str:
    """Return a metric or a loss the way all tables show it."""
    return MISSING if value is None else f"{value:.3f}"


def duration(seconds: float | None) -> str:
    """Return seconds, from two minutes on as hours, minutes and seconds."""
    if seconds is None or seconds < 120:
        return number(seconds, 3, "s")
    return f"{timedelta(seconds=round(seconds))} h"


def table(
    caption: str, head: Sequence[str], rows: Iterable[Sequence[Any]], *, words: Iterable[int] = (0,), css: str = ""
) -> str:
    """Return a table that scrolls by itself and can be reached with the keyboard; everything is escaped here.

    The first cell of each row is its heading; ``words`` are the columns that hold words rather than numbers.
    """
    return part("table", caption, head, rows, set(words), css)


def cut(count: int, most: int) -> str:
    """Return what the caption of a table says if it holds only the first rows."""
    return f"; the first {most} of {count}" if count > most else ""


def packed(content: Any) -> str:
    """Compress text, or what is written as JSON, for a script element: base64 has no character to misread in HTML."""
    text = content if isinstance(content, str) else json.dumps(content, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()


def significant(value: float | None, digits: int = 5) -> float | None:
    """Round to significant digits: charts need no more, and the page stays small."""
    return None if value is None else float(f"{value:.{digits}g}")


def thinned(count: int, most: int) -> list[int]:
    """Return at most about ``most`` evenly spaced indices below ``count``, always with the last one."""
    return sorted({*range(0, count, max(1, -(-count // most))), *range(count)[-1:]})
