"""Where a run may write. Imports nothing heavy: a command asks before it loads PyTorch."""

import os
import tempfile
from pathlib import Path

from conf.compose import ConfigError
from conf.schema import Config

RESULTS_ROOT = "FEDLODROP_RESULTS"  # environment variable of the server: the folder below which every run must write


def results_folder(config: Config, base: Path, stamp: tuple[str, str]) -> Path:
    """Return the absolute results folder; a relative ``run.dir`` lies below FEDLODROP_RESULTS, else ``base``."""
    relative = Path(config.run.dir or f"results/{stamp[0]}/{stamp[1]}-{config.run.name}").expanduser()
    return contained((Path(os.environ.get(RESULTS_ROOT) or base) / relative).resolve(), "run.dir")


def writable(folder: Path, option: str) -> Path:
    """Return a folder that can be written, or made where it is missing; ConfigError if not. Nothing is made yet."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise ConfigError(
            f"{option}: expected a folder that can be written, found the file {existing}; choose another place"
        )
    try:
        tempfile.TemporaryFile(dir=existing).close()
    except OSError as error:
        raise ConfigError(f"{option}: {existing} cannot be written ({error.strerror}); choose another place") from error
    return folder


def writable_file(file: Path, option: str) -> Path:
    """Return a file that can be written, in a folder that is made where it is missing.

    ConfigError if its folder cannot be written, or it is a folder or a device: a new file would take its place.
    """
    if file.exists() and not file.is_file():
        raise ConfigError(f"{option}: expected the name of a file, found {file}, which is none; choose another name")
    writable(file.parent, option).mkdir(parents=True, exist_ok=True)
    return file


def contained(folder: Path, key: str) -> Path:
    """Return a folder below FEDLODROP_RESULTS, where that is set: whoever submits a run chooses the path."""
    allowed = os.environ.get(RESULTS_ROOT)
    if allowed and not folder.is_relative_to(Path(allowed).resolve()):
        raise ConfigError(
            f"{key} must lie below {Path(allowed).resolve()} ({RESULTS_ROOT} on the server), found {folder}"
        )
    return folder
