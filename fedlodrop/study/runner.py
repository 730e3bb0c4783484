"""The runner of many runs: it runs, skips, resumes and records the tasks of `sweep`, `compare` and `calibrate`.

A task's state is its folder: finished means that summary.json is there, job.json says the rest.
"""

import functools
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from joblib.externals.loky import ProcessPoolExecutor

from conf.compose import ConfigError, compose_config, join_overrides, quoted
from conf.places import make_importable
from fedlodrop.runs import forget_data, process_as_found
from server_app.engines.flower import FlowerEngine, end_leftover
from server_app.results import claimed, write_json

logger = logging.getLogger("flwr")
FINISHED, FAILED, RUNNING, INTERRUPTED = "finished", "failed", "running", "interrupted"
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")

SuperLink = Callable[[], FlowerEngine]  # starts the one SuperLink of all runs in this process when it is first asked


class RunnerError(RuntimeError):
    """Runs cannot be started here; the message is one line for the user."""


@dataclass(frozen=True)
class Task:
    """One run of many."""

    folder: Path
    overrides: tuple[str, ...]  # everything but run.dir
    label: str  # its name in a line of progress


Say = Callable[[str], None]  # prints a line
Tell = Callable[[Task], None]  # says how a task ended


def run_tasks(tasks: Iterable[Task], folder: Path, workers: int, say: Say, defaults: Sequence[str] = ()) -> None:
    """Run every task that is not finished yet; a failed one is recorded and the others go on.

    Tasks of equal folders run once. ``folder`` lies above all of theirs; nobody else runs tasks in it meanwhile.
    ``workers`` processes of one thread work side by side and keep the base model and the data between runs; with 0
    everything runs in this process. The overrides of a task win over ``defaults``.

    Raises StorageError if another command runs tasks in the folder, RunnerError if worker processes die before they
    begin a run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with claimed(folder):
        if end_leftover(folder):  # before any run is looked at: it may still have written to one
            say("ended the SuperLink that an interrupted command had left behind")
        named = {task.folder: task for task in tasks}
        waiting = {task.folder: task for task in named.values() if not is_finished(task)}
        if len(waiting) < len(named):
            say(f"{len(named) - len(waiting)} of {len(named)} runs are there already")

        def tell(task: Task) -> None:
            waiting.pop(task.folder)
            say(f"run {len(named) - len(waiting)}/{len(named)} {task.label}: {outcome(task.folder)}")

        for task in waiting.values():
            _forgive(task)  # a command that was killed
        try:
            if workers:
                _side_by_side(waiting, workers, defaults, tell, say)
            else:
                forget_data()
                with ExitStack() as stack:
                    superlink = functools.cache(lambda: _start_superlink(stack, folder))
                    for task in list(waiting.values()):
                        work(task, defaults, superlink)
                        tell(task)
        except BaseException:  # Ctrl-C, say: what was running did not die of itself
            for task in waiting.values():
                _forgive(task)
            raise


def _side_by_side(waiting: dict[Path, Task], workers: int, defaults: Sequence[str], tell: Tell, say: Say) -> None:
    """Run tasks in processes; when one dies, find whose fault it was by running what they had begun one at a time."""
    while waiting and not _pool(list(waiting.values()), min(workers, len(waiting)), defaults, tell):
        for task in [task for task in waiting.values() if status(task.folder) == FINISHED]:
            tell(task)  # its answer was lost with the pool
        begun = [task for task in waiting.values() if status(task.folder) == RUNNING]
        say("a worker process died; the runs that were at work are tried once more, one at a time")
        for task in begun or list(waiting.values())[:1]:
            _forgive(task)
            if _pool([task], 1, defaults, tell):
                continue
            if status(task.folder) != RUNNING:
                raise RunnerError(
                    "worker processes die before they begin a run (is there enough memory?); --jobs 0, or no launcher, "
                    "runs everything in this process and shows why"
                )
            _write(task, FAILED, "the process died 2 times during this run, the second time with no other beside it")
            tell(task)


def _pool(tasks: list[Task], workers: int, defaults: Sequence[str], tell: Tell) -> bool:
    """Run tasks in worker processes; return False if one of these died. None of them outlives this call."""
    pool = ProcessPoolExecutor(workers, initializer=start_worker, initargs=(os.getpid(),), env=_ONE_THREAD)
    try:
        futures = {pool.submit(work, task, ("run.eval_threads=1", *defaults)): task for task in tasks}
        for future in as_completed(futures):
            future.result()
            tell(futures[future])
    except BrokenProcessPool:
        return False
    finally:
        pool.shutdown(wait=True, kill_workers=True)
    return True


def start_worker(parent: int) -> None:
    """Leave Ctrl-C to the command that started this worker, and end with it: a second one may run the same tasks."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=watch, daemon=True).start()


