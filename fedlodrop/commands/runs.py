"""One run, or a list of them: run, resume, runs, show, compare-runs, table, pack; before the first: config, doctor."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option, echo

import fedlodrop
from conf.compose import ConfigError, about, choices, compose_config, config_yaml, groups, join_overrides
from conf.files import with_files
from fedlodrop.commands import shared
from fedlodrop.commands.shared import ConfigFiles, Overrides, RunFolder, complain, fail, out, say, working
from fedlodrop.console.printing import make_table, printable_lines
from fedlodrop.runs import Run, RunError, RunInterrupted, absolute_paths, program, run_folder
from server_app.folders import writable_file

if TYPE_CHECKING:
    from fedlodrop.report.data import Run as RunData

_WIDE = 120  # characters that the whole list of runs takes
_PACKED = ("config.yaml", "environment.json", "rounds.jsonl", "summary.json", "report.html", "base_delta.safetensors")


def run(
    overrides: Overrides = None,
    files: ConfigFiles = None,
    dry_run: Annotated[bool, Option("--dry-run", help="Print sizes, costs and round 1's plan; train nothing")] = False,
) -> None:
    """Run one federation and show its progress.

    Every key of conf/ can be overridden: `fedlodrop run task=sst2 allocator=equal run.seed=1`. Settings of your own
    stand in files: `fedlodrop run --config my.yaml run.seed=1`; `fedlodrop config --list` names what can be chosen.
    A run that is finished becomes longer with `fedlodrop resume RUN run.num_rounds=20`.
    """
    items = with_files(files or [], overrides or [])
    if not dry_run:
        _show(lambda: fedlodrop.run(*items, progress=True))
        return
    settings = compose_config(join_overrides(absolute_paths(items)))
    with working("loading libraries, model files and data"):
        from fedlodrop.console.dry_run import dry_run as show_plan

        served = show_plan(settings, out)
    if not served:
        fail("no device can be served in round 1; the reasons stand below the plan", shared.EXIT_NOBODY)


def resume(folder: Annotated[Path, Argument(help="Folder of a run")], overrides: Overrides = None) -> None:
    """Go on with an unfinished run from its checkpoint, or extend a finished one: `resume RUN run.num_rounds=20`."""
    _show(lambda: fedlodrop.resume(folder, *overrides or [], progress=True))


def config(
    overrides: Overrides = None,
    files: ConfigFiles = None,
    listed: Annotated[bool, Option("--list", help="List the presets, and the choices of every group")] = False,
) -> None:
    """Print the resolved configuration as YAML, or with --list what can be chosen."""
    if listed:
        for name in choices("experiment"):
            say(f"{f'experiment={name}':26}{about('experiment', name)}")
        for group in groups():
            if group != "experiment":
                say(f"{f'{group}=':26}{' | '.join(choices(group))}")
        return
    text = config_yaml(compose_config(join_overrides(with_files(files or [], overrides or []))))
    out.print(text, highlight=False, markup=False, end="")


def doctor() -> None:
    """Check versions, Ray, ports, disk, model files and hub access, and say how to mend what is wrong."""
    from fedlodrop.console.doctor import BROKEN, OK, WARNING, examine

    findings = examine(Path.cwd() / "results")
    for finding in findings:
        colour = {OK: "green", WARNING: "yellow", BROKEN: "red"}[finding.state]
        out.print(f"{finding.state:8}", style=colour, end="")
        say(f"{finding.name:14}{finding.found}")
        if finding.mend:
            say(f"{'':22}-> {finding.mend}")
    if broken := [finding.name for finding in findings if finding.state == BROKEN]:
        fail(f"{len(broken)} check(s) failed: {', '.join(broken)}")
    say("this installation can run federations")


def _show(federation: Callable[[], Run]) -> None:
    try:
        finished = federation()
    except RunError as error:
        fail(str(error), error.exit_code)
    except RunInterrupted as error:
        begun = f"; go on with: {program()} resume {error.folder}" if error.folder else ""
        fail(f"interrupted{begun}", shared.EXIT_INTERRUPTED)
    from fedlodrop.console.display import print_summary

    print_summary(out, finished.folder, program())


def runs(folder: Annotated[Path, Argument(help="Where to look, with all folders below it")] = Path("results")) -> None:
    """List the runs below a folder, the latest first: status, score, when, method, and more where there is room."""
    from fedlodrop.report.data import load_runs

    places = [path.parent for path in folder.rglob("environment.json") if (path.parent / "rounds.jsonl").exists()]
    if not places:
        fail(f"found no run below {folder}; name another folder, or start one with: {program()} run")
    heads = ["run", "status", "last test score", "when", "method", "allocator", "rounds", "task"]
    rows: list[tuple[str, ...]] = []
    started = [(str(run.environment.get("started", "")), run) for run in load_runs(places)]
    for when, run in sorted(started, key=lambda pair: pair[0], reverse=True):
        task, method, allocator = (str(run.setting(f"{key}.name") or "") for key in ("task", "strategy", "allocator"))
        done = f"{len(run.rounds)}/{run.setting('run.num_rounds')}"
        final = run.summary.get("final") or {}
        score = f"{run.metric} {final['eval'][run.metric]:.3f}" if final and run.metric else ""
        place = str(run.folder.relative_to(folder.resolve()))
        rows.append((place, _state(run), score, when.replace("T", " ")[:16], method, allocator, done, task))
    if out.is_terminal and out.width < _WIDE:
        heads, rows = heads[:5], [row[:5] for row in rows]
    out.print(make_table("", heads, (), rows))


def _state(run: "RunData") -> str:
    from server_app.checkpoint import StorageError
    from server_app.results import check_free

    try:
        check_free(run.folder)
    except StorageError:
        return "running"
    return "finished" if run.finished else "failed" if run.failure else "unfinished"


def show(folder: RunFolder) -> None:
    """Show what a run was and what it found."""
    from fedlodrop.console.display import print_summary, standing
    from fedlodrop.report.data import load_runs

    (run,) = load_runs([run_folder(folder)])
    for name, words in (run.environment.get("facts") or {}).items():
        say(f"{name + ':':10}{words}")
    say(f"{'status:':10}{_state(run)}, {len(run.rounds)} rounds{f': {run.failure}' if run.failure else ''}")
    if run.finished:
        print_summary(out, run.folder, program())
    elif run.rounds:
        out.print(standing(run.rounds, run.metric or "loss"))


def compare_runs(folders: Annotated[list[Path], Argument(help="Folders of two or more runs")]) -> None:
    """Show in which settings runs differ, and their results side by side."""
    from fedlodrop.report.data import differing_settings, figures_of, load_runs

    found = load_runs([run_folder(folder) for folder in folders])
    names = [run.name for run in found]
    settings = {key: [str(value) for value in values] for key, values in differing_settings(found).items()}
    if not settings:
        say("the settings are identical")
    for title, head, rows in (("settings that differ", "setting", settings), ("results", "", figures_of(found))):
        lines = [[key, *(value or "" for value in row)] for key, row in rows.items()]
        if lines:
            out.print(make_table(title, (head, *names), (), lines))


def table(
    folders: Annotated[list[Path], Argument(help="Folders of runs, or of sweeps")],
    form: Annotated[str, Option("--format", help="md | latex | csv (every run's numbers)")] = "md",
    interval: Annotated[bool, Option("--interval", help="95 % intervals, not standard deviations")] = False,
) -> None:
    """Write a table for a paper: a row per setting, mean ± sd over seeds, the best bold, paired differences."""
    from fedlodrop.study.seeds import by_setting, runs_in, written

    found = by_setting(runs := runs_in(folders), interval=interval)
    if left_out := len(runs) - len(found.numbers):
        complain(f"{left_out} of {len(runs)} runs have no final score and are left out; see: {program()} runs")
    echo(printable_lines(written(found, form)), nl=False)


def pack(
    folder: RunFolder,
    target: Annotated[Path | None, Option("--out", help="The archive; default: RUN.tar.gz in this folder")] = None,
) -> None:
    """Write one archive with configuration, versions, rounds, adapter and report of a finished run."""
    from optimizer.atomic import written_whole

    source = run_folder(folder)
    chosen = writable_file(target or Path(f"{source.name}.tar.gz"), "--out")
    if not (source / "summary.json").exists():
        raise ConfigError(f"{source} is unfinished; go on with: fedlodrop resume {source}")
    if chosen.exists():
        raise ConfigError(f"{chosen} already exists; choose another --out")
    files = [source / name for name in _PACKED if (source / name).exists()]
    files += sorted(path for path in (source / "adapter").rglob("*") if path.is_file())
    import tarfile

    with written_whole(chosen) as temporary, tarfile.open(temporary, "w:gz") as archive:
        for path in files:
            archive.add(path, f"{source.name}/{path.relative_to(source)}")
    say(f"packed: {chosen.resolve()} ({len(files)} files, {chosen.stat().st_size / 1e6:.2f} MB)")
