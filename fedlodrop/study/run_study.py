"""Run a study and write what it found: tables, figures, and how well the calibrated bound predicts its losses."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from conf.compose import ConfigError, compose_config
from fedlodrop.study.figures import draw_calibration, draw_curves
from fedlodrop.study.paired_statistics import view
from fedlodrop.study.plan import Job, Study
from fedlodrop.study.runner import FINISHED, Task, run_tasks, status
from fedlodrop.study.tables import collect, earlier, read_rounds_table, write_tables
from optimizer.calibration import Sweep, bootstrap, fit, judge, leave_one_seed_out
from server_app.results import write_atomic, write_json

_DEFAULTS = ("run.eval_threads=1", "training.num_threads=1")  # the same numbers however many run side by side
_STREAM = 0x63616C69  # names the random stream of the bootstrap
REPEATS = 100

_HEADER = """# Constants of the generalization bound, fitted by `fedlodrop calibrate` to {setting}:
# {rates} dropout rates, {seeds} seeds, {num_examples:g} examples per device.
# Copy this file to conf/bound/{setting}.yaml and name it:   fedlodrop run bound={setting}
# Smallest predicted error at dropout {predicted_rate:.2f}, smallest measured at {measured_rate:.2f}.
"""

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
    draw_figures(study, folder, rounds)
    finished = int((table["status"] == FINISHED).sum()) if len(table) else 0
    return finished, len(table) - finished


def show_results(study: Study, folder: Path) -> None:
    """Write tables and figures of the runs that are there, perhaps not all; the figures of tables that came alone."""
    if (folder / "runs").is_dir():
        write_results(study, folder)
    elif (folder / "rounds.csv").is_file():
        draw_figures(study, folder, read_rounds_table(folder / "rounds.csv"))


def draw_figures(study: Study, folder: Path, rounds: pd.DataFrame) -> None:
    """Draw what a study's table ``rounds`` shows; nothing where no run has finished."""
    if not len(rounds):
        return
    averaged = rounds[rounds["method"].isin(study.federated)]
    for name in study.figures:  # a reference line sends nothing to speak of, and its rounds have no deadline
        draw_curves(rounds if name == "rounds" else averaged, name, folder / f"{name}.png", study.title)
    rates = averaged.groupby("setting")["dropout_rate"].agg(lambda values: values.round(3).nunique())
    if study.calibrate and (rates >= 3).any():  # an unfinished study has tables all the same
        calibrate(averaged, folder)


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
    finished, by = table["status"] == FINISHED, ["group", "method"]
    table["group"] = table["setting"].map(study.tuning.group)
    table["score"] = table["best_validation_metric"].fillna(table["personalised_metric"]).where(finished, -np.inf)
    table["loss"] = table["best_validation_loss"].where(finished, np.inf)
    some = table[finished.groupby([table[name] for name in by]).transform("any")]
    means = some.groupby([*by, "choice"], sort=False)[["score", "loss"]].mean().reset_index()
    ranked = means.sort_values(["score", "loss"], ascending=[False, True], kind="stable")
    best = dict(ranked.drop_duplicates(by).set_index(by)["choice"])
    keys = {(s, method): (study.tuning.group(s), method) for s, method in product(study.settings, study.methods)}
    return {pair: tuple(best[key].split(" ")) for pair, key in keys.items() if key in best}


def calibrate(rounds: pd.DataFrame, folder: Path, *, view_name: str = "fixed") -> list[dict[str, Any]]:
    """Calibrate every setting of a table of rounds, whose runs have one dropout rate each, and write what was found.

    ``folder`` gets ``calibration.csv``, ``calibration.json``, ``calibration.png`` and one ``bound-SETTING.yaml`` per
    setting. The runs are compared in one of `paired_statistics.VIEWS`. Returns one record per setting, as in
    ``calibration.json``; ConfigError if no setting has runs at three dropout rates.
    """
    points = view(rounds, view_name).dropna(subset=["test_loss", "dropout_rate"])
    kept = compose_config("").bound
    constants = {"curvature_min": kept.curvature_min, "confidence": kept.confidence}
    found, tables = [], []
    for setting, runs in points.groupby("setting", sort=False):
        if runs["dropout_rate"].round(3).nunique() < 3:
            continue
        record, table = _calibrate_one(str(setting), runs, constants)
        found.append(record | {"view": view_name})
        tables.append(table)
        write_atomic(folder / f"bound-{setting}.yaml", _snippet(record))
    if not found:
        raise ConfigError("a calibration needs runs at three dropout rates or more in one setting, found none")
    table = pd.concat(tables)
    write_atomic(folder / "calibration.csv", table.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
    write_json(folder / "calibration.json", found)
    draw_calibration(table, folder / "calibration.png", "Measured test loss and the calibrated bound")
    return found


def _calibrate_one(
    setting: str, runs: pd.DataFrame, constants: dict[str, float]
) -> tuple[dict[str, Any], pd.DataFrame]:
    sweep = Sweep(
        runs["dropout_rate"].round(3).to_numpy(float),
        runs["train_loss"].to_numpy(float),
        runs["gap_loss"].to_numpy(float),
        runs["seed"].to_numpy(),
        float(runs["num_examples"].mean()),
    )
    fitted, apart = fit(sweep, **constants), leave_one_seed_out(sweep, **constants)
    resampled = bootstrap(sweep, **constants, repeats=REPEATS, rng=np.random.default_rng([_STREAM]))
    own, rates = judge(fitted, sweep), np.unique(sweep.dropout_rate)
    best = [each.best_rate(sweep.num_examples, float(rates[-1])) for each in resampled]
    correlations = [each.rank_correlation for each in apart if np.isfinite(each.rank_correlation)]
    names = asdict(fitted.constants)
    record = {
        "setting": setting,
        "rates": rates.tolist(),
        "seeds": int(np.unique(sweep.seed).size),
        "num_examples": sweep.num_examples,
        "constants": names,
        "offset": fitted.offset,
        "intervals": {name: _interval([getattr(each.constants, name) for each in resampled]) for name in names},
        "predicted_rate": own.predicted_rate,
        "predicted_rate_interval": _interval(best),
        "measured_rate": own.measured_rate,
        "distance": own.distance,
        "rank_correlation": own.rank_correlation if np.isfinite(own.rank_correlation) else None,
        # Fitted without a seed, judged on that seed: what the calibration is worth on data it has not seen.
        "held_out_distance": float(np.mean([each.distance for each in apart])) if apart else None,
        "held_out_rank_correlation": float(np.mean(correlations)) if correlations else None,
    }
    measured = {name: getattr(sweep, name) for name in ("dropout_rate", "seed", "train_loss", "gap")}
    predicted = fitted.predict(sweep.dropout_rate, sweep.num_examples)
    return record, pd.DataFrame({"task": setting, **measured, "measured": sweep.test_loss, "predicted": predicted})


def _interval(values: list[float]) -> list[float] | None:
    return np.percentile(values, [2.5, 97.5]).tolist() if values else None


def _snippet(record: dict[str, Any]) -> str:
    lines = [_HEADER.format(**record | {"rates": len(record["rates"])})]
    for name, value in record["constants"].items():
        low, high = record["intervals"][name] or (value, value)
        lines.append(f"{name}: {value:.6g}" + (f"  # [{low:.3g}, {high:.3g}]\n" if low < high else "\n"))
    return "".join(lines)
