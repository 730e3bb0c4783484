"""Longer and shorter runs: early stopping, rates over the rounds, batches in parts, gradient checkpointing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import fedlodrop
from client_app.training import rate_factor
from conf.compose import ConfigError, compose_config
from conf.convert import compute_settings, lora_settings, model_settings
from server_app.results import out_of_patience
from tasks.models.build import build_model
from tests.support.runs import rounds, run, without_wall_times


def _adapter(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def _records(folder: Path) -> list[dict[str, Any]]:
    return [without_wall_times(record) for record in rounds(folder)]


def test_rates_over_the_rounds() -> None:
    def rates(schedule: str, decay: float = 1.0) -> list[float]:
        settings = cast(Any, SimpleNamespace(lr_schedule=schedule, lr_decay=decay))
        return [rate_factor(settings, 4, server_round) for server_round in (1, 2, 3, 4)]

    assert rates("constant", 0.5) == [1, 0.5, 0.25, 0.125]
    assert rates("linear") == [1, 0.75, 0.5, 0.25]
    assert rates("cosine") == pytest.approx([1, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2])
    assert rates("linear", 0.5) == [1, 0.375, 0.125, 0.03125]


def test_a_killed_run_goes_on_at_the_rates_of_its_schedule(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(whole, "training.lr_schedule=cosine") == 0
    assert run(tmp_path / "constant") == 0
    assert _records(whole)[0] == _records(tmp_path / "constant")[0] and _records(whole) != _records(
        tmp_path / "constant"
    )
    shutil.copytree(whole, parts)  # as it was when round 2 had ended
    (parts / "summary.json").unlink()
    shutil.rmtree(parts / "checkpoint")
    (parts / "checkpoint.previous").rename(parts / "checkpoint")
    assert run(parts, "training.lr_schedule=cosine", f"run.resume='{parts}'") == 0
    assert _records(parts) == _records(whole)
    assert all((value == _adapter(whole)[name]).all() for name, value in _adapter(parts).items())


@pytest.mark.parametrize("task", ["intents", "calls"])
def test_batches_in_parts_make_the_same_step(task: str, tmp_path: Path) -> None:
    """The texts of a causal task have unequal numbers of tokens to learn: a mean of means would be another step."""
    exact = ("training.dtype=float32", "training.optimizer=sgd")  # AdamW's first step is the sign of a rounded number
    items = (f"task={task}", "run.num_rounds=1", "network.num_devices=2", "training.proximal_mu=0.1", *exact)
    assert run(tmp_path / "whole", *items) == 0
    assert run(tmp_path / "parts", *items, "training.micro_batch_size=3") == 0
    whole, parts = (rounds(tmp_path / name)[0] for name in ("whole", "parts"))
    assert parts["train_loss"] == pytest.approx(whole["train_loss"], rel=1e-4)
    a, b = _adapter(tmp_path / "whole"), _adapter(tmp_path / "parts")
    for name in a:
        np.testing.assert_allclose(a[name], b[name], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("task", ["intents", "calls"])
def test_checkpointing_changes_nothing_but_what_is_kept(task: str, tmp_path: Path) -> None:
    items = (f"task={task}", "run.num_rounds=1", "network.num_devices=2")
    assert run(tmp_path / "kept", *items) == 0
    assert run(tmp_path / "again", *items, "training.gradient_checkpointing=true") == 0
    assert _records(tmp_path / "kept") == _records(tmp_path / "again")
    a, b = _adapter(tmp_path / "kept"), _adapter(tmp_path / "again")
    assert all((value == b[name]).all() for name, value in a.items())


def test_checkpointing_keeps_less() -> None:
    sizes: list[int] = []
    for value in ("false", "true"):
        config = compose_config(f"model=tiny training.gradient_checkpointing={value}")
        model = build_model(
            model_settings(config), lora_settings(config), num_outputs=3, compute=compute_settings(config)
        ).train()
        inputs = {"input_ids": torch.ones((8, 40), dtype=torch.long), "attention_mask": torch.ones((8, 40))}
        sizes.append(0)

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            sizes[-1] += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(**inputs).sum()
    assert sizes[1] < sizes[0] / 2


def test_a_model_that_cannot_be_checkpointed_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="training.gradient_checkpointing: expected false for"):
        config = compose_config("model=mlp training.gradient_checkpointing=true")
        settings = (model_settings(config), lora_settings(config))
        build_model(*settings, num_outputs=10, compute=compute_settings(config))


def test_patience() -> None:
    def record(score: float, loss: float = 1.0) -> dict[str, Any]:
        return {"eval": {"accuracy": 0}, "validation": {"accuracy": score, "loss": loss}}

    history = [record(0.1), record(0.5), {"no": "evaluation"}, record(0.4), record(0.5)]
    assert [out_of_patience(history[:n], "accuracy", 2) for n in range(6)] == [False] * 5 + [True]
    assert not out_of_patience(history, "accuracy", None) and not out_of_patience(history, "accuracy", 3)
    assert not out_of_patience([*history[:4], record(0.5, 0.9)], "accuracy", 2)  # as the best round is chosen


def test_a_run_that_learns_nothing_ends_early_and_can_go_on(tmp_path: Path) -> None:
    whole, early = tmp_path / "whole", tmp_path / "early"
    still = ("training.lr=1e-30", "training.head_lr=1e-30", "run.num_rounds=5")
    assert run(whole, *still) == 0
    assert run(early, *still, "run.patience=2") == 0
    summary = json.loads((early / "summary.json").read_text())
    assert len(rounds(early)) == summary["rounds_done"] == 3 and summary["ended_early"]
    assert len(fedlodrop.resume(early).rounds) == 3  # finished
    assert len(fedlodrop.resume(early, "run.patience=null").rounds) == 5
    assert _records(early) == _records(whole) and not json.loads((early / "summary.json").read_text())["ended_early"]


def test_a_personalised_method_has_no_score_to_wait_for() -> None:
    with pytest.raises(ConfigError, match="run.patience must be null with a personalised method"):
        compose_config("strategy=local run.patience=3")
