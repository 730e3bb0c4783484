"""Many runs from one command: Hydra expands and launches the jobs, this module runs, skips, resumes and records them."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import hydra
from flwr.common.logger import FLOWER_LOGGER as logger
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from conf.compose import CONF_DIR, ConfigError, compose_config, join_overrides, quoted, source_digest
from conf.schema import Config
from server_app.flower_engine import FlowerEngine, end_leftover
from server_app.results import write_json

FINISHED, FAILED, RUNNING = "finished", "failed", "running"
_MAX_DEATHS = 3  # a job that took its process down this often is given up, so that the others get their turn
_NAME_LENGTH = 60

_engine: FlowerEngine | None = None  # the one SuperLink of all jobs in this process
_exit_stack: ExitStack | None = None


def run_sweep(folder: Path, overrides: list[str], hydra_overrides: list[str], say: Callable[[str], None]) -> None:
    """Expand ``key=a,b,c`` overrides into jobs and run them one after the other (or as the chosen launcher does).

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
    global _exit_stack
    if _stale(folder):
        say("note: finished jobs here were made by other source code; delete their folders to run them again")
    arguments = [
        "fedlodrop sweep", "--multirun", *overrides, f"hydra.sweep.dir={quoted(folder)}", "hydra.sweep.subdir=.",
        "hydra.output_subdir=null", "hydra/job_logging=none", "hydra/hydra_logging=none", *hydra_overrides,
    ]  # fmt: skip
    application = hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="config")(run_job)
    with (
        _only_one(folder),
        ExitStack() as _exit_stack,
        patch.object(sys, "argv", arguments),
    ):  # Hydra reads the command line and nothing else
        if end_leftover(folder):  # before any job is looked at: it may still have written to one
            say("ended the SuperLink that an interrupted sweep had left behind")
        application()
    _exit_stack = None


def run_job(_: DictConfig) -> float:
    """Run one job of a sweep (called by Hydra's launcher, possibly in a process of its own).

    Returns
    -------
    float
        The primary metric on the validation data at the best round, for sweepers that search; NaN if the job failed.
    """
    hydra_config = HydraConfig.get()
    items, sweep_folder = list(hydra_config.overrides.task), Path(hydra_config.sweep.dir)
    sweep = json.loads((sweep_folder / "sweep.json").read_text())
    varied = [item for item in items if item.split("=", 1)[0] in sweep["varied"]]
    folder = sweep_folder / job_name(items, varied)
    total = f"/{sweep['jobs']}" if sweep["jobs"] else ""
    position = f"job {int(hydra_config.job.num) + 1}{total} {' '.join(varied)}"
    before = _record(folder)
    if (folder / "summary.json").exists():
        _complete(folder, items, before)
        print(f"{position}: already finished", flush=True)
        return _objective(folder)
    deaths = before.get("deaths", 0) + (before.get("status") == RUNNING)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "failure.json").unlink(missing_ok=True)
    if deaths >= _MAX_DEATHS:
        return _failed(folder, items, deaths, position, f"the process died {deaths} times during this job")
    write_json(folder / "job.json", {"overrides": _pairs(items), "status": RUNNING, "deaths": deaths, "message": None})
    started = time.perf_counter()
    try:
        message = run_federation(items, folder)
    except Exception as error:  # whatever ends one job, the others go on
        message = str(error) if isinstance(error, ConfigError) else f"{type(error).__name__}: {error}"
    if message is not None:
        return _failed(folder, items, deaths, position, message)
    write_json(folder / "job.json", {"overrides": _pairs(items), "status": FINISHED, "deaths": deaths, "message": None})
    print(f"{position}: {_result(folder)} in {time.perf_counter() - started:.1f} s", flush=True)
    return _objective(folder)


def _complete(folder: Path, items: list[str], before: dict[str, Any]) -> None:
    """Mend what a kill between the last round and the job's own record left open."""
    if before.get("status") != FINISHED:
        write_json(folder / "job.json", {"overrides": _pairs(items), "status": FINISHED, "deaths": 0, "message": None})
    if not (folder / "report.html").exists():
        from server_app.report import write_report

        write_report([folder], folder / "report.html")


