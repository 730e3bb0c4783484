"""Where a run may write, and whether it may begin or go on there.

Imports nothing heavy: a command asks before it loads PyTorch.
"""

import json
import os
import tempfile
from dataclasses import asdict
from pathlib import Path

from conf.compose import ConfigError, read_config
from conf.ranges import leaves
from conf.schema import Config
from server_app.checkpoint import has_checkpoint
from server_app.results import count_rounds, out_of_patience, read_rounds

AUTO = "auto"  # run.resume: go on if run.dir holds a checkpoint, else begin
RESULTS_ROOT = "FEDLODROP_RESULTS"  # environment variable of the server: the folder below which every run must write
# How long a run is, and where and how it is computed and shown; nothing that decides what is computed.
_FREE_OF_RUN = (
    "num_rounds patience name dir resume engine client_cpus client_gpus eval_threads node_timeout_s round_timeout_s"
)
_FREE = (*(f"run.{name}" for name in _FREE_OF_RUN.split()), "training.prefix_cache_", "tracking.")
_RATES = ("training.lr", "training.head_lr", "strategy.server_lr")  # may be lowered after a divergence
_DIVERGED = 4  # the exit code in failure.json, see server_app.app


def results_folder(config: Config, base: Path, stamp: tuple[str, str]) -> Path:
    """Return the absolute folder of a run, new or continued; ConfigError if it is outside of FEDLODROP_RESULTS.

    Relative paths lie below FEDLODROP_RESULTS, else ``base``: whoever submits a run chooses the path.
    """
    key, given = "run.dir", config.run.dir or f"results/{stamp[0]}/{stamp[1]}-{config.run.name}"
    if config.run.resume and config.run.resume != AUTO:
        key, given = "run.resume", config.run.resume
    allowed = os.environ.get(RESULTS_ROOT)
    folder = (Path(allowed or base) / Path(given).expanduser()).resolve()
    if allowed and not folder.is_relative_to(Path(allowed).resolve()):
        raise ConfigError(f"{key} must lie below {allowed} ({RESULTS_ROOT} on the server), found {folder}")
    return folder


def writable(folder: Path, option: str) -> Path:
    """Return a folder that can be written, or made where it is missing; ConfigError if not. Nothing is made yet."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise ConfigError(f"{option}: expected a folder, found the file {existing}; choose another place")
    try:
        tempfile.TemporaryFile(dir=existing).close()
    except OSError as error:
        raise ConfigError(f"{option}: {existing} cannot be written ({error.strerror}); choose another place") from error
    return folder


def writable_file(file: Path, option: str) -> Path:
    """Return a file that can be written, its folder made where missing; ConfigError also for a folder or a device."""
    if file.exists() and not file.is_file():
        raise ConfigError(f"{option}: expected the name of a file, found {file}, which is none; choose another name")
    writable(file.parent, option).mkdir(parents=True, exist_ok=True)
    return file


def check_start(folder: Path, config: Config) -> None:
    """Refuse (ConfigError) to write a new run over another one, or to go on with settings that change the results."""
    done = count_rounds(folder)
    if not config.run.resume and done:
        raise ConfigError(f"{folder} already holds a run; choose another run.dir, or: fedlodrop resume {folder}")
    if config.run.resume and done > 1 and not has_checkpoint(folder):  # the first checkpoint follows the first record
        raise ConfigError(f"{folder} holds {done} rounds and no checkpoint; restore its checkpoint/ or start a new run")
    if not config.run.resume or not has_checkpoint(folder):
        return
    old, new = leaves(asdict(read_config(folder / "config.yaml"))), leaves(asdict(config))
    lowered = _RATES if _diverged(folder) else ()
    changed = [
        f"{key} ({old.get(key)} -> {new.get(key)})"
        for key in dict.fromkeys([*old, *new])
        if old.get(key) != new.get(key) and not key.startswith(_FREE) and key not in lowered
    ]
    if changed:
        raise ConfigError(
            f"the rounds in {folder} were made with other settings: {', '.join(changed)}; going on may change "
            "run.num_rounds, run.patience, run.engine and tracking: leave the others as they were, or start a new run"
        )
    if config.run.num_rounds < done:
        asked = config.run.num_rounds
        raise ConfigError(f"run.num_rounds must be at least the {done} rounds that are done, found {asked}")


def _diverged(folder: Path) -> bool:
    path = folder / "failure.json"
    return path.exists() and json.loads(path.read_text(encoding="utf-8"))["exit_code"] == _DIVERGED


def is_finished(folder: Path, config: Config) -> bool:
    """Whether a run that is to be continued has made all its rounds, or ended early, and written its results."""
    if not config.run.resume or not (path := folder / "summary.json").exists():
        return False
    summary = json.loads(path.read_text(encoding="utf-8"))
    stopped = out_of_patience(read_rounds(folder), summary["primary_metric"], config.run.patience)
    return bool(stopped or summary["rounds_done"] == config.run.num_rounds)


def saved_overrides(folder: Path) -> str:
    """Return the overrides with which a run was started or last continued; ConfigError if none has begun there."""
    if not folder.is_dir():
        raise ConfigError(f"expected the folder of a run, found none at {folder}")
    if not (path := folder / "environment.json").exists():
        raise ConfigError(f"no run has begun in {folder}; start it with: fedlodrop run run.dir={folder} ...")
    return str(json.loads(path.read_text(encoding="utf-8"))["overrides"])
