"""Where a command writes: folders are made, and a place that cannot be written is one line before any work."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fedlodrop.conftest import Call

STUDY = """
title: A study
base: [model=tiny, task.train_limit=60]
settings: {all: []}
methods: {fedit: [strategy=fedit]}
seeds: [0]
"""
ROUNDS = "setting,method,seed,round\n"
BLOCKED = {
    "run": ("run", "run.engine=local", "model=tiny", "run.dir={place}"),
    "report": ("report", "{run}", "--out", "{place}/report.html"),
    "export": ("export", "{run}", "--out", "{place}/adapter"),
    "figures": ("figures", "{run}", "--out", "{place}"),
    "sweep": ("sweep", "model=tiny", "run.seed=0,1", "--dir", "{place}"),
    "compare": ("compare", "study.yaml", "--out", "{place}"),
    "page": ("compare", "study.yaml", "--page", "{place}/page.md"),
    "calibrate": ("calibrate", "--table", "rounds.csv", "--out", "{place}"),
    "bench": ("bench", "--quick", "--out", "{place}"),
}


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/nowhere"])
@pytest.mark.parametrize("name", BLOCKED)
def test_a_place_that_cannot_be_written_is_one_line(
    name: str, place: str, call: Call, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(*_: object, **__: object) -> None:
        raise AssertionError(f"{name} began its work before it knew where to write")

    monkeypatch.setattr("fedlodrop.study.run_study.run_study", work)
    monkeypatch.setattr("fedlodrop.model.export.load_trained", work)
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "study.yaml").write_text(STUDY)
    (tmp_path / "rounds.csv").write_text(ROUNDS)
    code, complaint = call(*(word.format(place=place, run=finished) for word in BLOCKED[name]))
    assert code == 2, complaint
    assert len(complaint.splitlines()) == 1 and complaint.startswith("fedlodrop: "), complaint
    assert place.removesuffix("/below").removesuffix("/nowhere") in complaint
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "rounds.csv", "study.yaml"]
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.parametrize("name", ["report", "export"])
def test_folders_on_the_way_are_made(name: str, call: Call, finished: Path, tmp_path: Path) -> None:
    code, complaint = call(*(word.format(place="new/deep", run=finished) for word in BLOCKED[name]))
    assert code == 0, complaint
    assert any((tmp_path / "new" / "deep").iterdir())


def test_a_report_does_not_take_the_place_of_a_folder(call: Call, finished: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    code, complaint = call("report", finished, "--out", "folder")
    assert code == 2 and "--out" in complaint and "folder" in complaint and len(complaint.splitlines()) == 1
    assert not any((tmp_path / "folder").iterdir())
