"""Ceiling and floor: one device with everybody's examples and steps; devices that learn alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from conf.compose import compose_config
from tests.support.runs import rounds, run, without_wall_times

WIDE = ("network.total_bandwidth_hz=1e7", "budget.energy_j=1e6")


def test_centralized_takes_everybodys_steps_and_examples(tmp_path: Path) -> None:
    config = compose_config("strategy=centralized network.num_devices=5 training.local_steps=3")
    assert (config.network.num_devices, config.training.local_steps) == (1, 15)
    assert compose_config("strategy=centralized training.local_epochs=2").training.local_epochs == 2
    assert run(tmp_path / "all", "strategy=centralized") == 0
    same = ("strategy=fedit", "network.num_devices=1", "training.local_steps=8", "budget.deadline_s=1e6")
    assert run(tmp_path / "one", *same, "budget.energy_j=1e9") == 0
    ours, theirs = (rounds(tmp_path / name) for name in ("all", "one"))
    assert [without_wall_times(record) for record in ours] == [without_wall_times(record) for record in theirs]
    assert ours[0]["devices"][0]["num_examples"] == 96


def test_devices_alone_are_not_averaged(tmp_path: Path) -> None:
    """The first round is FedSA-LoRA's; then no device starts from what the others learnt."""
    assert run(tmp_path / "beside", *WIDE, "strategy=local") == 0
    assert run(tmp_path / "averaged", *WIDE, "strategy=fedsa_lora") == 0
    beside, averaged = (rounds(tmp_path / name) for name in ("beside", "averaged"))
    first = [[device["train_loss"] for device in records[0]["devices"]] for records in (beside, averaged)]
    later = [[device["train_loss"] for device in records[2]["devices"]] for records in (beside, averaged)]
    assert first[0] == first[1] and not np.isclose(later[0], later[1]).any()
    summary = json.loads((tmp_path / "beside" / "summary.json").read_text())
    assert summary["final"] is None and 0 <= summary["personalised"]["accuracy"] <= 1


def test_a_device_alone_scores_the_model_it_has_trained(tmp_path: Path) -> None:
    """The average of one device's answer is that answer, so with one device local training is FedSA-LoRA."""
    one = (*WIDE, "network.num_devices=1", "training.lr=0.1", "run.num_rounds=2")
    for name in ("local", "fedsa_lora"):
        assert run(tmp_path / name, *one, f"strategy={name}") == 0
    alone, averaged = (
        [row["client_eval"]["loss"] for row in rounds(tmp_path / name)] for name in ("local", "fedsa_lora")
    )
    assert np.allclose(alone, averaged, rtol=1e-6)
