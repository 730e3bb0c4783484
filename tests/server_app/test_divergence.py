"""A run that diverges stops with one line, and goes on from its last good round at a lower rate."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from server_app.rounds import runs_away
from tests.support.runs import rounds, run

WILD = ("network.total_bandwidth_hz=1e7", "tracking=none", "run.num_rounds=5", "training.max_grad_norm=null")


@pytest.mark.parametrize(
    "how", [("training.head_lr=100",), ("training.optimizer=sgd", "training.lr=300", "training.head_lr=300")]
)
def test_a_diverging_run_stops_and_goes_on_at_a_lower_rate(tmp_path: Path, how: tuple[str, ...]) -> None:
    wild = (*WILD, *how)
    assert run(tmp_path, *wild) == 4
    failure = json.loads((tmp_path / "failure.json").read_text())
    assert failure["exit_code"] == 4 and "\n" not in failure["message"]
    assert "diverged" in failure["message"] and "training.lr" in failure["message"]
    assert len(rounds(tmp_path)) < 5
    calm = ("training.lr=1e-3", "training.head_lr=1e-2", f"run.resume='{tmp_path}'")
    assert run(tmp_path, *wild, *calm, "training.batch_size=4") == 2  # nothing else may change
    assert run(tmp_path, *wild, *calm) == 0
    done = rounds(tmp_path)
    assert [record["round"] for record in done] == list(range(1, 6)) and done[-1]["eval"]["loss"] < 1e9
    assert run(tmp_path, *wild, *calm, "training.lr=1e-4", "run.num_rounds=6") == 2  # it did not diverge this time


def test_only_a_loss_far_above_the_start_runs_away() -> None:
    start = {"eval": {"loss": 2.0}}
    quiet = {"answers": {"used": 1}, "failures": [], "train_loss": 21.0, "eval": {"loss": 19.0}}
    assert not runs_away(quiet, start)
    assert runs_away({**quiet, "eval": {"loss": 21.0}}, start)
    del quiet["eval"]
    assert runs_away(quiet, start) and not runs_away({**quiet, "train_loss": None}, start)
    nothing = {"answers": {"used": 0}, "failures": [{"message": "PayloadError: a value is not finite in fp32"}]}
    assert runs_away({**nothing, "train_loss": None}, start)
    assert not runs_away({**nothing, "failures": [{"message": "no answer"}], "train_loss": None}, start)
