"""Sweeps: a grid goes to the runner, a search to Hydra's sweepers, whose every job the runner does."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import patch

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from omegaconf import DictConfig

from conf.compose import (
    CONF_DIR,
    FILES,
    ConfigError,
    check_files,
    check_names,
    compose_config,
    expand_sweep,
    local_path,
    quoted,
    readable,
    source_digest,
    swept,
)
from fedlodrop.study import runner
from server_app.folders import writable
from server_app.results import claimed, write_json

if TYPE_CHECKING:
    import pandas as pd

_NAME_LENGTH = 60
_OWN = ("hydra.launcher.", "hydra.sweeper.")  # settings of Hydra's that a sweep honours, besides the two groups
_PACKAGES = {"joblib": "hydra-joblib-launcher", "optuna": "'fedlodrop[optuna]'"}


@dataclass(frozen=True, eq=False)
class Sweep:
    """The jobs of a sweep: one row per job with its overrides, its summary (names joined with dots) and its status."""

    folder: Path
    jobs: pd.DataFrame = field(repr=False)


def sweep(overrides: Sequence[str], folder: Path | None, say: Callable[[str], None]) -> Sweep:
    """Run all combinations of ``key=a,b,c`` overrides, or what a sweeper of Hydra chooses; finished jobs stay.

    Raises
    ------
    ConfigError
        If an override, a file or a plugin is missing; nothing was started.
    """
    own = [item for item in overrides if item.lstrip("+").startswith("hydra")]
    items = [readable(item) for item in overrides if item not in own and not item.startswith("run.dir=")]
    check_names(items, sweep=True)
    given = [item.split("=", 1)[1] for item in overrides if item.startswith(("run.dir=", "hydra.sweep.dir="))]
    if len(given) + (folder is not None) > 1:
        raise ConfigError("--dir, hydra.sweep.dir and run.dir all name the sweep's folder; expected one of them")
    own = [item for item in own if not item.startswith("hydra.sweep.dir=")]
    _check_own(own)
    chosen = folder or (Path(given[-1].strip("'\"")) if given else _default_folder([*items, *own]))
    target = writable(chosen.expanduser().resolve(), "--dir")
    searching = any(item.startswith("hydra/sweeper=") for item in own)
    check_files([items] if searching else expand_sweep(items))
    items = [_absolute(item) for item in items]
    count = None if searching else len(expand_sweep(items))
    target.mkdir(parents=True, exist_ok=True)
    description = {"overrides": items, "hydra": own, "varied": swept(items), "jobs": count}
    write_json(target / "sweep.json", description)
    say(f"{count or 'a search for the best'} job(s) in {target}")
    _note_stale(target, say)
    from fedlodrop.study.tables import write_jobs

    try:
        _run(target, items, [*_launcher_defaults(own), *own], say)
    finally:  # also after an interruption: what is there can be looked at
        table = write_jobs(target)
    return Sweep(target, table)


def _check_own(own: list[str]) -> None:
    """Refuse what a sweep does not honour of Hydra's own settings, and plugins that are not installed."""
    for item in own:
        key, _, value = item.lstrip("+").partition("=")
        if key in ("hydra/launcher", "hydra/sweeper"):
            Plugins.instance()  # plugins register what they offer when they are imported
            known = sorted(name.removesuffix(".yaml") for name in ConfigStore.instance().list(key))
            if value not in known:
                mend = f"; for {value}: pip install {_PACKAGES[value]}" if value in _PACKAGES else ""
                expected = f"{key} must be one of {', '.join(known)}"
                raise ConfigError(f"{expected}, found {value!r}, which is not installed{mend}")
        elif not key.startswith(_OWN):
            raise ConfigError(
                f"{key} is not honoured by a sweep; of Hydra's own keys these are: hydra.sweep.dir (as --dir), "
                "hydra/launcher, hydra/sweeper, hydra.launcher.*, hydra.sweeper.*"
            )


def _default_folder(overrides: list[str]) -> Path:
    """Return the folder of a sweep that names none: the same for the same overrides, whatever their order."""
    return Path("results") / f"sweep-{_digest(overrides)}"


def _digest(overrides: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(sorted(overrides)).encode()).hexdigest()[:8]


def _absolute(item: str) -> str:
    """Make the path in ``key=path`` absolute where it names a local file or folder: jobs may run elsewhere."""
    key, value = item.split("=", 1)
    found = local_path(value.strip("'\"")) if key in FILES else None
    return f"{key}={quoted(found)}" if found else item