def work(task: Task, defaults: Sequence[str] = (), superlink: SuperLink | None = None) -> None:
    """Run one task in this process and record how it ended."""
    task.folder.mkdir(parents=True, exist_ok=True)
    (task.folder / "failure.json").unlink(missing_ok=True)
    _write(task, RUNNING)
    try:
        message = _run(task, defaults, superlink)
    except Exception as error:  # whatever ends one run, the others go on
        message = str(error) if isinstance(error, ConfigError) else f"{type(error).__name__}: {error}"
    if message is None:
        from fedlodrop.report.page import draw_report

        draw_report(task.folder, logger.warning)
    _write(task, FAILED if message else FINISHED, message)


def _run(task: Task, defaults: Sequence[str], superlink: SuperLink | None) -> str | None:
    folder = task.folder
    place = f"run.resume={quoted(folder)}" if (folder / "checkpoint").exists() else f"run.dir={quoted(folder)}"
    overrides = join_overrides(["run.engine=local", *defaults, *task.overrides, place])
    config = compose_config(overrides)
    make_importable(config, anew=True)
    log = logging.FileHandler(folder / "job.log")  # of what Flower says; the runner says one line per run
    with process_as_found(), closing(log), patch.object(logger, "handlers", [log]):
        if config.run.engine != "flower":
            from server_app.engines.in_process import run_in_process

            code = run_in_process(overrides, config.network.num_devices)
        elif superlink is None:
            raise ConfigError("run.engine=flower shares one SuperLink between the runs: one at a time, in this process")
        else:
            run_id = superlink().submit(overrides, config)
            code = int(superlink().wait(run_id, folder, taken_down=True) != "finished:completed")
    if (folder / "failure.json").exists():
        return str(json.loads((folder / "failure.json").read_text())["message"])
    if code or not (folder / "summary.json").exists():
        return f"the run ended with code {code} and no results; see {folder / 'job.log'}"
    return None


def _start_superlink(stack: ExitStack, folder: Path) -> FlowerEngine:
    engine = stack.enter_context(FlowerEngine(folder / "flower.log"))
    engine.wait_ready()
    return engine


def is_finished(task: Task) -> bool:
    """Whether a run has its results; what a kill before the task's own record was written left open is mended."""
    if not (task.folder / "summary.json").exists():
        return False
    if status(task.folder) != FINISHED:
        _write(task, FINISHED)
    return True


def _forgive(task: Task) -> None:
    """Take a run that was at work for interrupted, by no fault of its own."""
    if _record(task.folder).get("status") == RUNNING:
        _write(task, INTERRUPTED)


def status(folder: Path) -> str | None:
    """Return what is known of a run: ``finished``, ``failed``, ``interrupted``, ``running`` (or killed), or None."""
    found = _record(folder).get("status")
    return None if found == FINISHED and not (folder / "summary.json").exists() else found


def message(folder: Path) -> str | None:
    """Return why a run failed, or None."""
    return _record(folder).get("message")


def outcome(folder: Path) -> str:
    """Return how a run ended, as a few words."""
    if status(folder) != FINISHED:
        return f"failed: {message(folder)}"
    summary = json.loads((folder / "summary.json").read_text())
    metric = summary["primary_metric"]
    score = summary["final"]["eval"] if summary["final"] else summary["personalised"] or {}
    shown = f"{score[metric]:.3f}" if metric in score else "without a score"
    return f"{metric} {shown}, {summary['cpu_s']:.0f} CPU s"


def _write(task: Task, state: str, message: str | None = None) -> None:
    overrides = dict(item.split("=", 1) for item in task.overrides)
    write_json(task.folder / "job.json", {"overrides": overrides, "status": state, "message": message})


def _record(folder: Path) -> dict[str, Any]:
    path = folder / "job.json"
    return dict(json.loads(path.read_text())) if path.exists() else {}
