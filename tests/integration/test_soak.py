"""Fifty rounds in which every fault strikes at random: no record is lost, nothing half-written, memory stays flat."""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from flwr.app import Error, Message

from server_app import checkpoint
from server_app.engines.in_process import LocalGrid
from strategy.flower_internals import set_metadata
from tests.support.runs import rounds, run

ROUNDS, RATE = 50, 0.1


def _strike(rng: np.random.Generator, reply: Message, late: list[Message]) -> list[Message]:
    """Return what the server sees of one answer; each of eight faults strikes one answer in ten."""
    faults = ["raise", "dies", "silent", "twice", "other round", "garbled", "nan", "huge"]
    fault = rng.choice([*faults, "none"], p=[RATE] * len(faults) + [1 - RATE * len(faults)])
    if fault in ("raise", "dies"):
        error = Message(Error(2 if fault == "raise" else 8, f"ValueError: {fault}"), reply_to=reply)
        set_metadata(error, reply_to_message_id=reply.metadata.reply_to_message_id)
        return [error]
    if fault == "silent":
        late.append(reply)
        return []
    if fault == "twice":
        return [reply, reply]
    if fault == "other round":
        reply.content["report"]["server-round"] = 10**6
    if fault in ("garbled", "nan", "huge"):
        array = reply.content["buffer"]["buffer"]
        flat = np.frombuffer(array.data, "<f4").copy()
        flat[0] = {"garbled": 0.0, "nan": np.nan, "huge": 1e30}[str(fault)]
        array.data = flat.tobytes()[: -1 if fault == "garbled" else None]
    return [reply]


@pytest.mark.slow
def test_fifty_rounds_with_every_fault_at_ten_percent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng, late, memory, looks = np.random.default_rng(0), [], [], Counter()
    pull, nodes, save = LocalGrid.pull_messages, LocalGrid.get_node_ids, checkpoint.save

    def faulty_pull(self: LocalGrid, names: Iterable[str]) -> Iterator[Message]:
        asked = list(names)
        for reply in pull(self, asked):
            yield from _strike(rng, reply, late) if reply.metadata.message_type == "train" else [reply]
        # Late means after the round: an answer that is still waited for would not be late.
        if late and late[0].metadata.reply_to_message_id not in asked and rng.random() < 0.5:
            yield late.pop(0)

    def faulty_nodes(self: LocalGrid) -> list[int]:
        looks["looked"] += 1
        memory.append(psutil.Process().memory_info().rss / 2**20)
        everyone = sorted(nodes(self))
        return [node for node in everyone if looks["looked"] < 3 or rng.random() > RATE] or everyone

    def faulty_save(tensors: object) -> bytes:
        if rng.random() < RATE / 3:  # three files per checkpoint
            looks["disk full"] += 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return save(tensors)  # type: ignore[arg-type]

    monkeypatch.setattr(LocalGrid, "pull_messages", faulty_pull)
    monkeypatch.setattr(LocalGrid, "get_node_ids", faulty_nodes)
    monkeypatch.setattr(checkpoint, "save", faulty_save)
    options = (
        f"run.num_rounds={ROUNDS}",
        "run.round_timeout_s=1",
        "run.resume=auto",
        "run.eval_every=10",
        "tracking=none",
    )
    attempts = 1
    while run(tmp_path, *options):
        attempts += 1
        assert attempts < 40
    records = rounds(tmp_path)
    assert [record["round"] for record in records] == list(range(1, ROUNDS + 1))
    kinds = Counter(failure["kind"] for record in records for failure in record["failures"])
    print(attempts, dict(kinds), f"{memory[len(memory) // 3]:.0f} -> {memory[-1]:.0f} MiB")
    assert {"client_error", "process_died", "no_answer", "duplicate", "round", "payload", "left", "stray"} <= set(kinds)
    assert looks["disk full"] and attempts == 1 + looks["disk full"]
    assert all(
        sum(device["uplink_bytes"] > 0 for device in record["devices"]) >= 1 or record["failures"] for record in records
    )
    assert memory[-1] < memory[len(memory) // 3] + 40  # after the first third: libraries and caches are loaded
    assert not list(tmp_path.glob(".*tmp"))
