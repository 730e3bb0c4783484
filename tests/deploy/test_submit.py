"""The submitter: what it tries again, what it does not, and what the operator reads."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from tests.support.flower import ROOT

GOOD = "run.dir=first network.num_devices=3"
Patch, Capture = pytest.MonkeyPatch, pytest.CaptureFixture[str]
Answer = dict[str, Any] | None


@pytest.fixture
def submit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("submit", ROOT / "deploy" / "submit.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _ended(status: str, details: str = "") -> Answer:
    return {"success": True, "runs": [{"status": status, "status-details": details}]}


FORGOTTEN = {"success": False, "error-message": "Using SuperLink: deploy\n\n[code: 16] Run ID not found."}


def _main(
    submit: ModuleType, monkeypatch: pytest.MonkeyPatch, looks: list[Answer], *more: str
) -> tuple[int, list[str]]:
    """Call the command line with scripted answers of `flwr ls`; return the exit code and the subcommands that were called."""
    called: list[str] = []
    answers: Iterator[Answer] = iter(looks)

    def flwr(command: str, *_: str) -> Answer:
        called.append(command)
        return {"success": True, "run-id": str(len(called))} if command == "run" else next(answers)

    monkeypatch.setattr(submit, "flwr", flwr)
    monkeypatch.setattr(submit, "last_lines", lambda *_: "its last lines")
    monkeypatch.setattr("sys.argv", ["submit.py", "--every", "0", *(more or (GOOD,))])
    return submit.main(), called


def test_bad_overrides_are_refused_before_anything_is_submitted(
    submit: ModuleType, monkeypatch: Patch, capsys: Capture
) -> None:
    assert _main(submit, monkeypatch, [], "run.dir=first trainin.lr=1") == (2, [])
    assert "did you mean 'training.lr'" in capsys.readouterr().err


def test_what_ends_the_same_way_again_is_not_tried_again_and_keeps_the_exit_code_of_the_command(
    submit: ModuleType, monkeypatch: Patch, capsys: Capture
) -> None:
    from server_app.app import ENDED, EXIT_DIVERGED

    assert {beginning: code for code, beginning in ENDED.items()} == submit.ENDED
    for code, beginning in ENDED.items():
        details = f"ServerApp failed with exception: {beginning} run.dir must lie below /results"
        assert _main(submit, monkeypatch, [_ended("finished:failed", details)]) == (code, ["run", "ls"])
        said = capsys.readouterr().err
        assert "run.dir must lie below /results" in said and ("training.lr" in said) == (code == EXIT_DIVERGED)


def test_a_run_that_lacked_devices_is_tried_again(submit: ModuleType, monkeypatch: Patch, capsys: Capture) -> None:
    details = "ServerApp failed with exception: every device has left"
    looks = [_ended("finished:failed", details), _ended("running"), _ended("finished:completed")]
    assert _main(submit, monkeypatch, looks) == (0, ["run", "ls", "run", "ls", "ls"])
    assert "every device has left" in capsys.readouterr().err


def test_a_silent_superlink_is_waited_for_and_one_that_lost_its_state_is_asked_anew(
    submit: ModuleType, monkeypatch: Patch, capsys: Capture
) -> None:
    looks = [None, FORGOTTEN, _ended("finished:completed")]
    assert _main(submit, monkeypatch, looks) == (0, ["run", "ls", "ls", "run", "ls"])
    assert "no longer knows this run" in capsys.readouterr().err


def test_a_superlink_that_stays_silent_is_said_once(submit: ModuleType, monkeypatch: Patch, capsys: Capture) -> None:
    monkeypatch.setattr(submit, "SILENT_S", 0.0)
    assert _main(submit, monkeypatch, [None, None, _ended("running"), _ended("finished:completed")])[0] == 0
    assert capsys.readouterr().err.count("has not answered") == 1


def test_a_run_that_nobody_executes_is_said_once(submit: ModuleType, monkeypatch: Patch, capsys: Capture) -> None:
    monkeypatch.setattr(
        submit, "PENDING_S", 0.0
    )  # seen after a SuperLink was suspended for 90 s: its executor had ended
    assert _main(submit, monkeypatch, [_ended("pending"), _ended("pending"), _ended("finished:completed")])[0] == 0
    assert capsys.readouterr().err.count("restart the SuperLink") == 1
