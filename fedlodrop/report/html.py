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

    def payload(self) -> dict[str, Any]:
        """Return what the page's script needs."""
        return {name: getattr(self, name) for name in ("key", "data", "layout", "axes", "splits", "owners")}

    def html(self) -> str:
        """Return the place where the figure is drawn."""
        return (
            f'<figure class="chart" id="{self.key}-figure"><h3>{esc(self.title)}</h3>'
            f'<div class="plot" id="{self.key}" role="img" aria-label="{esc(self.label)}" '
            f'style="height:{self.height}px"></div>'
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
    """Return a table that scrolls by itself and can be reached with the keyboard; everything is escaped here.

    The first cell of each row is its heading; ``words`` are the columns that hold words rather than numbers.
    """
    worded = set(words)
    left = [" class=w" if k in worded else "" for k in range(len(head))]

    def line(cells: Sequence[Any], tags: Sequence[str]) -> str:
        texts = (esc(MISSING if cell is None else cell) for cell in cells)
        return "".join(
            f"<{tag}{css}>{text}</{tag.split()[0]}>" for tag, css, text in zip(tags, left, texts, strict=True)
        )

    tags = ["th scope=row", *["td"] * (len(head) - 1)]
    top = line(head, ["th scope=col"] * len(head))
    body = "".join(f"<tr>{line(row, tags)}</tr>" for row in rows)
    return (
        f'<div class="scroll {css}" tabindex="0" role="region" aria-label="{esc(caption)}"><table>'
        f"<caption>{esc(caption)}</caption><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def cut(count: int, most: int) -> str:
    """Return what the caption of a table says if it holds only the first rows."""
    return f"; the first {most} of {count}" if count > most else ""


def details(summary: str, body: str, *, css: str = "") -> str:
    """Return a part that is folded away until asked for, or printed (unless it is the part of one run)."""
    return f"<details{f' class={css}' if css else ''}><summary>{esc(summary)}</summary>{body}</details>"


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
