"""Commands on finished runs: runs, show, compare-runs, table, pack."""

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from fedlodrop.commands.shared import RunFolder, complain, fail, out, say
from fedlodrop.console.printing import make_table, printable_lines
from fedlodrop.runs import program, run_folder
from server_app.folders import writable_file


def runs(
    folder: Annotated[Path, Argument(help="Where to look, with all folders below it")] = Path("results"),
) -> None:
    """List the runs below a folder, the latest first: status, score, when, method, and more where there is room."""
    from fedlodrop.study.run_list import find_runs, score, state

    found = find_runs(folder)
    if not found:
        fail(f"found no run below {folder}; name another folder, or start one with: {program()} run")
    heads = ["run", "status", "last test score", "when", "method", "allocator", "rounds", "task"]
    rows: list[tuple[str, ...]] = []
    for run in found:
        task, method, allocator = (str(run.setting(f"{key}.name") or "") for key in ("task", "strategy", "allocator"))
        done = f"{len(run.rounds)}/{run.setting('run.num_rounds')}"
        when = str(run.environment.get("started", "")).replace("T", " ")[:16]
        place = str(run.folder.relative_to(folder.resolve()))
        rows.append((place, state(run), score(run), when, method, allocator, done, task))
    while len(heads) > 5 and out.is_terminal and out.room_for(make_table("", heads, (), rows)) > out.width:
        heads, rows = heads[:-1], [row[:-1] for row in rows]
    out.print(make_table("", heads, (), rows))


def show(folder: RunFolder) -> None:
    """Show what a run was and what it found."""
    from fedlodrop.console.display import print_summary, standing
    from fedlodrop.report.data import load_runs
    from fedlodrop.study.run_list import state

    (run,) = load_runs([run_folder(folder)])
    for name, words in (run.environment.get("facts") or {}).items():
        say(f"{name + ':':10}{words}")
    say(f"{'status:':10}{state(run)}, {len(run.rounds)} rounds{f': {run.failure}' if run.failure else ''}")
    if run.finished:
        print_summary(out, run.folder, program())
    elif run.rounds:
        out.print(standing(run.rounds, run.metric or "loss"))


def compare_runs(folders: Annotated[list[Path], Argument(help="Folders of two or more runs")]) -> None:
    """Show in which settings runs differ, and their results side by side."""
    from fedlodrop.study.run_list import differences

    found, settings, figures = differences(folders)
    names = [run.name for run in found]
    if settings:
        out.print(
            make_table("settings that differ", ("setting", *names), (), ([key, *row] for key, row in settings.items()))
        )
    else:
        say("the settings are identical")
    out.print(make_table("results", ("", *names), (), ([key, *row] for key, row in figures.items())))


def table(
    folders: Annotated[list[Path], Argument(help="Folders of runs, or of sweeps")],
    form: Annotated[str, Option("--format", help="md | latex | csv (every run's numbers)")] = "md",
    interval: Annotated[bool, Option("--interval", help="95 % intervals, not standard deviations")] = False,
) -> None:
    """Write a table for a paper: a row per setting, mean ± sd over seeds, the best bold, paired differences."""
    from fedlodrop.study.seeds import by_setting, runs_in, written

    found = by_setting(runs := runs_in(folders), interval=interval)
    if left_out := len(runs) - len(found.numbers):
        complain(
            f"{left_out} of {len(runs)} runs have not finished with a score and are left out; see: {program()} runs"
        )
    typer.echo(printable_lines(written(found, form)), nl=False)


def pack(
    folder: RunFolder,
    target: Annotated[Path | None, Option("--out", help="The archive; default: RUN.tar.gz in this folder")] = None,
) -> None:
    """Write one archive with configuration, versions, rounds, adapter and report of a finished run."""
    from fedlodrop.study import run_list

    chosen = writable_file(target or Path(f"{run_folder(folder).name}.tar.gz"), "--out")
    names = run_list.pack(folder, chosen)
    say(f"packed: {chosen.resolve()} ({len(names)} files, {chosen.stat().st_size / 1e6:.2f} MB)")
