"""A real browser without a window, for the report: what it complains about, what a page says, and pictures.

``python -m tests.support.browser REPORT.html PICTURE.png`` draws the picture of the documentation.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from html import unescape
from pathlib import Path
from typing import Any

import httpx
from websockets.sync.client import connect

from fedlodrop.report.browser import NAMES

CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
_SCHEMES = {"dark": 0, "light": 1}  # Blink's numbers of preferred colour schemes
_SIZE = (1180, 1230)


_PATIENT = "--virtual-time-budget=20000"


def _browse(page: Path, scheme: str, *flags: str) -> tuple[str, list[str]]:
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
            page.resolve().as_uri(),
        ]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=900, check=True)
    return answer.stdout, [text for text in answer.stderr.splitlines() if "CONSOLE" in text or "Refused" in text]


def title_and_complaints(page: Path, scheme: str = "light") -> tuple[str, list[str]]:
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


class Page:
    """A page in a browser that a test drives by the DevTools protocol; ``complaints``: what the console said."""

    def __init__(self, address: str, width: int, height: int = 900) -> None:
        self.complaints: list[str] = []
        self._address, self._size, self._number = address, (width, height), 0

    def __enter__(self) -> Page:
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-port=0"]
        command = [str(CHROMIUM), *flags, f"--user-data-dir={self._profile.name}", "about:blank"]
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self._process.stderr is not None
        port = next(found[1] for line in self._process.stderr if (found := re.search(r"ws://127.0.0.1:(\d+)/", line)))
        (target,) = (t for t in httpx.get(f"http://127.0.0.1:{port}/json/list").json() if t["type"] == "page")
        self._socket = connect(target["webSocketDebuggerUrl"], max_size=None)
        for part in ("Runtime", "Log", "Page"):
            self.call(f"{part}.enable")
        width, height = self._size
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=True)
        self.call("Page.navigate", url=self._address)
        return self

    def __exit__(self, *error: object) -> None:
        self._socket.close()
        self._process.terminate()
        self._process.wait(30)
        self._profile.cleanup()

    def call(self, method: str, **arguments: Any) -> Any:
        """Send a command and return its result; what the console says meanwhile is kept."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": arguments}))
        while True:
            told = json.loads(self._socket.recv(timeout=180))
            if told.get("id") == self._number:
                return told["result"]
            level = told["params"].get("entry", {}).get("level") or told["params"].get("type")
            if told["method"] == "Runtime.exceptionThrown" or level in ("error", "warning"):
                self.complaints.append(json.dumps(told["params"]))

    def ask(self, expression: str) -> Any:
        """Return the value of an expression in the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        return found["result"].get("value")

    def wait(self, expression: str, seconds: float = 120) -> None:
        """Wait until an expression is true in the page."""
        deadline = time.monotonic() + seconds
        while not self.ask(expression):
            assert time.monotonic() < deadline, f"{expression} did not become true; {self.complaints}"
            time.sleep(0.2)

    def press(self, key: str, text: str = "") -> None:
        """Press and release a key: Tab, Enter (text: a carriage return)."""
        code = {"Tab": 9, "Enter": 13}[key]
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, text=text)


if __name__ == "__main__":
    sys.exit("\n".join(screenshot(Path(sys.argv[1]), Path(sys.argv[2]))) or 0)