def _launcher_defaults(own: list[str]) -> list[str]:
    """Return how many jobs joblib may run side by side, unless it was said: as many as the cores carry."""
    if "hydra/launcher=joblib" not in own:
        return []
    given = [item.split("=", 1)[1] for item in own if item.startswith("hydra.launcher.n_jobs=")]
    if given and not given[-1].lstrip("-").isdecimal():
        raise ConfigError(f"hydra.launcher.n_jobs: expected a number of jobs, found {given[-1]!r}")
    cores = (os.cpu_count() or 1) // compose_config("").training.num_threads
    return [] if given else [f"hydra.launcher.n_jobs={max(1, cores)}"]


def _run(folder: Path, overrides: list[str], own: list[str], say: Callable[[str], None]) -> None:
    chosen = runner.pairs(item.lstrip("+") for item in own)
    launcher, sweeper = chosen.pop("hydra/launcher", "basic"), chosen.pop("hydra/sweeper", "basic")
    count = int(chosen.pop("hydra.launcher.n_jobs", "0"))
    if chosen or sweeper != "basic" or launcher not in ("basic", "joblib"):
        _run_by_hydra(folder, overrides, own, say)
        return
    workers = 0 if launcher == "basic" else count if count > 0 else os.cpu_count() or 1
    varied = swept(overrides)
    runner.run_tasks([_task(folder, items, varied) for items in expand_sweep(overrides)], folder, workers, say)


def _run_by_hydra(folder: Path, overrides: list[str], own: list[str], say: Callable[[str], None]) -> None:
    """Let Hydra's plugins choose or launch the jobs."""
    from server_app.engines.flower import end_leftover

    quiet = ["hydra.sweep.subdir=.", "hydra.output_subdir=null", "hydra/job_logging=none", "hydra/hydra_logging=none"]
    arguments = ["fedlodrop sweep", "--multirun", *overrides, f"hydra.sweep.dir={quoted(folder)}", *quiet, *own]
    application = hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="config")(run_job)
    with claimed(folder), runner.shared_superlink(), patch.object(sys, "argv", arguments):  # Hydra reads nothing else
        if end_leftover(folder):
            say("ended the SuperLink that an interrupted sweep had left behind")
        application()


def run_job(_: DictConfig) -> float:
    """Run one job that Hydra launches (called by Hydra's launcher, possibly in a process of its own).

    Returns
    -------
    float
        The primary metric on the validation data at the best round; NaN if the job failed.
    """
    hydra_config = HydraConfig.get()
    folder = Path(hydra_config.sweep.dir)
    task = _task(folder, list(hydra_config.overrides.task), json.loads((folder / "sweep.json").read_text())["varied"])
    if not runner.is_finished(task) and runner.admit(task):
        runner.work(task)
    print(f"job {int(hydra_config.job.num) + 1} {task.label}: {runner.outcome(task.folder)}", flush=True)
    summary = json.loads((task.folder / "summary.json").read_text()) if runner.is_finished(task) else {}
    best = summary.get("best")
    return float(best["validation"][summary["primary_metric"]]) if best else float("nan")


def _task(folder: Path, items: list[str], varied: list[str]) -> runner.Task:
    chosen = [item for item in items if item.split("=", 1)[0] in varied]
    return runner.Task(folder / job_name(items, chosen), tuple(items), " ".join(chosen))


def job_name(items: list[str], varied: list[str]) -> str:
    """Return the folder of a job: what is varied in words, and a digest of all overrides that tells any two apart."""
    words = [f"{key.rsplit('.', 1)[-1]}-{value}" for key, value in runner.pairs(varied).items()]
    name = re.sub(r"[^A-Za-z0-9.+-]+", "_", "_".join(words)).strip("_.-")
    return f"{name[:_NAME_LENGTH]}-{_digest(items)}"


def _note_stale(folder: Path, say: Callable[[str], None]) -> None:
    """Say when a finished job of this folder was made by other source code."""
    now = source_digest().hex()
    done = [path for path, record in runner.tasks_of(folder) if record["status"] == runner.FINISHED]
    made = [json.loads(path.read_text()).get("source") for p in done if (path := p / "environment.json").exists()]
    if set(made) - {now}:
        say("note: finished jobs here were made by other source code; delete their folders to run them again")
