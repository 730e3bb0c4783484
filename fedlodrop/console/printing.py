"""Lines and tables as plans and explanations print them."""

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table


def printable(text: str) -> str:
    """Return text from devices and files with all that could steer a terminal, or hide in it, as visible escapes."""
    return "".join(c if c.isprintable() or c == "\xa0" else c.encode("unicode_escape").decode() for c in text)


def printable_lines(text: str) -> str:
    """Return text with its line breaks, and all else that could steer a terminal as visible escapes."""
    return "\n".join(map(printable, text.split("\n")))


def print_lines(console: Console, lines: Iterable[str]) -> None:
    """Print lines as they are: no markup, no highlighting, no hard line breaks."""
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def make_table(title: str, words: Sequence[str], figures: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """Return a table with columns of ``words``, which fold where room is short, then of ``figures``, which never do."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in words:
        table.add_column(name, overflow="fold")
    for name in figures:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table
