"""The score before training is made while the first devices train, and is the score that it always was."""

from __future__ import annotations

import importlib
import json
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message

from adapter import AdapterState
from conf.compose import join_overrides
from server_app.engines.in_process import LocalGrid
from server_app.evaluate import Evaluator
from server_app.session import open_results, run_session
from tests.support.runs import FAST, rounds, run, without_wall_times


class _Remote:
    """Devices elsewhere, to the server: a local grid whose devices keep their memory to themselves."""

    def __init__(self, overrides: str, before_answer: Callable[[], None]) -> None:
        app = importlib.import_module("client_app.app").app
        self._grid, self._before = LocalGrid(app, 4, {"overrides": overrides}), before_answer
        self._training: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        if name in ("save_devices", "restore_devices"):
            raise AttributeError(name)
        return getattr(self._grid, name)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        sent = list(messages)
        names = list(self._grid.push_messages(sent))
        if sent[0].metadata.message_type == "train":
            self._training |= set(names)
        return names

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        names = list(message_ids)
        if self._training & set(names):
            self._before()
        return self._grid.pull_messages(names)


def _remote_run(folder: Path, before_answer: Callable[[], None] = lambda: None) -> dict[str, Any]:
    overrides = join_overrides([*FAST, f"run.dir='{folder}'"])
    grid: Any = _Remote(overrides, before_answer)
    return run_session(grid, overrides, open_results(overrides), lambda _: None)


def test_devices_train_while_the_server_scores_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scoring, answering = threading.Event(), threading.Event()
    score, together = Evaluator.__call__, []

    def slow_score(self: Evaluator, state: AdapterState) -> dict[str, dict[str, float]]:
        scoring.set()
        together.append(answering.wait(20))  # only somebody who trains meanwhile lets it go on
        return score(self, state)

    def before_answer() -> None:
        assert scoring.wait(20)
        answering.set()

    monkeypatch.setattr(Evaluator, "__call__", slow_score)
    summary = _remote_run(tmp_path / "remote", before_answer)
    assert together[0] and len(together) == 1 + 3

    monkeypatch.undo()
    assert run(tmp_path / "local") == 0
    local = json.loads((tmp_path / "local" / "summary.json").read_text())
    assert summary["initial"] == local["initial"]
    assert [*map(without_wall_times, rounds(tmp_path / "remote"))] == [
        *map(without_wall_times, rounds(tmp_path / "local"))
    ]


def test_a_score_that_fails_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Evaluator, state: AdapterState) -> dict[str, dict[str, float]]:
        raise MemoryError("no room for the test set")

    monkeypatch.setattr(Evaluator, "__call__", broken)
    with pytest.raises(MemoryError, match="no room"):
        _remote_run(tmp_path / "remote")
    assert not (tmp_path / "remote" / "rounds.jsonl").exists() or not rounds(tmp_path / "remote")
