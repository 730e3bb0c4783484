"""Data files that are not there: said once, before anything is imported, started or written."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from conf.compose import ROOT
from tasks.data.tables import read_table
from tests.fedlodrop.conftest import Call

STUDY = """
title: A study
data_dir: data
base: [model=tiny, "task.train_file={data}/train.tsv"]
settings:
  sst2: [task=sst2, "task.validation_file={data}/test set.tsv"]
  intents: [task=intents, task.train_file=null]
methods: {fedit: [strategy=fedit], rolora: [strategy=rolora]}
seeds: [0, 1]
"""
COMMANDS = {
    "run": ["run", "task=tsv", "task.train_file=data/train.tsv"],
    "dry run": ["run", "--dry-run", "task=tsv", "task.train_file=data/train.tsv"],
    "model": ["run", "model=hub", "model.path=./data/train.tsv"],
    "sweep": ["sweep", "task=tsv", "task.train_file=data/train.tsv,here.tsv", "run.seed=0,1,2", "--dir", "out"],
    "compare": ["compare", "study.yaml", "--out", "out"],
    "calibrate": ["calibrate", "task=tsv", "task.train_file=data/train.tsv", "--out", "out"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_missing_file_is_said_once_and_first(
    name: str, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for started in (
        "server_app.build.preflight",
        "fedlodrop.study.runner.run_tasks",
        "fedlodrop.console.dry_run.dry_run",
    ):
        monkeypatch.setattr(started, lambda *_: pytest.fail(f"{name} began its work without its data"))
    (tmp_path / "study.yaml").write_text(STUDY)
    (tmp_path / "here.tsv").write_text("sentence\tlabel\na\t0\nb\t1\n")
    code, complaint = call(*COMMANDS[name])
    assert code == 2 and len(complaint.splitlines()) == 1, complaint
    assert complaint.count("data/train.tsv") == 1 and "here.tsv" not in complaint
    assert "docs/data.md" in complaint and (ROOT / "docs" / "data.md").exists()
    if name == "compare":
        assert "data/test set.tsv" in complaint and "--data" in complaint
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here.tsv", "study.yaml"]


def test_tables_of_a_study_are_drawn_without_its_data(call: Call, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(STUDY)
    code, complaint = call("compare", "study.yaml", "--no-run", "--out", "out")
    assert code == 0, complaint


def test_the_step_is_measured_on_the_data_of_the_study() -> None:
    """A clone without data files measures on generated commands, which have twelve classes."""
    program = (
        "import benchmarks.step as step\nfrom benchmarks.federations import Setting\nstep.BLOCKS, step.STEPS = 1, 1\n"
        "print(step.measure(Setting('intents', '', '', 160, 2, 1, 1, 16)))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-600:]
    assert "step_layer_only" in done.stdout


def test_the_page_about_data_writes_tables_that_are_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub is stood in for; the script is the page's own."""
    frame = pd.DataFrame({"sentence": ['it says "no"', "a\ttab", "né"], "label": [0, 1, 0], "idx": [0, 1, 2]})
    split = SimpleNamespace(to_pandas=lambda: frame)
    monkeypatch.setattr("datasets.load_dataset", lambda *_: {"train": split, "validation": split})
    (script,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "data.md").read_text(), flags=re.S)
    monkeypatch.setattr(sys, "argv", ["script", str(tmp_path)])
    exec(script, {})
    assert len(list(tmp_path.iterdir())) == 6
    assert read_table(tmp_path / "sst2_train.tsv.gz")["sentence"] == ['it says "no"', "a tab", "né"]