def job_name(items: list[str], varied: list[str]) -> str:
    """Return the folder of a job: what is varied in words, and a digest of all its overrides that tells any two apart."""
    digest = hashlib.sha256("\0".join(sorted(items)).encode()).hexdigest()[:8]
    words = [f"{key.rsplit('.', 1)[-1]}-{value}" for key, value in _pairs(varied).items()]
    readable = re.sub(r"[^A-Za-z0-9.+-]+", "_", "_".join(words)).strip("_.-")
    return f"{readable[:_NAME_LENGTH]}-{digest}"


def jobs(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the folder and the record of every job of a sweep, in the order of their names."""
    for path in sorted(folder.glob("*/job.json")):
        yield path.parent, json.loads(path.read_text())


def run_federation(items: list[str], folder: Path) -> str | None:
    """Run one federation; return why it failed, or None."""
    given = {item.split("=", 1)[0] for item in items}
    defaults = [] if "run.engine" in given else ["run.engine=local"]
    if os.environ.get("LOKY_WORKER") and "run.eval_threads" not in given:
        defaults.append("run.eval_threads=1")  # the other jobs of this machine are at work as well
    place = f"run.resume={quoted(folder)}" if (folder / "checkpoint").exists() else f"run.dir={quoted(folder)}"
    overrides = join_overrides([*defaults, *items, place])
    config = compose_config(overrides)
    with _log_to(folder / "job.log"):
        code = _run_flower(config, overrides, folder) if config.run.engine == "flower" else _run_local(config, overrides)
    failure = folder / "failure.json"
    if failure.exists():
        return str(json.loads(failure.read_text())["message"])
    if code or not (folder / "summary.json").exists():
        return f"the run ended with code {code} and no results; see {folder / 'job.log'}"
    return None


def _run_local(config: Config, overrides: str) -> int:
    from server_app.local_grid import run_in_process

    return run_in_process(overrides, config.network.num_devices)


def _run_flower(config: Config, overrides: str, folder: Path) -> int:
    """Hand a job to the sweep's SuperLink, which the first such job starts and the sweep's end stops."""
    global _engine
    if _exit_stack is None:
        raise ConfigError("run.engine=flower shares one SuperLink between the jobs; use it with hydra/launcher=basic")
    if _engine is None:
        engine = _exit_stack.enter_context(FlowerEngine(folder.parent / "flower.log"))
        _exit_stack.callback(_forget_engine)
        engine.wait_ready()
        _engine = engine
    run_id = _engine.submit(overrides, num_devices=config.network.num_devices, client_cpus=config.run.client_cpus)
    return 0 if _engine.wait(run_id, folder, taken_down=True) == "finished:completed" else 1


def _forget_engine() -> None:
    global _engine
    _engine = None


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Hold the sweep's folder: two sweeps in one folder would write into each other's jobs."""
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(f"another sweep is at work in {folder}; wait for it or give another --dir") from None
        yield


@contextmanager
def _log_to(path: Path) -> Iterator[None]:
    """Send what Flower logs during a job to a file; the sweep prints one line per job."""
    handler = logging.FileHandler(path)
    saved, logger.handlers = logger.handlers, [handler]
    try:
        yield
    finally:
        logger.handlers = saved
        handler.close()


def _failed(folder: Path, items: list[str], deaths: int, position: str, message: str) -> float:
    write_json(folder / "job.json", {"overrides": _pairs(items), "status": FAILED, "deaths": deaths, "message": message})
    print(f"{position}: failed: {message}", flush=True)
    return float("nan")


def _record(folder: Path) -> dict[str, Any]:
    path = folder / "job.json"
    return dict(json.loads(path.read_text())) if path.exists() else {}


def _pairs(items: list[str]) -> dict[str, str]:
    return {key: value for key, value in (item.split("=", 1) for item in items)}


def _objective(folder: Path) -> float:
    summary = json.loads((folder / "summary.json").read_text())
    best = summary["best"]
    return float(best["validation"][summary["primary_metric"]]) if best else float("nan")


def _result(folder: Path) -> str:
    summary = json.loads((folder / "summary.json").read_text())
    metric = summary["primary_metric"]
    return f"{metric} {summary['final']['eval'][metric]:.3f}" if summary["final"] else "no round evaluated"


def _stale(folder: Path) -> bool:
    """Whether a finished job of this folder was made by other source code."""
    now = source_digest().hex()
    environments = [path / "environment.json" for path, record in jobs(folder) if record["status"] == FINISHED]
    return any(path.exists() and json.loads(path.read_text()).get("source") != now for path in environments)
