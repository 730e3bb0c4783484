"""Running federations: run, resume, config."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

import fedlodrop
from conf.compose import about, choices, compose_config, config_yaml, groups, join_overrides
from conf.files import with_files
from fedlodrop.commands.shared import EXIT_INTERRUPTED, EXIT_NOBODY, ConfigFiles, Overrides, fail, out, say, working
from fedlodrop.runs import Run, RunError, RunInterrupted, absolute_paths, program


def run(
    overrides: Overrides = None,
    files: ConfigFiles = None,
    dry_run: Annotated[
        bool, Option("--dry-run", help="Print sizes, costs and the first round's plan; train nothing")
    ] = False,
) -> None:
    """Run one federation and show its progress.

    Every key of conf/ can be overridden: `fedlodrop run task=sst2 allocator=equal run.seed=1`. Settings of your own
    stand in files: `fedlodrop run --config my.yaml run.seed=1`; `fedlodrop config --list` names what can be chosen.
    A run that is finished becomes longer with `fedlodrop resume RUN run.num_rounds=20`.
    """
    items = with_files(files or [], overrides or [])
    if dry_run:
        _dry_run(items)
    else:
        _show(lambda: fedlodrop.run(*items, progress=True))


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


def _dry_run(items: list[str]) -> None:
    settings = compose_config(join_overrides(absolute_paths(items)))
    with working("loading libraries, model files and data"):
        from fedlodrop.console.dry_run import dry_run

        served = dry_run(settings, out)
    if not served:
        fail("no device can be served in round 1; the reasons stand below the plan", EXIT_NOBODY)


def _show(federation: Callable[[], Run]) -> None:
    """Run a federation and print its results, or why there are none."""
    try:
        finished = federation()
    except RunError as error:
        fail(str(error), error.exit_code)
    except RunInterrupted as error:
        begun = f"; go on with: {program()} resume {error.folder}" if error.folder else ""
        fail(f"interrupted{begun}", EXIT_INTERRUPTED)
    from fedlodrop.console.display import print_summary

    print_summary(out, finished.folder, program())
