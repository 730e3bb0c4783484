"""The presets: each is one choice that composes, says how it is run, and holds what its name promises."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from conf.compose import compose_config
from fedlodrop.console.dry_run import dry_run

PRESETS = sorted((Path(__file__).resolve().parents[2] / "conf" / "experiment").glob("*.yaml"))


@pytest.mark.parametrize("file", PRESETS, ids=lambda file: file.stem)
def test_every_preset_is_one_choice(file: Path) -> None:
    config = compose_config(f"experiment={file.stem}")
    assert config.run.name == file.stem
    lines = file.read_text().splitlines()
    assert lines[0] == "# @package _global_" and f"#   fedlodrop run experiment={file.stem}" in lines


def test_the_language_model_sees_every_example_more_than_once_in_a_cell_that_decides_by_device() -> None:
    config = compose_config("experiment=llm")
    steps, chosen, examples = config.training.local_steps, config.strategy.devices_per_round, config.task.train_limit
    assert steps and chosen and examples
    passes = config.run.num_rounds * steps * config.training.batch_size * chosen / examples
    assert 1.2 <= passes <= 2.5
    assert (config.task.name, config.model.name, config.network.num_devices) == ("calls", "smollm2", 10)
    assert len(config.device.classes) == 3 and config.allocator.name == "exact"
    assert config.budget.energy_j is None  # every class has its own


def test_the_paper_preset_is_what_its_authors_released() -> None:
    config = compose_config("experiment=paper")
    assert (config.lora.r, config.lora.alpha, config.lora.lora_dropout) == (4, 8.0, 0.1)
    assert (config.network.num_devices, config.run.num_rounds) == (3, 50)
    t = config.training
    assert (t.local_steps, t.local_epochs, t.batch_size, t.optimizer, t.lr) == (None, 3, 64, "adamw", 1e-3)
    assert (config.allocator.name, config.allocator.dropout_rate, config.strategy.mask) == ("fixed", 0.3, "fixed")


def test_the_paper_preset_answers_a_dry_run_and_serves_everybody() -> None:
    stream = io.StringIO()
    assert dry_run(compose_config("experiment=paper model=tiny"), Console(file=stream, width=100))
    assert "3 of 3 asked" in stream.getvalue() and "sits out" not in stream.getvalue()


def test_the_quick_preset_needs_no_workers() -> None:
    config = compose_config("experiment=quick run.num_rounds=1")
    assert (config.run.engine, config.run.num_rounds, config.model.name) == ("local", 1, "minilm")
