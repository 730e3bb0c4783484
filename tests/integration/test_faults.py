"""Faults of real federations, in process: who answers late, twice, wrongly, leaves or comes; a full disk; measured times."""

from __future__ import annotations

import errno
import importlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import Error, Message

from server_app import checkpoint, results
from server_app.engines.in_process import LocalGrid
from strategy.flower_internals import set_metadata
from tests.support.runs import rounds, run, without_wall_times


def _kinds(record: dict[str, Any]) -> list[tuple[str | None, str]]:
    return [(failure["device"], failure["kind"]) for failure in record["failures"]]


def _tamper(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    """Let ``change(round, device, reply)`` replace the list of replies to a training message."""
    original = LocalGrid.pull_messages

    def pull(self: LocalGrid, message_ids: Iterable[str]) -> Iterator[Message]:
        for reply in original(self, message_ids):
            node = reply.metadata.src_node_id
            device = next((k for k, known in enumerate(sorted(self.get_node_ids())) if known == node), -1)
            if reply.metadata.message_type == "train":
                yield from change(int(reply.metadata.group_id or 0), device, reply)
            else:
                yield reply

    monkeypatch.setattr(LocalGrid, "pull_messages", pull)


def test_silence_double_answers_and_answers_for_another_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    late: list[Message] = []

    def change(server_round: int, device: int, reply: Message) -> list[Message]:
        if server_round == 1 and device == 0:
            late.append(reply)  # the straggler's answer comes in the next round
            return []
        if server_round == 2 and device == 1:
            return [reply, *late]
        if server_round == 2 and device == 2:
            return [reply, reply]
        if server_round == 3 and device == 3:
            reply.content["report"]["server-round"] = 2
        return [reply]

    _tamper(monkeypatch, change)
    assert run(tmp_path, "run.round_timeout_s=2") == 0
    first, second, third = rounds(tmp_path)
    assert _kinds(first) == [("device-0", "no_answer")] and first["devices"][0]["uplink_bytes"] == 0
    assert _kinds(second) == [("device-2", "duplicate"), (None, "stray")]
    assert _kinds(third) == [("device-3", "round")]


def test_a_leaver_leaves_its_place_and_comes_back_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked = []
    original = LocalGrid.get_node_ids

    def some(self: LocalGrid) -> list[int]:
        nodes = sorted(original(self))
        looked.append(1)
        return nodes[:-1] if len(looked) == 3 else nodes  # at the start, before round 1, before round 2, ...

    monkeypatch.setattr(LocalGrid, "get_node_ids", some)
    assert run(tmp_path) == 0
    first, second, third = rounds(tmp_path)
    assert [len(record["devices"]) for record in (first, second, third)] == [4, 3, 4]
    assert _kinds(second) == [("device-3", "left")] and third["joined"] == ["device-3"] and not third["failures"]


def test_when_everybody_leaves_the_run_waits_and_then_ends_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = []
    original = LocalGrid.get_node_ids
    monkeypatch.setattr(
        LocalGrid, "get_node_ids", lambda self: looked.append(1) or (original(self) if len(looked) < 3 else [])
    )
    assert run(tmp_path, "run.node_timeout_s=0.3") == 2
    assert "every device has left" in json.loads((tmp_path / "failure.json").read_text())["message"]
    assert len(rounds(tmp_path)) == 1
    monkeypatch.undo()
    assert run(tmp_path, f"run.resume='{tmp_path}'") == 0 and len(rounds(tmp_path)) == 3


def test_a_device_process_that_dies_costs_its_answer_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def change(server_round: int, device: int, reply: Message) -> list[Message]:
        if server_round == 2 and device == 1:  # what the SuperLink says about a ClientApp killed with -9
            error = Message(Error(8, "ClientApp stopped responding."), reply_to=reply)
            set_metadata(error, reply_to_message_id=reply.metadata.reply_to_message_id, src_node_id=1)
            return [error]
        return [reply]

    _tamper(monkeypatch, change)
    assert run(tmp_path) == 0
    assert [_kinds(record) for record in rounds(tmp_path)] == [[], [("device-1", "process_died")], []]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    assert run(folder) == 0
    return folder


def _full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("what", ["checkpoint", "round", "half a round"])
def test_a_full_disk_leaves_nothing_half_written(
    what: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    with monkeypatch.context() as patch:
        if what == "checkpoint":
            save = checkpoint.save
            patch.setattr(
                checkpoint, "save", lambda tensors: seen.append(1) or (save(tensors) if len(seen) <= 3 else _full())
            )
        elif what == "round":
            sync = os.fsync
            patch.setattr(
                results.os,
                "fsync",
                lambda handle: seen.append(1) or (_full() if _is(handle, "rounds.jsonl", 2) else sync(handle)),
            )
        else:
            opener = Path.open

            def open_short(self: Path, *arguments: Any, **options: Any) -> Any:
                handle = opener(self, *arguments, **options)
                return _Short(handle, seen) if self.name == "rounds.jsonl" and "ab" in arguments else handle

            patch.setattr(Path, "open", open_short)
        assert run(tmp_path) == 2
    message = json.loads((tmp_path / "failure.json").read_text())["message"]
    assert "No space left on device" in message and "fedlodrop resume" in message and "\n" not in message
    assert not list(tmp_path.glob(".*tmp"))
    assert all(json.loads(line) for line in (tmp_path / "rounds.jsonl").read_text().splitlines())
    assert run(tmp_path, f"run.resume='{tmp_path}'") == 0
    assert [without_wall_times(r) for r in rounds(tmp_path)] == [without_wall_times(r) for r in rounds(whole)]


def _is(handle: int, name: str, line: int) -> bool:
    path = Path(os.readlink(f"/proc/self/fd/{handle}"))
    return path.name == name and len(path.read_text().splitlines()) >= line


class _Short:
    """A file on a disk that takes half of the second line."""

    def __init__(self, handle: Any, seen: list[int]) -> None:
        self.handle, self.seen = handle, seen

    def __enter__(self) -> _Short:
        return self

    def __exit__(self, *_: object) -> None:
        self.handle.close()

    def fileno(self) -> int:
        return int(self.handle.fileno())

    def write(self, data: bytes) -> int:
        self.seen.append(1)
        return int(self.handle.write(data if len(self.seen) == 1 else data[: len(data) // 2]))


def test_resume_auto_begins_and_then_goes_on(whole: Path, tmp_path: Path) -> None:
    assert run(tmp_path, "run.resume=auto", "run.num_rounds=1") == 0
    assert run(tmp_path, "run.resume=auto") == 0
    assert [without_wall_times(r) for r in rounds(tmp_path)] == [without_wall_times(r) for r in rounds(whole)]


def test_measured_times_enter_the_plan_and_are_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training, radio = importlib.import_module("client_app.training"), importlib.import_module("client_app.radio")
    original = training.train_round

    def timed(*arguments: Any) -> Any:  # every device is three times as slow as planned, whatever this machine does
        flat, report = original(*arguments)
        return flat, replace(report, train_s=0.003)

    monkeypatch.setattr(training, "train_round", timed)
    monkeypatch.setattr(radio, "time", SimpleNamespace(sleep=lambda _: None))  # the radio's alone, not everybody's
    options = ("profile.smoothing=0.5", "profile.source=node", "radio=realtime")
    assert run(tmp_path / "a", *options) == 0
    records = rounds(tmp_path / "a")
    planned = [[device["planned_train_s"] for device in record["devices"]] for record in records]
    for k in range(4):
        gap = [abs(0.003 - row[k]) for row in planned]
        assert gap[2] < gap[1] < gap[0]
        row = records[0]["devices"][k]
        assert row["upload_s"] == pytest.approx(
            row["planned_upload_s"], rel=0.05
        )  # the header is planned a little larger
    assert run(tmp_path / "b", *options, "run.num_rounds=2") == 0
    assert run(tmp_path / "b", *options, f"run.resume='{tmp_path / 'b'}'") == 0
    assert [without_wall_times(r) for r in rounds(tmp_path / "b")] == [without_wall_times(r) for r in records]
