"""Many runs from one command: a grid goes to the runner, a search to Hydra's sweepers, whose every job the runner works off."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from conf.compose import CONF_DIR, expand_sweep, quoted, source_digest, swept
from fedlodrop.study.runner import (
    FINISHED,
    Task,
    admit,
    is_finished,
    outcome,
    pairs,
    run_tasks,
    shared_superlink,
    tasks_of,
    work,
)
from server_app.engines.flower import end_leftover
from server_app.results import claimed

_NAME_LENGTH = 60


def run_sweep(folder: Path, overrides: list[str], hydra_overrides: list[str], say: Callable[[str], None]) -> None:
    """Run all combinations of ``key=a,b,c`` overrides, or what a sweeper of Hydra chooses.

    Parameters
    ----------
    folder : Path
        Gets one folder per job; finished jobs that are already there are not run again.
    overrides : list of str
        Hydra overrides with sweeps, checked by name.
    hydra_overrides : list of str
        Hydra's own settings, e.g. ``hydra/launcher=joblib``.
    say : callable
        Takes one line of progress.
    """
    _note_stale(folder, say)
    workers = _workers(hydra_overrides)
    if workers is None:
        _run_by_hydra(folder, overrides, hydra_overrides, say)
    else:
        varied = swept(overrides)
        run_tasks([_task(folder, items, varied) for items in expand_sweep(overrides)], folder, workers, say)


def _workers(hydra_overrides: list[str]) -> int | None:
    """Return how many jobs run side by side (0: one at a time, here), or None where Hydra's own plugins do the work."""
    chosen = pairs(item.lstrip("+") for item in hydra_overrides)
    launcher, sweeper = chosen.pop("hydra/launcher", "basic"), chosen.pop("hydra/sweeper", "basic")
    count = int(chosen.pop("hydra.launcher.n_jobs", "0"))
    if chosen or sweeper != "basic" or launcher not in ("basic", "joblib"):
        return None
    return 0 if launcher == "basic" else count if count > 0 else os.cpu_count() or 1


def _run_by_hydra(folder: Path, overrides: list[str], hydra_overrides: list[str], say: Callable[[str], None]) -> None:
    arguments = [
        "fedlodrop sweep",
        "--multirun",
        *overrides,
        f"hydra.sweep.dir={quoted(folder)}",
        "hydra.sweep.subdir=.",
        "hydra.output_subdir=null",
        "hydra/job_logging=none",
        "hydra/hydra_logging=none",
        *hydra_overrides,
    ]
    application = hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="config")(run_job)
    with claimed(folder), shared_superlink(), patch.object(sys, "argv", arguments):  # Hydra reads nothing else
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
    if not is_finished(task) and admit(task):
        work(task)
    print(f"job {int(hydra_config.job.num) + 1} {task.label}: {outcome(task.folder)}", flush=True)
    summary = json.loads((task.folder / "summary.json").read_text()) if is_finished(task) else {}
    best = summary.get("best")
    return float(best["validation"][summary["primary_metric"]]) if best else float("nan")


def _task(folder: Path, items: list[str], varied: list[str]) -> Task:
    chosen = [item for item in items if item.split("=", 1)[0] in varied]
    return Task(folder / job_name(items, chosen), tuple(items), " ".join(chosen))


def job_name(items: list[str], varied: list[str]) -> str:
    """Return the folder of a job: what is varied in words, and a digest of all its overrides that tells any two apart."""
    digest = hashlib.sha256("\0".join(sorted(items)).encode()).hexdigest()[:8]
    words = [f"{key.rsplit('.', 1)[-1]}-{value}" for key, value in pairs(varied).items()]
    readable = re.sub(r"[^A-Za-z0-9.+-]+", "_", "_".join(words)).strip("_.-")
    return f"{readable[:_NAME_LENGTH]}-{digest}"


def _note_stale(folder: Path, say: Callable[[str], None]) -> None:
    """Say when a finished job of this folder was made by other source code."""
    now = source_digest().hex()
    environments = [path / "environment.json" for path, record in tasks_of(folder) if record["status"] == FINISHED]
    if any(path.exists() and json.loads(path.read_text()).get("source") != now for path in environments):
        say("note: finished jobs here were made by other source code; delete their folders to run them again")
