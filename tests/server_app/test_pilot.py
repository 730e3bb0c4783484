"""A pilot run's learning curve as what the plan minimises."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from conf.compose import ConfigError, compose_config, quoted
from optimizer.learning_curve import LearningCurveBound
from server_app.pilot import objective, read_curve
from tests.support.runs import rounds, run

WIDE = ("network.total_bandwidth_hz=1e7", "budget.energy_j=1e6")


@pytest.fixture(scope="module")
def pilot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pilot")
    assert run(folder, *WIDE, "strategy=fedit") == 0
    return folder


def test_the_curve_is_that_of_the_validation_data(pilot: Path) -> None:
    curve = read_curve(str(pilot))
    assert curve.rounds.tolist() == [0, 1, 2, 3]
    assert curve.test[1:].tolist() == [record["validation"]["loss"] for record in rounds(pilot)]
    assert curve.train[0] == json.loads((pilot / "summary.json").read_text())["initial"]["train_eval"]["loss"]


def test_a_run_is_planned_by_it(pilot: Path, tmp_path: Path) -> None:
    """Where no resource binds, every device gets the rate that the curve calls best."""
    overfits = shutil.copytree(pilot, tmp_path / "overfits")
    losses = {1: (1.9, 2.4), 2: (0.9, 2.0), 3: (0.3, 3.4)}
    records = rounds(pilot)
    for record in records:
        record["train_eval"]["loss"], record["validation"]["loss"] = losses[record["round"]]
    (overfits / "rounds.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    overrides = (*WIDE, "allocator=bnb", f"bound.pilot={quoted(overfits)}", "run.num_rounds=3", "bound.refit=false")
    assert run(tmp_path / "planned", *overrides) == 0
    bound = objective(compose_config(" ".join(overrides)))
    assert isinstance(bound, LearningCurveBound)
    rates = np.linspace(0, 0.7, 701)
    phi = bound.exponents.test_loss(bound.pilot, rates, 3.0)
    assert 0.05 < rates[phi.argmin()] < 0.69 and phi.max() > phi.min() * 1.01
    for record in rounds(tmp_path / "planned"):
        assert record["plan"]["gap"] <= 1e-3
        for device in record["devices"]:
            chosen = np.interp(device["dropout_rate"], rates, phi)
            assert chosen <= phi.min() * (1 + 5e-3)


def test_the_rounds_that_have_passed_refine_it_and_a_resumed_run_goes_on_exactly(pilot: Path, tmp_path: Path) -> None:
    overrides = (*WIDE, "allocator=bnb", f"bound.pilot={quoted(pilot)}")
    assert run(tmp_path / "whole", *overrides, "run.num_rounds=3") == 0
    assert run(tmp_path / "parts", *overrides, "run.num_rounds=2") == 0
    assert run(tmp_path / "parts", *overrides, "run.num_rounds=2", "bound.refit=false") == 2  # another plan
    assert run(tmp_path / "parts", *overrides, "run.num_rounds=3", "run.resume=auto") == 0
    found, other = ([r["exponents"] for r in rounds(tmp_path / name)] for name in ("whole", "parts"))
    config = compose_config(" ".join(overrides))
    given = {"a0": config.bound.time_exponent, "a1": config.bound.time_exponent_growth, "b": config.bound.gap_exponent}
    assert found[0] == given and found[1] != given and found[2] != found[1] and other == found
    assert [d["dropout_rate"] for d in rounds(tmp_path / "whole")[2]["devices"]] == [
        d["dropout_rate"] for d in rounds(tmp_path / "parts")[2]["devices"]
    ]


def test_without_a_pilot_nothing_changes() -> None:
    assert objective(compose_config("")) is None


def test_refusals(pilot: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"bound.pilot: expected the folder of a finished run"):
        read_curve(str(tmp_path))
    assert run(tmp_path / "dropped", *WIDE, "allocator=fixed", "allocator.dropout_rate=0.5", "run.num_rounds=1") == 0
    with pytest.raises(ConfigError, match="found one with dropout"):
        read_curve(str(tmp_path / "dropped"))
