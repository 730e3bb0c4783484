"""What a process keeps between calls belongs to no device: interleaved ones answer as if each had a process of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from flwr.app import RecordDict

from adapter import RoundInstruction, gather, mask_seed, pack, sample_mask
from client_app import worker
from client_app.memory import DeviceMemory
from client_app.restore import Parcel
from client_app.training import train_round
from conf.compose import join_overrides
from conf.plain import downlink_dtype
from tests.support.adapters import random_state
from tests.support.runs import FAST

# Settings that share a process in this test: other layers, ranks, number types, layers of PEFT's own, and a base that is kept.
SETTINGS = {
    "default": (),
    "upper layer, kept states": ("lora.layers=1", "run.num_rounds=20"),
    "rank 2, int8": ("lora.r=2", "wire.dtype=int8"),
    "PEFT's layers": ("training.fused_lora=false",),
    "another seed": ("run.seed=5",),
}


@pytest.fixture(autouse=True)
def _fresh_process() -> Iterator[None]:
    _forget()
    yield
    _forget()


def _forget() -> None:
    """Empty every cache of the process, as a new one would start."""
    for cache in (worker._shared_model, worker._prepared, worker._partitions):
        cache.cache_clear()
    worker._caches.clear()


def _answer(settings: str, device: int, server_round: int, folder: Path, dropout_rate: float = 0.5) -> bytes:
    """One device's answer to a random adapter."""
    overrides = join_overrides([*FAST, f"training.prefix_cache_dir='{folder}'", *SETTINGS[settings]])
    opened = worker.open_device({"overrides": overrides}, {"partition-id": device, "num-partitions": 4})
    shared = worker.shared_model(opened)
    seed = mask_seed(0, server_round, device)
    mask = sample_mask(shared.spec, seed, dropout_rate)
    state = random_state(shared.spec, 100 * server_round + device)
    for values in (state.lora_A, state.lora_B, state.head):
        for name in values:
            values[name] = 0.05 * values[name]
    flat = pack(shared.spec, gather(shared.spec, state, mask), mask, downlink_dtype(opened.config))
    instruction = RoundInstruction(server_round, dropout_rate, seed, 1e5, 0.1, 4.0, 1e9, "AB", b"12345678")
    memory = DeviceMemory(RecordDict())
    changes, report = train_round(shared, opened.train, Parcel(flat.tobytes()), instruction, opened.settings, device, memory)
    assert report.train_loss is not None and np.isfinite(report.train_loss)
    return changes.tobytes()


def test_interleaved_devices_with_different_settings_answer_as_if_alone(tmp_path: Path) -> None:
    calls = [(name, device, server_round) for server_round in (1, 2) for device in (0, 3) for name in SETTINGS]
    alone = {}
    for call in calls:
        _forget()
        alone[call] = _answer(*call, tmp_path / "alone")
    assert len(set(alone.values())) > len(calls) // 2, "the answers are meant to differ, or nothing could leak"
    _forget()
    shuffled = [calls[i] for i in np.random.default_rng(1).permutation(len(calls))]
    for call in shuffled + shuffled[::-1]:
        assert _answer(*call, tmp_path / "shared") == alone[call], call


def test_no_more_than_two_models_are_kept(tmp_path: Path) -> None:
    for name in SETTINGS:
        _answer(name, 0, 1, tmp_path)
    assert worker._shared_model.cache_info().currsize == 2
    assert len(worker._caches) <= 2


def test_a_device_that_failed_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from client_app import training

    expected = _answer("default", 1, 1, tmp_path)
    _forget()
    honest = training.task_loss

    def broken(*arguments: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(training, "task_loss", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        _answer("default", 0, 1, tmp_path, dropout_rate=0.7)
    monkeypatch.setattr(training, "task_loss", honest)
    assert _answer("default", 1, 1, tmp_path) == expected


def test_states_are_kept_only_where_they_will_be_found_again(tmp_path: Path) -> None:
    def prefix(*overrides: str) -> object:
        text = join_overrides([*FAST, f"training.prefix_cache_dir='{tmp_path}'", "lora.layers=1", *overrides])
        return worker.shared_model(worker.open_device({"overrides": text}, {"partition-id": 0, "num-partitions": 4})).prefix

    # 24 examples per device, two steps of 8 per round: a round uses two thirds of them.
    assert prefix("run.num_rounds=2") is None and prefix("run.num_rounds=3") is not None
    assert prefix("run.num_rounds=3", "strategy.devices_per_round=1") is None
    assert prefix("run.num_rounds=3", "training.prefix_cache=off") is None
    assert prefix("run.num_rounds=3", "lora.layers=all") is None


def test_a_new_process_finds_the_data_that_an_earlier_one_tokenised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = join_overrides([*FAST, f"training.prefix_cache_dir='{tmp_path}'"])
    arguments = {"overrides": overrides}, {"partition-id": 1, "num-partitions": 4}
    first = worker.open_device(*arguments)

    def load_task(**_: object) -> None:
        raise AssertionError("the task was loaded again")

    monkeypatch.setattr(worker, "load_task", load_task)
    _forget()
    again = worker.open_device(*arguments)
    assert again.train.lengths.tolist() == first.train.lengths.tolist() and again.task.metrics == first.task.metrics
    batches = first.train.batch([0, 3, 1]), again.train.batch([0, 3, 1])
    assert batches[0].inputs["input_ids"].equal(batches[1].inputs["input_ids"]) and batches[0].labels.equal(batches[1].labels)

    _forget()
    with pytest.raises(AssertionError, match="loaded again"):
        worker.open_device({"overrides": f"{overrides} training.prefix_cache_disk_mib=0"}, arguments[1])


def test_the_home_folder_can_be_named_as_for_the_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    overrides = join_overrides([*FAST, "training.prefix_cache_dir='~/kept'"])
    worker.open_device({"overrides": overrides}, {"partition-id": 0, "num-partitions": 4})
    assert [*(tmp_path / "kept").glob("task-*")] and not (tmp_path / "~").exists()
