"""Small pieces of HTML: escaping, numbers with units, tables, and the places where charts are drawn."""

from __future__ import annotations

import base64
import gzip
import html
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

MISSING = "–"


@dataclass(frozen=True)
class Chart:
    """One figure in plotly's own JSON form, with the words around it.

    Parameters
    ----------
    key : str
        Identifier within the page; letters, digits and dashes.
    title, caption : str
        Heading and what to read from it (caption is HTML).
    label : str
        What a screen reader says in place of the drawing.
    data, layout
        Traces and layout.
    height : int
        In pixels.
    axes : dict
        Other horizontal axes: name -> {"title", "dtick", "x": one list per trace}.
    splits : list of str
        Group of every trace, for switching groups on and off.
    owners : list of int or None
        Run of every trace where several are compared, for switching runs on and off; None: belongs to all.
    """

    key: str
    title: str
    caption: str
    label: str
    data: list[dict[str, Any]]
    layout: dict[str, Any]
    height: int = 380
    axes: dict[str, Any] = field(default_factory=dict)
    splits: list[str] = field(default_factory=list)
    owners: list[int | None] = field(default_factory=list)

    def payload(self) -> dict[str, Any]:
        """Return what the page's script needs."""
        return {name: getattr(self, name) for name in ("key", "data", "layout", "axes", "splits", "owners")}

    def html(self) -> str:
        """Return the place where the figure is drawn."""
        return (
            f'<figure class="chart" id="{self.key}-figure"><h3>{esc(self.title)}</h3>'
            f'<div class="plot" id="{self.key}" role="img" aria-label="{esc(self.label)}" style="height:{self.height}px"></div>'
            f"<figcaption>{self.caption}</figcaption></figure>"
        )


def esc(value: Any) -> str:
    """Escape anything that comes from a file, for text and for attributes."""
    return html.escape(str(value), quote=True)


def number(value: float | None, digits: int = 3, unit: str = "") -> str:
    """Return a number with significant digits and its unit; a dash for nothing."""
    if value is None:
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


def percent(share: float | None, digits: int = 0) -> str:
    """Return a share as per cent."""
    return MISSING if share is None else f"{100 * share:.{digits}f} %"


def megabytes(count: float | None) -> str:
    """Return bytes as MB, or kB where they are few."""
    if count is None:
        return MISSING
    return f"{count / 1e6:.2f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"


def duration(seconds: float | None) -> str:
    """Return seconds as hours, minutes and seconds."""
    if seconds is None:
        return MISSING
    if seconds < 120:
        return number(seconds, 3, "s")
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours} h {rest // 60:02d} min" if hours else f"{rest // 60} min {rest % 60:02d} s"


def table(
    caption: str, head: Sequence[str], rows: Iterable[Sequence[Any]], *, words: Iterable[int] = (0,), css: str = ""
) -> str:
    """Return a table that scrolls by itself and can be reached with the keyboard.

    Parameters
    ----------
    caption : str
        Read out first.
    head : sequence of str
        Column names with units.
    rows : iterable
        Cells; the first of each row is its heading. Everything is escaped here.
    words : iterable of int
        Columns that hold words rather than numbers.
    css : str
        Further class names.
    """
    left = set(words)

    def cell(tag: str, column: int, value: Any, extra: str = "") -> str:
        return f"<{tag}{extra}{' class=w' if column in left else ''}>{esc(MISSING if value is None else value)}</{tag}>"

    top = "".join(cell("th", k, name, " scope=col") for k, name in enumerate(head))
    body = "".join(
        "<tr>"
        + "".join(cell("th", 0, v, " scope=row") if k == 0 else cell("td", k, v) for k, v in enumerate(row))
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll {css}" tabindex="0" role="region" aria-label="{esc(caption)}"><table><caption>{esc(caption)}'
        f"</caption><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def details(summary: str, body: str, *, css: str = "") -> str:
    """Return a part that is folded away until asked for; it is unfolded for printing, unless it is the part of one run."""
    return f"<details{f' class={css}' if css else ''}><summary>{esc(summary)}</summary>{body}</details>"


def section(key: str, title: str, body: str) -> str:
    """Return a part of the page with its heading."""
    return f'<section id="{key}" aria-labelledby="{key}-title"><h2 id="{key}-title">{esc(title)}</h2>{body}</section>'


def packed(text: str) -> str:
    """Compress text for a script element: base64 has no character that HTML could misread."""
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()


def packed_json(content: Any) -> str:
    """Compress JSON data."""
    return packed(json.dumps(content, separators=(",", ":"), allow_nan=False))


def significant(value: float | None, digits: int = 5) -> float | None:
    """Round to significant digits: charts need no more, and the page stays small."""
    return None if value is None else float(f"{value:.{digits}g}")


def thinned(count: int, most: int) -> list[int]:
    """Return at most about ``most`` evenly spaced indices below ``count``, always with the last one."""
    step = max(1, -(-count // most))
    kept = list(range(0, count, step))
    return kept if not count or kept[-1] == count - 1 else [*kept, count - 1]
