"""Curves: TensorBoard files by default, Weights & Biases offline, and a tracker that fails."""

from __future__ import annotations

import struct
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from conf.compose import compose_config
from server_app.tracking import scalars_of, tracking
from tests.support.runs import rounds, run


def _events(folder: Path) -> dict[str, dict[int, float]]:
    """Read TensorBoard's event files: length, checksum, record, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    found: dict[str, dict[int, float]] = {}
    for path in sorted(folder.glob("events.*")):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            event = Event.FromString(data[at + 12 : at + 12 + length])
            at += 12 + length + 4
            for value in event.summary.value:
                if value.WhichOneof("value") == "simple_value":
                    found.setdefault(value.tag, {})[event.step] = value.simple_value
    return found


def test_a_run_writes_its_curves_for_tensorboard(tmp_path: Path) -> None:
    assert run(tmp_path, "run.num_rounds=2") == 0
    curves, records = _events(tmp_path / "tensorboard"), rounds(tmp_path)
    assert curves["eval/accuracy"] == pytest.approx({r["round"]: r["eval"]["accuracy"] for r in records})
    assert curves["simulated/time_s"] == pytest.approx({r["round"]: r["sim_time_s"] for r in records})
    assert set(curves) == {key for r in records for key in scalars_of(r)}


def test_tracking_can_be_left_out(tmp_path: Path) -> None:
    assert run(tmp_path, "run.num_rounds=1", "tracking=none") == 0
    assert not (tmp_path / "tensorboard").exists()


def test_weights_and_biases_works_offline(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="pip install wandb")
    assert run(tmp_path, "run.num_rounds=1", "tracking=wandb") == 0
    files = list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 1 and b"eval/accuracy" in files[0].read_bytes()


def test_weights_and_biases_gets_no_longer_names_than_it_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    class Run:
        def log(self, scalars: object, step: int) -> None: ...
        def finish(self) -> None: ...

    def init(**options: Any) -> Run:
        given.update(options)
        return Run()

    module = types.SimpleNamespace(Settings=lambda **_: None, init=init, __spec__=object())
    monkeypatch.setitem(sys.modules, "wandb", module)
    folder = tmp_path / "a" / ("long" * 30) / "0042"
    said: list[str] = []
    config = compose_config(f"tracking=wandb run.name={'n' * 200}")
    with tracking(config, folder, 0, said.append):
        pass
    assert not said and len(given["group"]) == 128 == len(given["name"]) and given["group"].endswith("/0042")


def test_a_tracker_that_fails_does_not_cost_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("disk full")

    closed: list[object] = []
    monkeypatch.setattr("tensorboardX.SummaryWriter.add_scalar", full)
    monkeypatch.setattr("tensorboardX.SummaryWriter.close", lambda writer: closed.append(writer))
    said: list[str] = []
    record = {"round": 1, "devices": [], "failures": [], "sim_time_s": 0.0, "energy_j": 0.0}
    with tracking(compose_config("tracking=tensorboard"), tmp_path, 0, said.append) as take:
        take(record)
        take(record)
    assert len(said) == 1 and "disk full" in said[0] and len(closed) == 1
