"""The server is killed with -9 at every phase of a round; the continued run equals the uninterrupted one bit for bit."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message

from server_app import checkpoint
from server_app.engines.in_process import LocalGrid
from server_app.results import ResultsFolder
from strategy import LoraStrategy
from tests.support.runs import rounds, run, without_wall_times

# One thread: the child is forked, and OpenMP's threads do not survive that.
OPTIONS = (
    "run.eval_threads=1",
    "partition=dirichlet",
    "network.total_bandwidth_hz=2e4",
    "allocator=psca",
    "tracking=none",
)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _while_devices_train() -> None:
    original, seen = LocalGrid.pull_messages, []

    def pull(self: LocalGrid, names: Iterable[str]) -> Iterator[Message]:
        for reply in original(self, names):
            if reply.metadata.message_type == "train":
                seen.append(1)
                if len(seen) == 6:  # four answers in round 1, two in round 2
                    _die()
            yield reply

    LocalGrid.pull_messages = pull  # type: ignore[method-assign]


def _in_round_2(cls: type, name: str, *, after: bool) -> Callable[[], None]:
    def arm() -> None:
        original, calls = getattr(cls, name), []

        def call(self: Any, *arguments: Any) -> Any:
            calls.append(1)
            if len(calls) == 2 and not after:
                _die()
            value = original(self, *arguments)
            if len(calls) == 2:
                _die()
            return value

        setattr(cls, name, call)

    return arm


def _half_a_line() -> None:
    original = ResultsFolder.append_round

    def append(self: ResultsFolder, record: dict[str, Any]) -> None:
        if record["round"] == 2:
            with (self.folder / "rounds.jsonl").open("a") as handle:
                handle.write('{"round": 2, "wall_s": 0.')
            _die()
        original(self, record)

    ResultsFolder.append_round = append  # type: ignore[method-assign]


def _half_a_checkpoint() -> None:
    original, calls = checkpoint.save, []

    def save(tensors: Any) -> bytes:
        calls.append(1)
        if (len(calls) - 1) // 3 == 1 and len(calls) % 3 == 2:  # three files per round; the second one of round 2
            _die()
        return original(tensors)

    checkpoint.save = save


def _between_the_renames() -> None:
    original, calls = Path.replace, []

    def replace(self: Path, target: Path) -> Path:
        if self.name.startswith(".checkpoint"):
            calls.append(1)
            if len(calls) == 2:
                _die()
        return original(self, target)

    Path.replace = replace  # type: ignore[method-assign, assignment]


MOMENTS: dict[str, Callable[[], None]] = {
    "messages sent": _in_round_2(LoraStrategy, "configure_train", after=True),
    "half the answers are in": _while_devices_train,
    "answers are in": _in_round_2(LoraStrategy, "aggregate_train", after=True),
    "record half written": _half_a_line,
    "record written": _in_round_2(ResultsFolder, "append_round", after=True),
    "checkpoint half written": _half_a_checkpoint,
    "between the renames": _between_the_renames,
}


def _run_and_die(folder: Path, arm: Callable[[], None]) -> None:
    """Run in a child process that kills itself, as `kill -9` would: no handler, no flush, no cleaning up."""
    child = os.fork()
    if child == 0:
        try:
            arm()
            run(folder, *OPTIONS)
        finally:
            os._exit(7)  # not reached when the moment comes
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, f"the child was not killed: {status}"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    assert run(folder, *OPTIONS) == 0
    return folder


@pytest.mark.parametrize("moment", MOMENTS)
def test_the_continued_run_is_the_uninterrupted_one(moment: str, whole: Path, tmp_path: Path) -> None:
    _run_and_die(tmp_path, MOMENTS[moment])
    assert len(rounds(tmp_path) if moment != "record half written" else [1]) in (1, 2)
    assert run(tmp_path, *OPTIONS, f"run.resume='{tmp_path}'") == 0
    assert [without_wall_times(r) for r in rounds(tmp_path)] == [without_wall_times(r) for r in rounds(whole)]
    for name in ("adapter/adapter_model.safetensors", "checkpoint/adapter.safetensors"):
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes(), name
    assert not list(tmp_path.glob(".*tmp"))
