"""The report of a run that goes on: what is served, to whom, and what a browser makes of it; reports as PDF and PNG."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from starlette.testclient import TestClient

from fedlodrop.report import browser, live
from fedlodrop.report.data import ReportError
from tests.support.browser import CHROMIUM, Page
from tests.support.runs import run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("live") / "run"
    assert run(folder, "run.num_rounds=2", "network.num_devices=2") == 0
    return folder


@pytest.fixture
def going_on(finished: Path, tmp_path: Path) -> Path:
    """Return the folder of a run whose second round has not ended."""
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    (folder / "summary.json").unlink()
    lines = (folder / "rounds.jsonl").read_text().splitlines(keepends=True)
    (folder / "rounds.jsonl").write_text(lines[0])
    return folder


def test_the_page_follows_the_run(going_on: Path, finished: Path) -> None:
    client = TestClient(live.live_app(going_on, "secret"), base_url="http://127.0.0.1")
    page = client.get("/secret/")
    (version,) = re.findall(r'data-version="([^"]+)"', page.text)
    assert page.status_code == 200 and "still going on" in page.text and "connect-src 'self'" in page.text
    assert client.get("/secret/version").text == version and page.headers["cache-control"] == "no-store"
    for name in ("rounds.jsonl", "summary.json"):
        shutil.copy(finished / name, going_on / name)
    assert client.get("/secret/version").text != version and "still going on" not in client.get("/secret/").text


def test_nothing_else_is_served(going_on: Path) -> None:
    client = TestClient(live.live_app(going_on, "secret"), base_url="http://127.0.0.1")
    wrong = ("/", "/secre/", "/secret/../config.yaml", "/secret/config.yaml", "/version", "//secret/version/x")
    assert [client.get(path).status_code for path in wrong] == [404] * len(wrong)
    assert [client.request(verb, "/secret/").status_code for verb in ("POST", "PUT", "DELETE")] == [405] * 3
    stranger = TestClient(
        live.live_app(going_on, "secret"), base_url="http://evil.example"
    )  # a name bound to 127.0.0.1
    assert stranger.get("/secret/").status_code == 400


def test_a_run_that_has_written_nothing_is_waited_for(tmp_path: Path) -> None:
    answer = TestClient(live.live_app(tmp_path, "t"), base_url="http://127.0.0.1").get("/t/")
    assert answer.status_code == 200 and answer.headers["refresh"] == "2" and "not the folder of a run" in answer.text


def test_the_command_serves_until_it_is_interrupted(going_on: Path) -> None:
    command = [str(Path(sys.executable).parent / "fedlodrop"), "watch", str(going_on)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            (address,) = re.findall(r"http://127\.0\.0\.1:\d+/[\w-]{20,}/", process.stdout.readline())
            assert httpx.get(f"{address}version", timeout=60).status_code == 200
        finally:
            process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 0 and said == ""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_browser_loads_it_anew_when_a_round_ends(going_on: Path, finished: Path) -> None:
    command = [str(Path(sys.executable).parent / "fedlodrop"), "watch", str(going_on)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            (address,) = re.findall(r"http://\S+/", process.stdout.readline())
            with Page(address, width=390) as page:
                page.wait("document.documentElement.dataset.ready === 'yes'")
                assert page.ask("document.querySelector('header').innerText.includes('still going on')")
                assert page.ask("document.documentElement.scrollWidth") <= 390
                page.press("Tab")
                assert page.ask("document.activeElement.className") == "skip"
                page.press("Enter", "\r")
                page.wait("location.hash === '#main'")
                page.ask("document.querySelector('details:not([open])').open = true")
                for name in ("rounds.jsonl", "summary.json"):
                    shutil.copy(finished / name, going_on / name)
                page.wait("!document.querySelector('header').innerText.includes('still going on')")
                page.wait("document.documentElement.dataset.ready === 'yes'")
                assert page.ask("document.querySelectorAll('.main-svg').length") > 0 and page.complaints == []
        finally:
            process.send_signal(signal.SIGINT)


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_report_as_pdf_and_png(finished: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from fedlodrop.cli import cli

    done = CliRunner().invoke(cli, ["report", str(finished), "--out", str(tmp_path / "r.html"), "--pdf", "--png"])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "r.pdf").read_bytes()[:5] == b"%PDF-" and (tmp_path / "r.png").read_bytes()[1:4] == b"PNG"
    assert len(list(tmp_path.iterdir())) == 3


def test_without_a_browser_it_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ReportError, match="expected Chromium, Chrome or Edge on the PATH, found none"):
        browser.find_browser()
