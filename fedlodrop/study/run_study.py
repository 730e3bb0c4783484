"""Run a study and write what it found: tables, figures, and its section of the results page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path

import numpy as np

from fedlodrop.study.calibration import calibrate
from fedlodrop.study.figures import draw_curves
from fedlodrop.study.plan import Job, Study
from fedlodrop.study.runner import FINISHED, Task, run_tasks, status
from fedlodrop.study.tables import collect, earlier, write_tables

_DEFAULTS = ("run.eval_threads=1", "training.num_threads=1")  # the same numbers however many run side by side

Chosen = Mapping[tuple[str, str], tuple[str, ...]]


def run_study(study: Study, folder: Path, workers: int, say: Callable[[str], None]) -> tuple[int, int]:
    """Run what is missing of a study, into ``folder/runs``, then write tables and figures into ``folder``.

    Returns how many runs finished and how many did not. ``workers`` run side by side, see `run_tasks`.
    """
    runs, known = folder / "runs", earlier(folder)

    def run(jobs: list[Job]) -> None:
        missing = [job for job in jobs if job.plan not in known or status(runs / job.folder)]
        if len(missing) < len(jobs):
            say(f"{len(jobs) - len(missing)} of {len(jobs)} runs are in the tables already")
        tasks = [Task(runs / job.folder, job.overrides, job.folder.rsplit("-", 1)[0]) for job in missing]
        run_tasks(tasks, runs, workers, say, _DEFAULTS)

    try:
        run(study.tuning_jobs())
        run(study.final_jobs(choose(study, runs)))
    finally:  # also after an interruption: what is there can be looked at
        finished, unfinished = write_results(study, folder)
    return finished, unfinished


def write_results(study: Study, folder: Path) -> tuple[int, int]:
    """Write tables and figures from the runs that are there; return how many finished and how many did not."""
    chosen = choose(study, folder / "runs")
    jobs: list[Job] = [*study.tuning_jobs(), *study.final_jobs(chosen)]
    rounds, table = collect(jobs, folder / "runs")
    write_tables(folder, rounds, table)
    if len(rounds):
        for name in study.figures:
            draw_curves(rounds, name, folder / f"{name}.png", study.title)
        averaged = rounds[rounds["method"].isin(study.federated)]
        rates = averaged.groupby("setting")["dropout_rate"].agg(lambda values: values.round(3).nunique())
        if study.calibrate and (rates >= 3).any():  # an unfinished study has tables all the same
            calibrate(averaged, folder)
    finished = int((table["status"] == FINISHED).sum()) if len(table) else 0
    return finished, len(table) - finished


def choose(study: Study, runs: Path) -> Chosen:
    """Return each method's best values of the tuned keys, by the *validation* score of the trials at their best round.

    The mean over the tuning seeds decides, then the lower validation loss. Of a personalised method it is the mean
    score of the devices' own models. A trial that failed counts as worst; a method all of whose trials are missing is
    left out. Without a tuning grid nothing is chosen.
    """
    if study.tuning is None:
        return {}
    _, table = collect(study.tuning_jobs(), runs)
    if "best_validation_metric" not in table:
        return {}
    across = study.tuning.settings is not None
    by = ["method"] if across else ["setting", "method"]
    finished = table["status"] == FINISHED
    table["score"] = table["best_validation_metric"].fillna(table["personalised_metric"]).where(finished, -np.inf)
    table["loss"] = table["best_validation_loss"].where(finished, np.inf)
    some = table[finished.groupby([table[name] for name in by]).transform("any")]
    means = some.groupby([*by, "choice"], sort=False)[["score", "loss"]].mean().reset_index()
    ranked = means.sort_values(["score", "loss"], ascending=[False, True], kind="stable")
    best = ranked.drop_duplicates(by).set_index(by[0] if across else by)["choice"]
    keys = {pair: pair[1] if across else pair for pair in product(study.settings, study.methods)}
    return {pair: tuple(best[key].split(" ")) for pair, key in keys.items() if key in best.index}
