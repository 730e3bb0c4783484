"""Studies: compare, calibrate."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from conf.compose import ConfigError, check_files, compose_config, join_overrides
from fedlodrop.commands.console import EXIT_FAILED, EXIT_INTERRUPTED, Overrides, fail, say

if TYPE_CHECKING:
    from fedlodrop.study.plan import Study

# Everybody is served at any dropout rate: a calibration measures learning, not the radio.
GENEROUS_CELL = (
    "network.total_bandwidth_hz=1e9",
    "budget.deadline_s=1000",
    "budget.energy_j=1e9",
    "budget.max_dropout_rate=0.95",
)


def compare(
    files: Annotated[list[Path], typer.Argument(help="Study files, e.g. studies/generalization.yaml")],
    quick: Annotated[bool, typer.Option("--quick", help="Tiny sizes of every study: minutes, no evidence")] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the tables; default: results/studies. Each study gets a folder of its name"),
    ] = None,
    jobs: Annotated[int | None, typer.Option(help="Runs side by side, one thread each; 0: in this process")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder with the data files; default: the study file's data_dir")
    ] = None,
    no_run: Annotated[
        bool,
        typer.Option("--no-run", help="Run nothing: tables, figures and page from the runs and tables that are there"),
    ] = False,
    page: Annotated[
        Path | None, typer.Option(help="Write the results page of these studies, from their tables")
    ] = None,
) -> None:
    """Run studies: methods × settings × seeds, tuned on validation data, as tables, figures and a page.

    Started again, finished runs are skipped and failed ones tried once more.
    """
    from fedlodrop.study.plan import read_study
    from server_app.folders import writable, writable_file

    studies = [read_study(path, quick=quick, data_dir=data) for path in files]
    base = out or Path("results/studies")
    workers = _workers(jobs)
    folders = [(base / f"{study.name}{'-quick' if quick else ''}").resolve() for study in studies]
    for folder in folders:
        writable(folder, "--out")
    if page is not None:
        writable_file(page, "--page")
    if not no_run:
        for study in studies:
            _check_files(study, "; --data names the folder of a study's files")
    unfinished = 0
    from fedlodrop.study.compare import run_study, write_results

    if no_run:
        for study, folder in zip(studies, folders, strict=True):
            if (folder / "runs").is_dir():  # an unfinished study, say: its tables as they stand
                write_results(study, folder)
    else:
        for study, folder in zip(studies, folders, strict=True):
            folder.mkdir(parents=True, exist_ok=True)
            say(f"{study.name}: {study.title}, in {folder}")
            try:
                finished, missing = run_study(study, folder, workers, say)
            except KeyboardInterrupt:
                fail("interrupted; the same command goes on", EXIT_INTERRUPTED)
            say(f"{study.name}: {finished} runs finished, {missing} not; tables and figures in {folder}")
            unfinished += missing
    if page is not None:
        from fedlodrop.study.page import write_page

        commands = [
            f"fedlodrop compare {os.path.relpath(path)} --out {os.path.relpath(base)}" + (" --quick" if quick else "")
            for path in files
        ]
        write_page(page, list(zip(studies, folders, commands, strict=True)))
        say(f"page: {page.resolve()}")
    if unfinished:
        fail(f"{unfinished} runs did not finish; the same command tries them again", EXIT_FAILED)


def _check_files(study: Study, remedy: str = "") -> None:
    """Refuse a study whose files are missing at once, not run by run."""
    untuned = {(setting, method): () for setting in study.settings for method in study.methods}
    check_files((job.overrides for job in study.final_jobs(untuned)), remedy)


def _workers(jobs: int | None) -> int:
    if jobs is not None and jobs < 0:
        raise ConfigError(f"--jobs: expected 0 or more, found {jobs}")
    return (os.cpu_count() or 1) if jobs is None else jobs


def calibrate(
    overrides: Overrides = None,
    table: Annotated[
        Path | None, typer.Option(help="rounds.csv of a study whose runs have one dropout rate each")
    ] = None,
    rates: Annotated[
        str, typer.Option(help="Dropout rates to run, separated by commas")
    ] = "0,0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8",
    seeds: Annotated[int, typer.Option(help="Runs per rate")] = 3,
    out: Annotated[Path, typer.Option(help="Folder of the runs and of what was found")] = Path("results/calibration"),
    jobs: Annotated[int | None, typer.Option(help="Runs side by side, one thread each; 0: in this process")] = None,
    at: Annotated[str, typer.Option(help="Where the runs are compared: fixed, matched or best")] = "fixed",
) -> None:
    """Fit the constants of the generalization bound to a sweep of dropout rates, and say how well it then predicts.

    Runs the sweep (`fedlodrop calibrate task=rte task.train_limit=250`) or takes a finished one (`--table rounds.csv`).
    Writes the fitted constants as files for conf/bound, a table of measured and predicted losses, and a figure.
    """
    from fedlodrop.study.tables import read_rounds_table
    from fedlodrop.study.views import VIEWS
    from server_app.folders import writable

    if at not in VIEWS:
        raise ConfigError(f"--at: expected one of {', '.join(VIEWS)}, found {at!r}")
    if table is not None and overrides:
        raise ConfigError("calibrate: expected overrides of runs to start, or --table with finished ones, found both")
    writable(out, "--out")
    if table is None:
        from fedlodrop.study.compare import run_study

        study = _sweep_of_rates(list(overrides or []), rates, seeds)
        _check_files(study)
        run_study(study, out.resolve(), _workers(jobs), say)
        table = out / "rounds.csv"
    from fedlodrop.study.calibration import calibrate as run_calibration

    rounds = read_rounds_table(table)
    out.mkdir(parents=True, exist_ok=True)
    for record in run_calibration(rounds, out.resolve(), view_name=at):
        correlation = record["rank_correlation"]
        say(
            f"{record['setting']}: smallest error predicted at dropout {record['predicted_rate']:.2f}, measured at "
            f"{record['measured_rate']:.2f}; rank correlation {'undefined' if correlation is None else f'{correlation:.2f}'}"
        )
        say("  " + " ".join(f"bound.{name}={value:.6g}" for name, value in record["constants"].items()))
    say(f"constants, table and figure in {out.resolve()}")


def _sweep_of_rates(overrides: list[str], rates: str, seeds: int) -> Study:
    from fedlodrop.study.plan import Study, last_of_each

    try:
        values = sorted({float(rate) for rate in rates.split(",")})
    except ValueError:
        raise ConfigError(f"--rates: expected numbers separated by commas, found {rates!r}") from None
    if len(values) < 3 or values[0] < 0 or values[-1] >= 1 or seeds < 1:
        raise ConfigError(
            f"calibrate: expected three rates or more in [0, 1) and a seed, found rates {values}, seeds {seeds}"
        )
    config = compose_config(join_overrides(overrides))
    fixed = ("strategy=fedlodrop", "allocator=fixed", *GENEROUS_CELL)
    methods = {f"gamma_{rate:g}": (*fixed, f"allocator.dropout_rate={rate:g}") for rate in values}
    return Study(
        name="calibration",
        title=f"Sweep of dropout rates, {config.task.name}",
        question="",
        base=last_of_each(("tracking=none", *overrides)),
        settings={config.task.name: ()},
        methods=methods,
        seeds=tuple(range(seeds)),
        reference=next(iter(methods)),
        tuning=None,
    )
