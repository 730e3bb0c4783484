"""May a run go on from its `server_app.checkpoint`: what it was begun with, what may be changed, what is left to do."""

import json
from dataclasses import asdict
from pathlib import Path

from conf.compose import ConfigError, read_config
from conf.ranges import leaves
from conf.schema import Config
from server_app.checkpoint import has_checkpoint
from server_app.results import count_rounds, out_of_patience, read_rounds

# How long a run is, and where and how it is computed and shown; nothing that decides what is computed.
_FREE_OF_RUN = (
    "num_rounds patience name dir resume engine client_cpus client_gpus eval_threads node_timeout_s round_timeout_s"
)
_FREE = (*(f"run.{name}" for name in _FREE_OF_RUN.split()), "training.prefix_cache_", "tracking.")
_RATES = ("training.lr", "training.head_lr", "strategy.server_lr")  # may be lowered after a divergence
_DIVERGED = 4  # the exit code in failure.json, see server_app.app


def check_start(folder: Path, config: Config) -> None:
    """Refuse (ConfigError) to write a new run over another one, or to go on with settings that change the results."""
    done = count_rounds(folder)
    if not config.run.resume and done:
        raise ConfigError(
            f"{folder} already holds a run; choose another run.dir, or continue it: fedlodrop resume {folder}"
        )
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
        raise ConfigError(
            f"run.num_rounds must be at least the {done} rounds that are done, found {config.run.num_rounds}"
        )


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
        raise ConfigError(
            f"no run has begun in {folder}; start it with: fedlodrop run run.dir={folder} and its settings"
        )
    return str(json.loads(path.read_text(encoding="utf-8"))["overrides"])
