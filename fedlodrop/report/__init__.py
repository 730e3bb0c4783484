"""The report of one run, or of several side by side: one HTML file that needs nothing else."""

from collections.abc import Callable
from pathlib import Path

from fedlodrop.report.data import ReportError
from fedlodrop.report.page import build_report, write_report

__all__ = ["ReportError", "build_report", "draw_report", "write_report"]


def draw_report(folder: Path, say: Callable[[str], None]) -> None:
    """Draw the report of a run that has ended; one that cannot be drawn is said and does not make the run a failure."""
    try:
        write_report([folder], folder / "report.html")
    except Exception as error:  # the results are complete
        say(f"the report could not be drawn ({type(error).__name__}: {error}); try: fedlodrop report {folder}")
