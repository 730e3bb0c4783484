"""The bundle that Flower ships, the pins, and the entry points."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from flwr.supercore.object_ref import validate

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]


def _name(requirement: str) -> str:
    return re.split(r"[\[<>=!~; ]", requirement, maxsplit=1)[0].lower()


def _requirements() -> list[str]:
    extras = PYPROJECT["project"]["optional-dependencies"].values()
    return [*PYPROJECT["project"]["dependencies"], *(item for extra in extras for item in extra)]


def test_no_second_environment_is_built_per_run() -> None:
    # Trap 4: Flower runs `uv sync` in the installed bundle; it resolves whatever is not listed here, torch with CUDA
    # first.
    excluded = {item.lower() for item in PYPROJECT["tool"]["uv"]["exclude-dependencies"]}
    assert {_name(item) for item in _requirements()} == excluded


def test_every_dependency_is_pinned_in_the_constraints() -> None:
    pinned = {
        _name(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")
    }
    assert {_name(item) for item in _requirements()} <= pinned


@pytest.mark.parametrize("component", ["serverapp", "clientapp"])
def test_flower_finds_the_entry_points_by_reading_the_source(component: str) -> None:
    # Trap 10: the reference is checked by parsing; an attribute that only exists after an import is rejected.
    valid, reason = validate(PYPROJECT["tool"]["flwr"]["app"]["components"][component], True, ROOT)
    assert valid, reason


def test_the_bundle_holds_what_a_run_needs_and_no_command_report_study_or_test() -> None:
    patterns = PYPROJECT["tool"]["flwr"]["app"]["fab-include"]
    files = {path.relative_to(ROOT) for pattern in patterns for path in ROOT.glob(pattern)}
    on_disk = {
        p.relative_to(ROOT)
        for name in PACKAGES
        for p in (ROOT / name).rglob("*.py")
        if "__pycache__" not in p.parts and name != "fedlodrop"
    }
    assert {path for path in files if path.suffix == ".py"} == on_disk
    assert {p.relative_to(ROOT) for p in (ROOT / "conf").rglob("*.yaml")} <= files
    assert Path("tasks/data/commands.yaml") in files
    assert not [path for path in files if path.parts[0] == "tests"]
    assert sum((ROOT / path).stat().st_size for path in files) < 10 * 2**20
    # Flower leaves out what looks like a test, whatever the patterns say.
    assert not [path for path in files if path.name.startswith("test_") or path.name.endswith("_test.py")]


def test_every_study_is_in_the_wheel() -> None:
    shipped = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    studies = {f"studies/{path.name}": f"fedlodrop/study/studies/{path.name}" for path in ROOT.glob("studies/*.yaml")}
    assert len(studies) > 10 and {name: place for name, place in shipped.items() if "studies/" in name} == studies
