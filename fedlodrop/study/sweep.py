"""Sweeps: all combinations of several values, each a job of the runner."""

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from conf.compose import (
    FILES,
    ConfigError,
    check_files,
    check_names,
    expand_sweep,
    quoted,
    readable,
    source_digest,
    swept,
)
from conf.places import local_path
from fedlodrop.study.runner import FINISHED, Task, run_tasks, status
from server_app.folders import writable

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class Sweep:
    """The jobs of a sweep: one row per job with its overrides, its summary (names joined with dots) and its status."""

    folder: Path
    jobs: "pd.DataFrame" = field(repr=False)


def sweep(overrides: Sequence[str], folder: Path | None, jobs: int, say: Callable[[str], None]) -> Sweep:
    """Run all combinations of ``key=a,b,c`` overrides, ``jobs`` at a time (0: in this process); finished jobs stay.

    Raises ConfigError if an override or a file is missing; nothing was started.
    """
    for item in overrides:
        if item.lstrip("+").startswith(("hydra.", "hydra/", "run.dir=")):
            raise ConfigError(f"{item.partition('=')[0]}: a sweep takes none; see --dir and --jobs")
    items = [readable(item) for item in overrides]
    check_names(items, sweep=True)
    combinations = expand_sweep(items)
    check_files(combinations)
    target = writable((folder or Path("results") / f"sweep-{_digest(items)}").expanduser().resolve(), "--dir")
    items = [_absolute(item) for item in items]
    target.mkdir(parents=True, exist_ok=True)
    varied = swept(items)
    say(f"{len(combinations)} job(s) in {target}")
    done = [path for path in target.glob("*/environment.json") if status(path.parent) == FINISHED]
    if {json.loads(path.read_text()).get("source") for path in done} - {source_digest().hex()}:
        say("note: finished jobs here were made by other source code; delete their folders to run them again")
    from fedlodrop.study.figures import draw_jobs
    from fedlodrop.study.tables import swept_keys, write_jobs

    try:
        tasks = []
        for job in expand_sweep(items):
            chosen = [item for item in job if item.split("=", 1)[0] in varied]
            tasks.append(Task(target / job_name(job, chosen), tuple(job), " ".join(chosen)))
        run_tasks(tasks, target, jobs, say)
    finally:  # also after an interruption: what is there can be looked at
        table = write_jobs(target)
        if "primary_metric" in table and table["primary_metric"].notna().any():
            draw_jobs(table, target / "jobs.png", [name for name in swept_keys(table) if name != "run.seed"])
    return Sweep(target, table)


def _digest(overrides: Sequence[str]) -> str:
    """Return 8 characters that are the same for the same overrides, whatever their order."""
    return hashlib.sha256("\0".join(sorted(overrides)).encode()).hexdigest()[:8]


def _absolute(item: str) -> str:
    """Make the path in ``key=path`` absolute where it names a local file or folder: jobs may run elsewhere."""
    key, value = item.split("=", 1)
    found = local_path(value.strip("'\"")) if key in FILES else None
    return f"{key}={quoted(found)}" if found else item


def job_name(items: list[str], varied: list[str]) -> str:
    """Return the folder of a job: what is varied in words, and a digest of all overrides that tells any two apart."""
    chosen = dict(item.split("=", 1) for item in varied)
    words = "_".join(f"{key.rsplit('.', 1)[-1]}-{value}" for key, value in chosen.items())
    return f"{re.sub(r'[^A-Za-z0-9.+-]+', '_', words).strip('_.-')[:60]}-{_digest(items)}"
