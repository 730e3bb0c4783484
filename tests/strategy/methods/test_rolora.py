"""FFA-LoRA and RoLoRA: what is frozen does not move by a bit, and lora_B must come first."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapter import AdapterState
from server_app import rounds as round_loop
from strategy.methods.rolora import RoLora
from tests.support.runs import rounds, run

WIDE = ("network.total_bandwidth_hz=1e7", "lora.r=2", "run.eval_every=9", "tracking=none")


@pytest.fixture
def states(monkeypatch: pytest.MonkeyPatch) -> list[AdapterState]:
    """The global adapter before the first and after every round."""
    seen: list[AdapterState] = []
    original = round_loop._train

    def watch(run: Any, state: AdapterState, *rest: Any) -> Any:
        if not seen:
            seen.append(state.copy())
        new, record = original(run, state, *rest)
        seen.append(new.copy())
        return new, record

    monkeypatch.setattr(round_loop, "_train", watch)
    return seen


def _moved(before: AdapterState, after: AdapterState, part: str) -> bool:
    pairs = [(getattr(before, part)[name], value) for name, value in getattr(after, part).items()]
    same = all(np.array_equal(old, new) for old, new in pairs)
    assert same or all(not np.array_equal(old, new) for old, new in pairs), "modules move together"
    return not same


def test_ffa_lora_never_moves_lora_A(tmp_path: Path, states: list[AdapterState]) -> None:
    assert run(tmp_path, *WIDE, "strategy=ffa_lora") == 0
    for before, after in zip(states[:-1], states[1:], strict=True):
        assert not _moved(before, after, "lora_A") and _moved(before, after, "lora_B")


DROPPING = ("strategy=fedlodrop", "strategy.factors=alternate", "allocator=fixed", "allocator.dropout_rate=0.4")


@pytest.mark.parametrize("method", [("strategy=rolora",), DROPPING], ids=["rolora", "with dropout"])
def test_rolora_moves_one_factor_at_a_time_lora_B_first(
    tmp_path: Path, states: list[AdapterState], method: Any
) -> None:
    assert run(tmp_path, *WIDE, *method, "run.num_rounds=4") == 0
    pairs = list(zip(states[:-1], states[1:], strict=True))
    assert [_moved(before, after, "lora_B") for before, after in pairs] == [True, False, True, False]
    assert [_moved(before, after, "lora_A") for before, after in pairs] == [False, True, False, True]


def test_lora_A_first_learns_nothing(
    tmp_path: Path, states: list[AdapterState], monkeypatch: pytest.MonkeyPatch
) -> None:
    # With B = 0 the gradient of A is zero: a round that starts with lora_A is lost. It would cost the same bytes.
    monkeypatch.setattr(RoLora, "active_factors", lambda self, t: ("A",) if t % 2 else ("B",))
    assert run(tmp_path, *WIDE, "strategy=rolora", "run.num_rounds=1") == 0
    assert not _moved(states[0], states[1], "lora_A") and not _moved(states[0], states[1], "lora_B")


def test_only_the_active_factor_is_given_to_the_optimizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = importlib.import_module("client_app.training")
    original, shapes = training._torch_optimizer, []

    def watch(groups: list[dict[str, Any]], settings: Any) -> Any:
        shapes.append({tuple(p.shape) for p in groups[0]["params"]})
        return original(groups, settings)

    monkeypatch.setattr(training, "_torch_optimizer", watch)
    assert run(tmp_path, *WIDE, "strategy=rolora", "run.num_rounds=2", "training.weight_decay=0.1") == 0
    assert shapes == [{(32, 2)}] * 4 + [{(2, 32)}] * 4


def test_a_device_that_missed_rounds_gets_both_factors(tmp_path: Path) -> None:
    assert run(tmp_path, *WIDE, "strategy=rolora", "strategy.devices_per_round=1", "run.num_rounds=6") == 0
    one, seen, sizes = 4 * 4 * 2 * 32, {}, []
    for record in rounds(tmp_path):
        assert not record["failures"]
        (device,) = record["devices"]
        sizes.append(round((device["downlink_bytes"] - device["uplink_bytes"]) / one))
        seen[device["id"]] = record["round"]
    assert len(seen) > 1 and 1 in sizes and sizes[0] == 0  # once two factors more than what goes up


def test_a_method_refuses_settings_that_make_it_another_one(tmp_path: Path) -> None:
    assert run(tmp_path, "strategy=ffa_lora", "strategy.factors=both") == 2


def test_what_averaging_loses_is_recorded_where_both_factors_train(tmp_path: Path) -> None:
    for method in ("fedit", "rolora"):
        for aggregation in ("kept", "measured"):
            folder = tmp_path / f"{method}-{aggregation}"
            assert run(folder, *WIDE, f"strategy={method}", f"strategy.aggregation={aggregation}") == 0
    plain, measured = (rounds(tmp_path / f"fedit-{name}") for name in ("kept", "measured"))
    assert [r["train_loss"] for r in measured] == pytest.approx([r["train_loss"] for r in plain], rel=1e-5)
    assert all(0 < record["averaging_error"] < 1 for record in measured)
    for records in (plain, rounds(tmp_path / "rolora-measured")):
        assert all("averaging_error" not in record for record in records)
