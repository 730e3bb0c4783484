"""A report as PDF or PNG, printed by a browser that is installed."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from fedlodrop.report.data import ReportError
from optimizer.atomic import written_whole

NAMES = "chromium chromium-browser google-chrome google-chrome-stable chrome microsoft-edge msedge".split()
_PATIENCE_S = 180
_SIZE = "1180,1600"  # pixels of a picture


def find_browser() -> str:
    """Return a browser of Chromium's family on the PATH; ReportError if there is none."""
    for found in filter(None, map(shutil.which, NAMES)):
        return found
    other = "install one, or open the report in any browser and print it"
    raise ReportError(f"--pdf and --png: expected Chromium, Chrome or Edge on the PATH, found none; {other}")


def print_page(page: Path, target: Path) -> None:
    """Write a page as PDF, or the top of it as PNG, as the name of the target says; whole or not at all."""
    with tempfile.TemporaryDirectory() as profile:
        printed = Path(profile) / f"page{target.suffix}"
        kind = ["--no-pdf-header-footer", f"--print-to-pdf={printed}"]
        if target.suffix == ".png":
            kind = ["--hide-scrollbars", f"--window-size={_SIZE}", f"--screenshot={printed}"]
        root = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium's sandbox refuses root; the page is our own
        flags = ["--headless", "--disable-gpu", "--no-first-run", f"--user-data-dir={profile}", *root]
        command = [find_browser(), *flags, *kind, page.resolve().as_uri()]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_S, check=False)
        except subprocess.TimeoutExpired as error:
            raise ReportError(f"{command[0]} did not print {page} within {_PATIENCE_S} s") from error
        if done.returncode or not printed.exists():
            said = done.stderr.strip().splitlines()
            raise ReportError(f"{command[0]} could not print {page}: {said[-1] if said else done.returncode}")
        with written_whole(target) as temporary:
            shutil.copyfile(printed, temporary)
