"""What all commands share: where they print, how they fail, and the arguments they have in common."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from conf.compose import ConfigError

EXIT_FAILED, EXIT_BAD_INPUT, EXIT_NOBODY, EXIT_INTERRUPTED = 1, 2, 3, 130

out, err = Console(), Console(stderr=True)

Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Configuration overrides, e.g. allocator=equal network.num_devices=20", show_default=False),
]
RunFolder = Annotated[Path, typer.Argument(help="Folder of a run")]


def say(line: str) -> None:
    """Print one line as it is: no colours, no wrapping, no markup."""
    out.print(line, highlight=False, markup=False, soft_wrap=True)


def complain(message: str) -> None:
    """Print one line about what went wrong on standard error."""
    err.print(f"fedlodrop: {message}", style="red", highlight=False, markup=False, soft_wrap=True)


def fail(message: str, code: int = EXIT_FAILED) -> NoReturn:
    """Complain and end the command with an exit code."""
    complain(message)
    raise typer.Exit(code)


def program() -> str:
    """Return how this command was called, for the commands that are suggested."""
    called = Path(sys.argv[0])
    if called.name != "fedlodrop" or shutil.which("fedlodrop") == str(called):
        return "fedlodrop"
    return os.path.relpath(called)


def run_folder(folder: Path) -> Path:
    """Return the absolute path of a run's folder.

    Raises
    ------
    ConfigError
        If it holds no rounds.jsonl.
    """
    if not (folder / "rounds.jsonl").exists():
        raise ConfigError(f"expected the folder of a run with rounds.jsonl, found none in {folder}")
    return folder.resolve()
