"""A finished run, and commands called in this process."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fedlodrop.cli import main
from tests.support import runs

Call = Callable[..., tuple[int, str]]


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished run of one round; nobody writes to it."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert runs.run(folder, "run.num_rounds=1") == 0
    return folder


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Return a function that runs a command in an empty folder: exit code and standard error."""

    def command(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["fedlodrop", *map(str, arguments)])
        monkeypatch.setattr(signal, "signal", lambda *_: None)  # this process keeps its own
        monkeypatch.chdir(tmp_path)
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), capsys.readouterr().err

    return command
