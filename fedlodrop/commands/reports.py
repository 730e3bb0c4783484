"""Looking at results: report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedlodrop.commands.console import run_folder, say, working


def report(
    folders: Annotated[list[Path], typer.Argument(help="Folders of one or several runs")],
    out: Annotated[Path | None, typer.Option(help="Where to write it; default: report.html of the first run")] = None,
) -> None:
    """Draw report.html of a run, or of several runs side by side."""
    from server_app.folders import writable_file

    found = [run_folder(folder) for folder in folders]
    target = writable_file(out or folders[0] / "report.html", "--out")
    with working("drawing the report"):
        from fedlodrop.report import write_report

        write_report(found, target)
    say(f"report: {target.resolve()}")
