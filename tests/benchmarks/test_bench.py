"""The study behind `fedlodrop bench`: what a row says and the page shows; no timing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

from benchmarks import study
from benchmarks.federations import Setting, baseline_config, overhead_share
from benchmarks.watch import watch
from conf.compose import ROOT, ConfigError, compose_config, join_overrides
from fedlodrop.cli import cli

SETTING = Setting("intents", "", "", 160, 2, 1, 3, 64)


def test_the_columns_are_the_agreed_ones_and_ratio_is_value_over_reference(tmp_path: Path) -> None:
    row = study.make_row("run_cpu", [{"run_cpu": pair} for pair in ((30, 100), (50, 110), (40, 120))])
    study.write_csv(tmp_path / "bench.csv", [row], study.COLUMNS)
    head, first = (tmp_path / "bench.csv").read_text().splitlines()
    assert head == "name,value,unit,reference,ratio,low,high,repeats,command"
    assert first.startswith("run_cpu,40,CPU s,110,")
    assert row["ratio"] == row["value"] / row["reference"] == pytest.approx(40 / 110)
    assert (row["low"], row["high"]) == (0.3, pytest.approx(50 / 110))  # of neighbouring runs: 30/100, 50/110, 40/120


def test_every_row_but_the_accuracy_has_a_limit() -> None:
    assert [name for name, (_, _, limit) in study.ROWS.items() if limit is None] == ["accuracy"]
    assert {measured for measured, _, _ in study.ROWS.values()} == set(study.MEASUREMENTS)


def test_a_failed_measurement_is_said_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(setting: Setting, folder: Path) -> dict[str, Any]:
        raise RuntimeError("no such luck")

    found = {"aggregation_s": (4.0,), "aggregation_peak_ratio": (3.0,)}
    monkeypatch.setattr(study, "MEASUREMENTS", {"step": fails, "aggregation": lambda *_: found})
    assert study.run_study(SETTING, tmp_path, ("step", *found), lambda line: None) == {"step": "no such luck"}
    rows = pd.read_csv(tmp_path / "bench.csv")
    assert rows["name"].tolist() == list(found) and set(rows["repeats"]) == {SETTING.repeats}
    assert "| aggregation_s [CPU s] | 4 |" in (tmp_path / "bench.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "speed"], "unknown name 'speed'"),
        (["--data", "/nowhere"], "sst2_train.tsv.gz"),
        (["--set", "lora.rank=3"], "unknown key 'lora.rank'"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(arguments: list[str], said: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = CliRunner().invoke(cli, ["bench", "--out", str(out), *arguments])
    assert isinstance(result.exception, ConfigError) and said in str(result.exception) and not out.exists()


def test_the_page_shows_what_was_missed() -> None:
    rows = [study.make_row("run_cpu", [{"run_cpu": (30, 100)}]), study.make_row("step", [{"step": (0.99, 1.0)}])]
    text = study.render(rows, replace(SETTING, more="lora=upper"))
    assert "| run_cpu [CPU s] | 30 | 100 | 0.3 | 0.3 to 0.3 | 1 | 0.4 | reached |" in text
    assert "| step [CPU s] | 0.99 | 1 | 0.99 | 0.99 to 0.99 | 1 | 0.95 | **missed** |" in text
    scores = [study.make_row("accuracy", [{"accuracy": (0.81, other)}]) for other in (0.80, 0.78)]
    verdicts = [line.split(" | ")[-1] for line in study.render(scores, SETTING).splitlines()[-2:]]
    assert verdicts == ["equal |", "**the runs do not compare** |"]
    assert "task intents, 2 devices, 1 rounds" in text and "our runs with `lora=upper`" in text


def test_overhead_is_what_neither_trains_nor_evaluates() -> None:
    record = {"wall_s": 10.0, "eval_s": 2.0, "devices": [{"train_s": 6.0}, {"train_s": 8.0}, {"train_s": None}]}
    assert overhead_share(record, workers=2) == pytest.approx(0.1)


def test_the_baseline_learns_on_our_schedule() -> None:
    theirs, ours = baseline_config(Setting(max_length=32)), compose_config(join_overrides(["task=intents"]))
    assert (theirs["lr"], theirs["local-steps"], theirs["batch-size"]) == (
        ours.training.lr,
        ours.training.local_steps,
        ours.training.batch_size,
    )
    assert (theirs["num-devices"], theirs["num-rounds"], theirs["lora-r"]) == (10, 10, ours.lora.r)
    assert (theirs["max-length"], theirs["train-limit"], theirs["out"]) == (32, 1600, "")


def test_processes_that_outlive_their_parent_are_counted(tmp_path: Path) -> None:
    done = tmp_path / "done"
    burn = f"import pathlib, time\nwhile time.process_time() < 1: pass\ntime.sleep(0.5)\npathlib.Path({str(done)!r}).touch()"
    parent = f"import subprocess, sys, time\nsubprocess.Popen([sys.executable, '-c', {burn!r}])\ntime.sleep(0.5)"
    command = (
        f"import pathlib, subprocess, sys, time\nsubprocess.run([sys.executable, '-c', {parent!r}])\n"
        f"while not pathlib.Path({str(done)!r}).exists(): time.sleep(0.1)"
    )
    usage = watch(
        [sys.executable, "-c", command], env=dict(os.environ), cwd=tmp_path, log=tmp_path / "log", timeout_s=60
    )
    assert usage.code == 0 and usage.cpu_s > 0.9


@pytest.mark.slow
def test_memory_of_the_aggregation_does_not_grow_with_the_number_of_replies() -> None:
    peaks = {}
    for count in (4, 60):
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.aggregation", str(count)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        peaks[count] = json.loads(done.stdout)["aggregation_peak_ratio"][0]
    # 56 replies more of half an adapter each: 28 adapters if they were kept. One adapter is the allocator's noise.
    assert peaks[60] - peaks[4] < 2, peaks
    assert peaks[60] < 4.4, peaks  # 4.1; copies of a waiting answer made it 4.6, those of counted messages 5.5


@pytest.mark.slow
def test_the_whole_study_runs(tmp_path: Path) -> None:
    program = Path(sys.executable).parent / "fedlodrop"
    done = subprocess.run(
        [str(program), "bench", "--out", str(tmp_path), "--quick"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert pd.read_csv(tmp_path / "bench.csv")["name"].tolist() == list(study.ROWS)
    assert "| accuracy [1] |" in done.stdout and "| run_cpu [CPU s] |" in (tmp_path / "bench.md").read_text()
