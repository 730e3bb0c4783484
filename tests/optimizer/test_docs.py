"""What docs/formulation.md says can be run and found."""

import os
import pkgutil
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "formulation.md").read_text(encoding="utf-8")


def test_commands_run(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    commands = [line for block in re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL) for line in block.splitlines()]
    assert commands
    for command in commands:
        words = shlex.split(command)
        assert words[0] == "python"
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, *words[1:]], cwd=tmp_path, env=environment, check=True, timeout=60)


@pytest.mark.parametrize("name", sorted(set(re.findall(r"tests/optimizer/((?:\w+/)?test_\w+\.py)", TEXT))))
def test_named_tests_exist(name: str) -> None:
    assert (ROOT / "tests" / "optimizer" / name).exists()


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`((?:optimizer|wireless)\.[\w.]+)`", TEXT))))
def test_named_modules_and_functions_exist(name: str) -> None:
    assert pkgutil.resolve_name(name) is not None


@pytest.mark.parametrize("name", sorted(set(re.findall(r"test_\w+(?=`)", TEXT))))
def test_named_test_functions_exist(name: str) -> None:
    assert any(
        f"def {name}(" in path.read_text(encoding="utf-8") for path in (ROOT / "tests" / "optimizer").rglob("*.py")
    )
