"""Many runs: sweep, compare, calibrate, bench."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

import fedlodrop
from conf.compose import ROOT, ConfigError, compose_config, join_overrides
from conf.files import with_files
from fedlodrop.commands import shared
from fedlodrop.commands.shared import ConfigFiles, Overrides, complete_override, fail, out, say
from fedlodrop.console.printing import make_table
from fedlodrop.runs import program
from server_app.folders import writable, writable_file

if TYPE_CHECKING:
    from fedlodrop.study.plan import Analysis, Study
    from fedlodrop.study.sweep import Sweep

Jobs = Annotated[int, Option(min=0, help="Runs side by side, one thread each; 0: in this process")]
_CORES = os.cpu_count() or 1


def sweep(
    overrides: Annotated[
        list[str], Argument(help="Overrides, e.g. allocator=bnb,equal run.seed=0,1,2", autocompletion=complete_override)
    ],
    files: ConfigFiles = None,
    multirun: Annotated[bool, Option("--multirun", "-m", help="As in Hydra; a sweep always is one")] = True,
    folder: Annotated[Path | None, Option("--dir", help="Its folder; default: one below results/ per command")] = None,
    jobs: Jobs = 0,
) -> None:
    """Run all combinations of several values, e.g. `fedlodrop sweep -m allocator=bnb,psca run.seed=0,1,2`.

    Started again, the same command goes on where it was stopped: finished jobs are skipped, failed ones tried once
    more.
    """
    try:
        found = fedlodrop.sweep(*with_files(files or [], overrides), folder=folder, jobs=jobs, progress=True)
    except KeyboardInterrupt:
        fail("interrupted; the same command goes on, and its folder holds the jobs so far", shared.EXIT_INTERRUPTED)
    _print_jobs(found)
    if failed := int((found.jobs["status"] != "finished").sum()):
        fail(f"{failed} of {len(found.jobs)} jobs failed; the same command tries them again")


def _print_jobs(found: Sweep) -> None:
    from fedlodrop.study.tables import swept_keys

    table, folder = found.jobs, found.folder
    metric = next(iter(table["primary_metric"].dropna()), "metric") if "primary_metric" in table else "metric"
    varied, finished = swept_keys(table) or ["folder"], table["status"] == "finished"
    words = varied if finished.all() else [*varied, "status"]
    columns = {
        f"final.eval.{metric}": (f"test {metric}", "{:.3f}", 1.0),
        "final.gap.loss": ("gap", "{:+.3f}", 1.0),
        "uplink_bytes": ("up MB", "{:.2f}", 1e-6),
        "energy_j": ("energy J", "{:.1f}", 1.0),
    }
    shown = table[words].map(lambda value: f"{value:g}" if isinstance(value, float) else str(value))
    figures = {
        title: (table[key] * scale).map(form.format, na_action="ignore").fillna("")
        for key, (title, form, scale) in columns.items()
        if key in table
    }
    rows = shown.assign(**figures).to_numpy().tolist()
    names = [name.rsplit(".", 1)[-1] for name in words]
    out.print(make_table(f"{len(table)} jobs", names, list(figures), rows))
    if "run.seed" in varied and finished.any():
        from fedlodrop.study.seeds import by_setting

        seeds = by_setting([folder / name for name in table["folder"][finished]], interval=True)
        title = "by setting, mean and 95 % interval over seeds"
        out.print(make_table(title, seeds.head[:1], seeds.head[1:], seeds.rows))
    for name in ("jobs.csv", "jobs.parquet", "jobs.png"):
        if (folder / name).exists():
            say(f"{name + ':':14}{folder / name}")
    say(f"next:         {program()} report {folder}")


def compare(
    files: Annotated[list[Path], Argument(help="Study files, e.g. studies/generalization.yaml")],
    quick: Annotated[bool, Option("--quick", help="Tiny sizes of every study: minutes, no evidence")] = False,
    out: Annotated[Path | None, Option(help="Gets a folder per study; default: results/studies")] = None,
    jobs: Jobs = _CORES,
    data: Annotated[Path | None, Option(help="Folder with the data files; default: the study file's data_dir")] = None,
    no_run: Annotated[bool, Option("--no-run", help="Only write tables, figures, page from what is there")] = False,
    page: Annotated[Path | None, Option(help="Write the results page of these studies, from their tables")] = None,
) -> None:
    """Run studies: methods × settings × seeds, tuned on validation data, as tables, figures and a page.

    Started again, finished runs are skipped and failed ones tried once more.
    """
    from fedlodrop.study.plan import Study, read_study

    studies = [read_study(path, quick=quick, data_dir=data) for path in files]
    base, workers = out or Path("results/studies"), None if no_run else jobs
    folders = [(base / f"{study.name}{'-quick' if quick else ''}").resolve() for study in studies]
    for folder in folders:
        writable(folder, "--out")
    if page is not None:
        writable_file(page, "--page")
    for study in [] if no_run else studies:
        if isinstance(study, Study):
            study.check_data("; --data names the folder of a study's files")
    unfinished = sum(_run(study, folder, workers) for study, folder in zip(studies, folders, strict=True))
    if page is not None:
        from fedlodrop.study.page import write_page

        end = f" --out {os.path.relpath(base)}" + (" --quick" if quick else "")
        commands = [f"fedlodrop compare {os.path.relpath(path)}{end}" for path in files]
        write_page(page, list(zip(studies, folders, commands, strict=True)))
        say(f"page: {page.resolve()}")
    if unfinished:
        fail(f"{unfinished} runs did not finish; the same command tries them again")


def _run(study: Study | Analysis, folder: Path, workers: int | None) -> int:
    """Run a study, or with None show what is there of it; return how many runs did not finish."""
    from fedlodrop.study.plan import Study
    from fedlodrop.study.run_study import run_study, show_results

    if workers is None:
        if isinstance(study, Study):
            show_results(study, folder)
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    say(f"{study.name}: {study.title}, in {folder}")
    if not isinstance(study, Study):
        study.run(folder)
        return 0
    try:
        finished, missing = run_study(study, folder, workers, say)
    except KeyboardInterrupt:
        fail("interrupted; the same command goes on", shared.EXIT_INTERRUPTED)
    say(f"{study.name}: {finished} runs finished, {missing} not; tables and figures in {folder}")
    return missing


def calibrate(
    overrides: Overrides = None,
    table: Annotated[Path | None, Option(help="rounds.csv of a study whose runs have one dropout rate each")] = None,
    rates: Annotated[str, Option(help="Dropout rates, separated by commas")] = "0,0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8",
    seeds: Annotated[int, Option(help="Runs per rate")] = 3,
    out: Annotated[Path, Option(help="Folder of the runs and of what was found")] = Path("results/calibration"),
    jobs: Jobs = _CORES,
    at: Annotated[str, Option(help="Where the runs are compared: fixed, matched or best")] = "fixed",
) -> None:
    """Fit the constants of the generalization bound to a sweep of dropout rates, and say how well it then predicts.

    Runs the sweep (`fedlodrop calibrate task=rte task.train_limit=250`) or takes a finished one (`--table rounds.csv`).
    Writes the fitted constants as files for conf/bound, a table of measured and predicted losses, and a figure.
    """
    from fedlodrop.study.paired_statistics import VIEWS
    from fedlodrop.study.plan import sweep_of_rates

    if at not in VIEWS:
        raise ConfigError(f"--at: expected one of {', '.join(VIEWS)}, found {at!r}")
    if table is not None and overrides:
        raise ConfigError("calibrate: expected overrides of runs to start, or --table with finished ones, found both")
    writable(out, "--out")
    from fedlodrop.study import run_study
    from fedlodrop.study.tables import read_rounds_table

    if table is None:
        study = sweep_of_rates(overrides or [], rates, seeds)
        study.check_data()
        run_study.run_study(study, out.resolve(), jobs, say)
        table = out / "rounds.csv"

    rounds = read_rounds_table(table)
    out.mkdir(parents=True, exist_ok=True)
    for record in run_study.calibrate(rounds, out.resolve(), view_name=at):
        correlation = record["rank_correlation"]
        shown = "undefined" if correlation is None else f"{correlation:.2f}"
        say(
            f"{record['setting']}: smallest error predicted at dropout {record['predicted_rate']:.2f}, measured at "
            f"{record['measured_rate']:.2f}; rank correlation {shown}"
        )
        say("  " + " ".join(f"bound.{name}={value:.6g}" for name, value in record["constants"].items()))
    say(f"constants, table and figure in {out.resolve()}")


def bench(
    folder: Annotated[Path, Option("--out", help="Folder for bench.csv and bench.md")],
    quick: Annotated[bool, Option(help="Two devices, one round, once: shows that everything runs")] = False,
    only: Annotated[str, Option(help="Rows that are wanted, separated by commas; default: all")] = "",
    data: Annotated[Path | None, Option(help="Folder with sst2_train.tsv.gz and sst2_validation.tsv.gz")] = None,
    baseline_tokens: Annotated[int, Option(min=1, help="Fixed length to which the baseline pads its texts")] = 64,
    more: Annotated[str, Option("--set", help="Further overrides of our runs, e.g. lora=upper; see bench.md")] = "",
) -> None:
    """Measure whole runs, steps, bytes and aggregation against Flower's own LoRA style, side by side.

    Runs on the files of SST-2 in `--data`, else on generated commands. Wants a machine that does nothing else.
    """
    if not (ROOT / "benchmarks").is_dir():
        raise ConfigError(f"{ROOT} has no benchmarks; run `fedlodrop bench` in a checkout of the source")
    from benchmarks import study
    from benchmarks.federations import Setting, data_files

    names = [name.strip() for name in only.split(",") if name.strip()]
    size: dict[str, Any] = {"train_limit": 160, "num_devices": 2, "num_rounds": 1, "repeats": 1} if quick else {}
    setting = Setting(**data_files(data), **size, max_length=baseline_tokens, more=more)
    compose_config(join_overrides(setting.overrides))  # refuses what no run would take
    study.chosen(names)
    writable(folder, "--out").mkdir(parents=True, exist_ok=True)
    if setting.task != "sst2":
        say("no files of SST-2 found: the runs learn generated commands; name their folder with --data")
    failures = study.run_study(setting, folder.resolve(), names, say)
    for line in (folder / "bench.md").read_text(encoding="utf-8").splitlines():
        say(line)
    if failures:
        fail("; ".join(f"{name}: {message}" for name, message in failures.items()))
