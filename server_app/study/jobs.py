"""Run the jobs of a study side by side, one thread each; finished ones are skipped, failed ones recorded."""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from server_app.results import write_json
from server_app.study.plan import Job

FINISHED, FAILED, RUNNING = "finished", "failed", "running"
_MAX_DEATHS = 2  # a job that takes its process down this often is given up
_ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def run_jobs(jobs: Sequence[Job], folder: Path, workers: int, say: Callable[[str], None]) -> None:
    """Run every job that is not finished yet.

    Parameters
    ----------
    jobs : sequence of Job
        Any order; equal jobs run once.
    folder : Path
        Gets one folder per job.
    workers : int
        Processes side by side. Each keeps the base model and the data between jobs. 0 runs everything in this process.
    say : callable
        Takes one line of progress.
    """
    waiting = {job.folder: job for job in jobs if status(folder, job) != FINISHED}
    done = len({job.folder for job in jobs}) - len(waiting)
    total = done + len(waiting)
    if done:
        say(f"{done} of {total} runs are there already")
    for variable in _ONE_THREAD:
        os.environ[variable] = "1"  # the workers inherit it before they import NumPy or torch
    while waiting and workers == 0:
        name, job = next(iter(waiting.items()))
        waiting.pop(name)
        say(f"run {total - len(waiting)}/{total} {name.rsplit('-', 1)[0]}: {_work(list(job.overrides), str(folder / name))}")
    while waiting:
        pool = ProcessPoolExecutor(min(workers, len(waiting)), mp_context=multiprocessing.get_context("spawn"),
                                   initializer=_end_with, initargs=(os.getpid(),))  # fmt: skip
        futures = {pool.submit(_work, list(job.overrides), str(folder / name)): name for name, job in waiting.items()}
        try:
            for future in as_completed(futures):
                line = future.result()
                name = futures[future]
                waiting.pop(name)
                done += 1
                say(f"run {done}/{total} {name.rsplit('-', 1)[0]}: {line}")
        except BrokenProcessPool:
            say("a worker process died; its run is tried once more, the others go on")
            waiting = {name: job for name, job in waiting.items() if not _given_up(folder / name, say)}
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def status(folder: Path, job: Job) -> str | None:
    """Return what is known of a job: ``finished``, ``failed``, ``running`` (or killed), or None."""
    record = _record(folder / job.folder)
    if record.get("status") == FINISHED and (folder / job.folder / "summary.json").exists():
        return FINISHED
    return record.get("status")


def message(folder: Path, job: Job) -> str | None:
    """Return why a job failed, or None."""
    return _record(folder / job.folder).get("message")


def _given_up(folder: Path, say: Callable[[str], None]) -> bool:
    """Count the death of a job that was running; record it as failed when it died too often."""
    record = _record(folder)
    if record.get("status") == RUNNING:
        record["deaths"] = record.get("deaths", 0) + 1
        if record["deaths"] >= _MAX_DEATHS:
            record |= {"status": FAILED, "message": f"the process died {record['deaths']} times during this run"}
            say(f"{folder.name}: {record['message']}")
        write_json(folder / "job.json", record)
    return record.get("status") in (FAILED, FINISHED)


def _end_with(parent: int) -> None:
    """End this worker when the command that started it is gone, however it went: a second one may run the same jobs."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _work(overrides: list[str], target: str) -> str:
    """Run one job in this process; return one line about how it ended."""
    from server_app.sweep import run_federation

    folder = Path(target)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "failure.json").unlink(missing_ok=True)
    record = {"deaths": 0, **_record(folder), "overrides": overrides, "status": RUNNING, "message": None}
    write_json(folder / "job.json", record)
    try:
        failure = run_federation(["run.engine=local", "run.eval_threads=1", "training.num_threads=1", *overrides], folder)
    except Exception as error:  # whatever ends one run, the others go on
        failure = f"{type(error).__name__}: {error}"
    write_json(folder / "job.json", record | {"status": FAILED if failure else FINISHED, "message": failure})
    if failure:
        return f"failed: {failure}"
    summary = json.loads((folder / "summary.json").read_text())
    metric = summary["primary_metric"]
    score = summary["final"]["eval"] if summary["final"] else summary["personalised"] or {}
    shown = f"{score[metric]:.3f}" if metric in score else "without a score"
    return f"{metric} {shown}, {summary['cpu_s']:.0f} CPU s"


def _record(folder: Path) -> dict[str, Any]:
    path = folder / "job.json"
    return dict(json.loads(path.read_text())) if path.exists() else {}
