"""`figures`: every picture with its CSV, with and without runs."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedlodrop.cli import cli
from fedlodrop.study import figures
from optimizer import bench


def a_run(folder: Path, shift: float) -> Path:
    folder.mkdir()
    scores = {"accuracy": shift, "num_examples": 10}
    rows = [
        {
            "round": r,
            "wall_s": 1.0,
            "train_loss": 1.0 / r,
            "devices": [],
            "sim_latency_s": 4.0,
            "sim_time_s": 4.0 * r,
            "energy_j": 1.0,
            "failures": [],
            "plan": {},
            "eval": scores | {"loss": 1.0 / r, "accuracy": shift + 0.1 * r},
            "train_eval": scores | {"loss": 0.5 / r},
            "gap": {"loss": 0.5 / r},
        }
        for r in (1, 2, 3)
    ]
    (folder / "rounds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "config.yaml").write_text("run:\n  num_rounds: 3\n")
    (folder / "summary.json").write_text(json.dumps({"primary_metric": "accuracy", "task": "intents"}))
    return folder


def test_pictures_and_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One point of every sweep for some schemes, batteries over two rounds; all of it is a slow test of the docs."""
    monkeypatch.setattr(bench, "_ROUNDS", 2)
    monkeypatch.setattr(figures, "_SCHEMES", ("exact", "equal"))
    runs = [str(a_run(tmp_path / f"run{i}", 0.1 * i)) for i in range(2)]
    result = CliRunner().invoke(cli, ["figures", *runs, "--out", str(tmp_path / "out"), "--every", "100"])
    assert result.exit_code == 0, result.output
    names = {"bound", "runtime", "deadline", "energy", "bandwidth", "devices", "clock", "horizon"}
    pictures = {path.stem for path in (tmp_path / "out").glob("*.png")}
    assert pictures == names | {"runs-rounds", "runs-time"}
    assert {path.stem for path in (tmp_path / "out").glob("*.csv")} == names | {"runs"}
    with (tmp_path / "out" / "runs.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 6 and {row["method"] for row in rows} == {"run0", "run1"}
    assert float(rows[-1]["test_metric"]) == pytest.approx(0.4) and float(rows[-1]["sim_time_s"]) == 12.0


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["figures", str(tmp_path), "--out", str(tmp_path / "out")])
    assert result.exit_code != 0 and not (tmp_path / "out").exists()
