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


def _run(ours: float, theirs: float) -> dict[str, Any]:
    side = {"accuracy": 0.8, "worker_peak_rss_mib": 500.0, "overhead": 0.1, "start_s": 15.0}
    return {
        "ours": {**side, "cpu_s": ours, "wall_s": ours / 2},
        "theirs": {**side, "cpu_s": theirs, "wall_s": theirs / 2},
    }


def test_the_columns_are_the_agreed_ones_and_ratio_is_value_over_reference(tmp_path: Path) -> None:
    rows = study.RUNS.rows([_run(30, 100), _run(50, 110), _run(40, 120)])
    study.write_csv(tmp_path / "bench.csv", rows, study.COLUMNS)
    head, first, *_ = (tmp_path / "bench.csv").read_text().splitlines()
    assert head == "name,value,unit,reference,ratio,low,high,repeats,command"
    assert first.startswith("run_cpu,40,CPU s,110,")
    run_cpu = rows[0]
    assert run_cpu["ratio"] == run_cpu["value"] / run_cpu["reference"] == pytest.approx(40 / 110)
    assert (run_cpu["low"], run_cpu["high"]) == (0.3, pytest.approx(50 / 110))  # 30/100, 50/110, 40/120


def test_every_row_but_three_has_a_limit() -> None:
    """Shown without one: the accuracy of both sides, what a worker holds and how long it takes to start."""
    assert set(study.ROW_NAMES) - set(study.TARGETS) == {"accuracy", "worker_peak_rss_mib", "start_s"}


def test_a_failed_measurement_is_said_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(setting: Setting, folder: Path) -> dict[str, Any]:
        raise RuntimeError("no such luck")

    good = replace(study.AGGREGATION, once=lambda *_: {"seconds": 4.0, "peak_ratio": 3.0})
    monkeypatch.setattr(study, "MEASUREMENTS", (replace(study.STEP, once=fails), good))
    rows, failures = study.run_study(SETTING, tmp_path, (), lambda line: None)
    assert failures == {"step": "no such luck"} and [row["name"] for row in rows] == [
        "aggregation_s",
        "aggregation_peak_ratio",
    ]
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
    step = study.STEP.rows([dict.fromkeys(("texts", "layer"), {"ours_s": 0.99, "peft_s": 1.0})])
    text = study.render([*study.RUNS.rows([_run(30, 100)]), *step], replace(SETTING, more="lora=upper"))
    assert "| run_cpu [CPU s] | 30 | 100 | 0.3 | 0.3 to 0.3 | 1 | 0.4 | reached |" in text
    assert "| step [CPU s] | 0.99 | 1 | 0.99 | 0.99 to 0.99 | 1 | 0.95 | **missed** |" in text
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
        peaks[count] = json.loads(done.stdout)["peak_ratio"]
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
    assert pd.read_csv(tmp_path / "bench.csv")["name"].tolist() == list(study.ROW_NAMES)
    assert "final accuracy: ours" in done.stdout and "| run_cpu [CPU s] |" in (tmp_path / "bench.md").read_text()
