"""The report of one run, or of several side by side: one HTML file that needs nothing else."""

from server_app.report.data import ReportError
from server_app.report.page import build_report, write_report

__all__ = ["ReportError", "build_report", "write_report"]
