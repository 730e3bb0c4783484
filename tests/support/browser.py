"""A real browser without a window, for the report: what it complains about, what a page says, and pictures.

``python -m tests.support.browser REPORT.html PICTURE.png`` draws the picture of the documentation.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from html import unescape
from pathlib import Path

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_SCHEMES = {"dark": 0, "light": 1}  # Blink's numbers of preferred colour schemes
_SIZE = (1180, 1230)


_PATIENT = "--virtual-time-budget=20000"


def _browse(page: Path | str, scheme: str, *flags: str) -> tuple[str, list[str]]:
    """Open a page; return what is printed and the complaints of the console."""
    with tempfile.TemporaryDirectory() as profile:
        command = [
            str(CHROMIUM),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--enable-logging=stderr",
            "--hide-scrollbars",
            f"--blink-settings=preferredColorScheme={_SCHEMES[scheme]}",
            f"--user-data-dir={profile}",
            *flags,
            page if isinstance(page, str) else page.resolve().as_uri(),
        ]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True)
    return answer.stdout, [text for text in answer.stderr.splitlines() if "CONSOLE" in text or "Refused" in text]


def title_and_complaints(page: Path | str, scheme: str = "light") -> tuple[str, list[str]]:
    """Return the title that the page's scripts left behind, and what the console said."""
    document, complaints = _browse(page, scheme, _PATIENT, "--dump-dom", f"--window-size={_SIZE[0]},{_SIZE[1]}")
    title = re.search(r"<title>(.*?)</title>", document, flags=re.S)
    return unescape(title[1]) if title else "", complaints


def loaded(page: Path) -> str:
    """Return the document as its load event finds it: what is printed or photographed without waiting any longer."""
    return _browse(page, "light", "--dump-dom", f"--window-size={_SIZE[0]},{_SIZE[1]}")[0]


def screenshot(page: Path, picture: Path, scheme: str = "light", size: tuple[int, int] = _SIZE) -> list[str]:
    """Draw the top of a page as PNG and return what the console said."""
    return _browse(page, scheme, _PATIENT, f"--screenshot={picture.resolve()}", f"--window-size={size[0]},{size[1]}")[1]


if __name__ == "__main__":
    sys.exit("\n".join(screenshot(Path(sys.argv[1]), Path(sys.argv[2]))) or 0)
