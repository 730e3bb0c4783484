"""Runs as things: the list, one, two side by side, one archive."""

from __future__ import annotations

import io
import json
import re
import shutil
import tarfile
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedlodrop.cli import cli
from fedlodrop.commands import runs as run_list
from fedlodrop.commands.shared import PlainConsole
from tests.support.runs import run


def _call(*words: object, code: int = 0) -> str:
    done = CliRunner().invoke(cli, [str(word) for word in words], env={"COLUMNS": "200"})
    assert done.exit_code == code, (done.output, done.exception)
    return done.output


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shelf")
    for k, name in enumerate(("a", "deep/b")):
        (folder / "deep").mkdir(exist_ok=True)
        assert run(folder / name, "run.num_rounds=1", f"run.seed={k}", f"allocator={('exact', 'equal')[k]}") == 0
    shutil.copytree(folder / "a", folder / "broken")
    (folder / "broken" / "summary.json").unlink()
    (folder / "broken" / "failure.json").write_text(json.dumps({"message": "no \x1b[31mroom", "exit_code": 2}))
    return folder


def test_the_list_says_status_method_score_and_when(shelf: Path) -> None:
    rows = {line.split()[0]: line.split() for line in _call("runs", shelf).splitlines() if "intents" in line}
    assert {name: row[1] for name, row in rows.items()} == {"a": "finished", "deep/b": "finished", "broken": "failed"}
    score = json.loads((shelf / "deep" / "b" / "summary.json").read_text())["final"]["eval"]["accuracy"]
    assert rows["deep/b"][-4:] == ["fedlodrop", "equal", "1/1", "intents"] and f"{score:.3f}" in rows["deep/b"]
    assert "found no run" in CliRunner().invoke(cli, ["runs", str(shelf / "a" / "adapter")]).output


@pytest.mark.parametrize(("terminal", "width"), [(False, 40), (True, 160), (True, 80), (True, 60)])
def test_no_name_is_cut(
    shelf: Path, tmp_path: Path, terminal: bool, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "2026-11-27/12-29-01-a-rather-long-name"
    shutil.copytree(shelf / "a", tmp_path / name)
    console = PlainConsole()
    console.file, console._width, console._force_terminal = io.StringIO(), width, terminal
    monkeypatch.setattr(run_list, "out", console)
    run_list.runs(tmp_path)
    run_list.compare_runs([tmp_path / name, shelf / "deep" / "b"])
    lines = re.sub(r"\x1b\[[0-9;]*m", "", console.file.getvalue()).splitlines()
    assert not any("…" in line for line in lines) and (not terminal or max(map(len, lines)) <= width)
    listed = [line for line in lines[: next(k for k, line in enumerate(lines) if "settings" in line)]]
    assert name in "".join(line.split("  ")[0].strip() for line in listed[2:])
    assert any("finished" in line and "accuracy" in line for line in listed)
    assert any("intents" in line for line in listed) == (not terminal or width == 160)


def test_one_run_is_shown_and_its_failure_not_obeyed(shelf: Path) -> None:
    text = _call("show", shelf / "a")
    assert "allocator exact" in text and "seed 0" in text and "test accuracy, last round" in text
    assert "failed, 1 rounds: no \\x1b[31mroom" in _call("show", shelf / "broken")


def test_two_runs_differ_in_settings_and_results(shelf: Path) -> None:
    text = _call("compare-runs", shelf / "a", shelf / "deep" / "b")
    (line,) = [line.split() for line in text.splitlines() if line.strip().startswith("allocator.name")]
    assert line == ["allocator.name", "exact", "equal"]
    assert "run.seed" in text and "uploaded" in text and "run.dir" not in text


def test_one_archive_holds_what_a_reader_needs(shelf: Path, tmp_path: Path) -> None:
    target = tmp_path / "b.tar.gz"
    assert "packed" in _call("pack", shelf / "deep" / "b", "--out", target)
    with tarfile.open(target) as archive:
        archive.extractall(tmp_path, filter="data")
    names = {str(path.relative_to(tmp_path / "b")) for path in (tmp_path / "b").rglob("*") if path.is_file()}
    assert {
        "config.yaml",
        "environment.json",
        "rounds.jsonl",
        "summary.json",
        "adapter/adapter_model.safetensors",
    } <= names
    assert not any(name.startswith("checkpoint") for name in names)
    assert "versions" in json.loads((tmp_path / "b" / "environment.json").read_text())
    assert (tmp_path / "b" / "rounds.jsonl").read_bytes() == (shelf / "deep" / "b" / "rounds.jsonl").read_bytes()
    for words in (("pack", shelf / "deep" / "b", "--out", target), ("pack", shelf / "broken", "--out", tmp_path / "c")):
        assert CliRunner().invoke(cli, [str(word) for word in words]).exit_code != 0


def test_the_version() -> None:
    assert _call("--version") == f"fedlodrop {version('fedlodrop')}\n"
