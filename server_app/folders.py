"""Where a run may write. Imports nothing heavy: a command asks before it loads PyTorch."""

from __future__ import annotations

import os
from pathlib import Path

from conf.compose import ConfigError
from conf.schema import Config

RESULTS_ROOT = "FEDLODROP_RESULTS"  # environment variable of the server: the folder below which every run must write


def results_folder(config: Config, base: Path, stamp: tuple[str, str]) -> Path:
    """Return the absolute results folder; a relative ``run.dir`` lies below FEDLODROP_RESULTS, else ``base``."""
    relative = Path(config.run.dir) if config.run.dir else Path("results") / stamp[0] / f"{stamp[1]}-{config.run.name}"
    allowed = os.environ.get(RESULTS_ROOT)
    return contained((Path(allowed or base) / relative).resolve(), "run.dir")


def contained(folder: Path, key: str) -> Path:
    """Return a folder that a run may write to.

    Raises
    ------
    ConfigError
        If FEDLODROP_RESULTS is set and the folder does not lie below it: whoever submits a run chooses the path.
    """
    allowed = os.environ.get(RESULTS_ROOT)
    if allowed and not folder.is_relative_to(Path(allowed).resolve()):
        raise ConfigError(f"{key} must lie below {Path(allowed).resolve()} ({RESULTS_ROOT} on the server), found {folder}")
    return folder
