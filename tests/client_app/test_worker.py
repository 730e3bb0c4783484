"""What a process keeps between calls belongs to no device: interleaved ones answer as if each had a process of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from flwr.app import RecordDict

from adapter import RoundInstruction, gather, mask_seed, pack, sample_mask
from client_app import worker
from client_app.memory import DeviceMemory, Parcel
from client_app.training import train_round
from conf.compose import join_overrides
from conf.convert import downlink_dtype, partition_settings
from tasks.models.tokenizer import load_tokenizer
from tasks.settings import ModelSettings
from tests.support.adapters import random_state
from tests.support.runs import FAST

# Settings that share a process in this test: other layers, ranks, number types, layers of PEFT's own, and a base that
# is kept.
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
    for cache in (worker._shared_model, worker._task, worker._partitions, worker._share):
        cache.cache_clear()


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
    changes, report = train_round(shared, opened, Parcel(flat.tobytes()), instruction, memory)
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


def test_a_device_that_failed_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from client_app import training

    expected = _answer("default", 1, 1, tmp_path)
    _forget()
    honest = training.batch_loss

    def broken(*arguments: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(training, "batch_loss", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        _answer("default", 0, 1, tmp_path, dropout_rate=0.7)
    monkeypatch.setattr(training, "batch_loss", honest)
    assert _answer("default", 1, 1, tmp_path) == expected


def test_states_are_kept_only_where_they_will_be_found_again(tmp_path: Path) -> None:
    def prefix(*overrides: str) -> object:
        text = join_overrides([*FAST, f"training.prefix_cache_dir='{tmp_path}'", "lora.layers=1", *overrides])
        return worker.shared_model(
            worker.open_device({"overrides": text}, {"partition-id": 0, "num-partitions": 4})
        ).prefix

    # 24 examples per device, two steps of 8 per round: a round uses two thirds of them.
    assert prefix("run.num_rounds=1") is None and prefix("run.num_rounds=2") is not None
    assert prefix("run.num_rounds=3", "strategy.devices_per_round=1") is None
    assert prefix("run.num_rounds=3", "training.prefix_cache=off") is None
    assert prefix("run.num_rounds=3", "lora.layers=all") is None


@pytest.mark.parametrize("more", [(), ("run.client_evaluation=0.25",), ("task=instruct",)])
def test_a_process_tokenises_the_examples_of_its_devices_and_no_others(
    monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]
) -> None:
    seen: list[str] = []
    original = worker.tokenise
    monkeypatch.setattr(worker, "tokenise", lambda t, examples: seen.extend(examples.texts) or original(t, examples))
    overrides = {"overrides": join_overrides([*FAST, *more])}
    devices = [worker.open_device(overrides, {"partition-id": k, "num-partitions": 4}) for k in (1, 2, 1)]
    assert len(seen) == 48  # two devices of four share 96 texts; the second visit finds the first one's
    whole = original(load_tokenizer(ModelSettings(name="tiny")), devices[0].task.train)
    index = worker.partition_examples(devices[0].task.train, **partition_settings(devices[0].config))[1]
    for device in (devices[0], devices[2]):
        held = {tuple(ids) for ids in device.holdout.input_ids}
        assert len(device.train) + len(device.holdout) == 24 and (len(held) > 0) == (
            "run.client_evaluation=0.25" in more
        )
        expected = [tuple(whole.input_ids[i]) for i in index if tuple(whole.input_ids[i]) not in held]
        assert [tuple(ids) for ids in device.train.input_ids] == expected


def test_by_default_a_node_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("HOME", "XDG_CACHE_HOME", "TMPDIR"):
        monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.chdir(tmp_path)
    device = worker.open_device({"overrides": join_overrides([*FAST])}, {"partition-id": 0, "num-partitions": 4})
    worker.shared_model(device)
    assert not list(tmp_path.iterdir())
