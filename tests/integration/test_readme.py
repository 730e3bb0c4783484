"""Every command that the README and the docs show is one that exists."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from conf.compose import compose_config, join_overrides

ROOT = Path(__file__).resolve().parents[2]
TEXTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def _commands(program: str) -> list[str]:
    """Return the lines of code blocks that call a program, without what is said about them."""
    begin, found = re.compile(rf"(\.venv/bin/)?(?:{program})(?=[ /]|$)"), []
    for path in TEXTS:
        for block in re.findall(r"```[a-z]*\n(.*?)```", path.read_text(), flags=re.S):
            found += [line.split("  #")[0].strip() for line in block.splitlines() if begin.match(line)]
    return found


@pytest.mark.parametrize("command", _commands("fedlodrop run"))
def test_overrides_in_the_docs_compose(command: str) -> None:
    plain = re.sub(r" --config[ =]\S+", "", command)  # the reader's own file
    words = [word for word in shlex.split(plain)[2:] if word != "--dry-run"]
    compose_config(join_overrides(words))


def test_flwr_commands_in_the_readme_carry_valid_overrides() -> None:
    commands = _commands("flwr run")
    assert len(commands) >= 2
    for command in commands:
        words = shlex.split(command)
        if "-c" in words:
            key, value = words[words.index("-c") + 1].split("=", 1)
            assert key == "overrides"
            compose_config(value.strip('"'))


@pytest.mark.parametrize("target", sorted({line.split()[1] for line in _commands("make")}))
def test_make_targets_exist(target: str) -> None:
    assert re.search(rf"^{re.escape(target)}:", (ROOT / "Makefile").read_text(), flags=re.M)


def test_commands_of_the_program_exist() -> None:
    from fedlodrop.cli import cli

    known = {
        command.name or command.callback.__name__.replace("_", "-")
        for command in cli.registered_commands
        if command.callback
    }
    words = {line.split("fedlodrop ", 1)[1].split()[0] for line in _commands("fedlodrop")}
    used = {word for word in words if not word.startswith("--")}
    assert used and used <= known
