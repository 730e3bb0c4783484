"""Sweeps: expansion, failures, a killed sweep, the table."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest
from matplotlib.figure import Figure

from conf.compose import ConfigError, check_names, expand_sweep
from fedlodrop.commands.studies import sweep
from fedlodrop.study.figures import draw_jobs
from fedlodrop.study.sweep import job_name
from fedlodrop.study.tables import write_jobs
from server_app.engines.flower import HOME, end_leftover
from tests.optimizer.test_plots import touching
from tests.support.runs import FAST

QUICK = [item for item in FAST if item != "run.engine=local"]
PROGRAM = "from fedlodrop.cli import main; main()"
_PATIENCE_S = 900  # two SuperLinks and their Ray workers start in it, on a busy machine as well


def test_choices_with_brackets_and_dots_are_not_cut() -> None:
    jobs = expand_sweep(["lora.target_modules=[query,value],[query]", "training.lr=1e-3,0.01", "run.name=v1.2"])
    assert len(jobs) == 4
    assert jobs[0] == ["lora.target_modules=[query,value]", "training.lr=0.001", "run.name=v1.2"]
    assert len({job_name(job, job) for job in jobs}) == 4


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ("allocator=bnb,psc", "psca"),
        ("run.sed=0,1", "run.seed"),
        ("+run.seed=1", "key=value"),
        ("run.seed=1,", "run.seed=1,"),
    ],
)
def test_bad_choices_are_refused_before_the_first_job(tmp_path: Path, item: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        sweep([item], folder=tmp_path / "sweep")
    assert not (tmp_path / "sweep").exists()


def test_one_run_takes_one_value() -> None:
    with pytest.raises(ConfigError, match="fedlodrop sweep"):
        check_names(["run.seed=0,1"])


def test_a_failed_job_is_recorded_and_the_rest_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    items = [*QUICK, "budget.energy_j=0,null", "lora.target_modules=[query,value],[query]"]
    with pytest.raises(BaseException) as ended:  # typer.Exit
        sweep(items, folder=tmp_path)
    assert ended.value.exit_code == 1  # type: ignore[attr-defined]
    assert "2 of 4 jobs failed" in capsys.readouterr().err
    table = pd.read_csv(tmp_path / "jobs.csv")
    assert list(table["status"]).count("failed") == 2
    failed = table[table["status"] == "failed"]
    assert failed["message"].str.contains("no device could be served").all() and failed["final.eval.loss"].isna().all()
    done = table[table["status"] == "finished"]
    assert set(done["lora.target_modules"]) == {"[query,value]", "[query]"}
    for row in done.to_dict("records"):
        summary = json.loads((tmp_path / row["folder"] / "summary.json").read_text())
        assert row["final.eval.accuracy"] == pytest.approx(summary["final"]["eval"]["accuracy"])
        assert row["uplink_bytes"] == summary["uplink_bytes"]
    assert len(pd.read_parquet(tmp_path / "jobs.parquet")) == 4
    assert (tmp_path / "jobs.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_killed_sweep_finishes_only_the_rest(tmp_path: Path) -> None:
    items = [*QUICK, "allocator=equal,common,none", "run.seed=0,1"]
    command = [sys.executable, "-c", PROGRAM, "sweep", "-m", *items, "--dir", "out"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    try:
        while len(list(tmp_path.glob("out/*/summary.json"))) < 2:
            assert process.poll() is None
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    for path in tmp_path.glob(
        "out/*/summary.json"
    ):  # as if the kill had come between the results and the job's own record
        record = json.loads((path.parent / "job.json").read_text())
        (path.parent / "job.json").write_text(json.dumps({**record, "status": "running"}))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("out/*/summary.json")}
    assert 2 <= len(before) < 6
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert f"{len(before)} of 6 runs are there already" in done.stdout
    assert all(path.stat().st_mtime_ns == when for path, when in before.items())
    table = pd.read_csv(tmp_path / "out" / "jobs.csv")
    assert sorted(zip(table["allocator"], table["run.seed"], strict=True)) == [
        (name, seed) for name in ("common", "equal", "none") for seed in (0, 1)
    ]
    assert (table["rounds_done"] == 3).all() and (table["status"] == "finished").all()
    assert "jobs.csv" in done.stdout


def test_the_table_of_a_sweep_without_results(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    record = {"overrides": {"run.seed": "0"}, "status": "failed", "message": "no"}
    (tmp_path / "a" / "job.json").write_text(json.dumps(record))
    table = write_jobs(tmp_path)
    assert table.to_dict("records") == [{"run.seed": 0, "status": "failed", "message": "no", "folder": "a"}]
    assert not (tmp_path / "jobs.png").exists()


@pytest.mark.slow
def test_jobs_side_by_side(tmp_path: Path) -> None:
    sweep([*QUICK, "allocator=equal,common", "run.seed=0,1"], folder=tmp_path, jobs=2)
    assert (pd.read_csv(tmp_path / "jobs.csv")["status"] == "finished").sum() == 4


@pytest.mark.slow
@pytest.mark.flower
def test_all_jobs_share_one_superlink(tmp_path: Path) -> None:
    items = [item for item in QUICK if not item.startswith("run.num_rounds")]
    sweep([*items, "run.num_rounds=1,2", "run.engine=flower"], folder=tmp_path)
    table = pd.read_csv(tmp_path / "jobs.csv")
    assert list(table["rounds_done"]) == [1, 2] and (tmp_path / "flower.log").exists()


def _superlink_of(folder: Path, process: subprocess.Popen[str]) -> psutil.Process:
    """Wait until the sweep's SuperLink works for a run and return it."""
    while True:
        running = [
            found for found in psutil.process_iter(["cmdline", "cwd"]) if found.info["cwd"] == str(folder / HOME)
        ]
        theirs = [found for found in running if "flower-superlink" in " ".join(found.info["cmdline"] or ())]
        if theirs and list(folder.glob("*/rounds.jsonl")):
            return theirs[0]
        assert process.poll() is None
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.flower
def test_a_killed_sweep_leaves_no_superlink(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    items = [item for item in QUICK if not item.startswith("run.num_rounds")]
    jobs = ["run.num_rounds=6,1", "run.engine=flower"]  # long enough to be interrupted after the first round
    command = [sys.executable, "-c", PROGRAM, "sweep", "-m", *items, *jobs, "--dir", "out"]
    folder = tmp_path / "out"
    request.addfinalizer(lambda: end_leftover(folder))
    for number in (signal.SIGTERM, signal.SIGKILL):
        process = subprocess.Popen(command, cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        superlink = _superlink_of(folder, process)
        family = [superlink, *superlink.children(recursive=True)]
        process.send_signal(number)
        _, complaint = process.communicate(timeout=_PATIENCE_S)
        if number == signal.SIGTERM:  # asked: it ends what it started, and says how to go on
            assert process.returncode == 130 and "the same command goes on" in complaint
            assert psutil.wait_procs(family, timeout=5)[1] == [] and not (folder / HOME).exists()
    assert superlink.is_running()  # forced: nobody was there to end it
    family = [superlink, *superlink.children(recursive=True)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=_PATIENCE_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ended the SuperLink that an interrupted command had left behind" in done.stdout
    assert psutil.wait_procs(family, timeout=5)[1] == [] and not (folder / HOME).exists()
    assert sorted(pd.read_csv(folder / "jobs.csv")["rounds_done"]) == [1, 6]


LRS, MODULES = (
    [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2],
    ["[query,value]", "[query,key,value,dense]", "all-linear", "[query]"],
)


@pytest.mark.parametrize("values", [LRS, LRS[:3], MODULES, [360_000.0, 100_000.0, 104_000.0]])
def test_the_picture_shows_what_was_varied_and_its_labels_do_not_touch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: list[Any]
) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: (drawn.append(self), path.touch()))
    rows = [
        {
            "x_hz": value,
            "method": method,
            "run.seed": seed,
            "rounds_done": 3,
            "primary_metric": "accuracy",
            "final.eval.accuracy": 0.5,
            "uplink_bytes": 10**6,
            "status": "finished",
        }
        for value in values
        for method in ("_a", "$b$")
        for seed in (0, 1)
    ]
    draw_jobs(pd.DataFrame(rows), tmp_path / "jobs.png", ["x_hz", "method"])
    assert touching(drawn[0]) == []
    axis = drawn[0].axes[0]
    assert len(drawn[0].legends[0].get_texts()) == 2
    labels = [label.get_text() for label in axis.get_xticklabels()]
    assert labels == ([f"{value:g}" for value in sorted(values)] if not isinstance(values[0], str) else sorted(values))
    lines = [line.get_xdata() for line in axis.lines if len(line.get_xdata()) == len(values)]
    places = np.concatenate(lines).astype(float)
    assert 0 < np.abs(places - np.round(places)).max() < 0.1  # curves lie beside each other by a hair
