"""Running federations: run, resume, config."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

import fedlodrop
from conf.compose import compose_config, config_yaml, join_overrides
from fedlodrop.commands.console import EXIT_INTERRUPTED, EXIT_NOBODY, Overrides, fail, out, working
from fedlodrop.runs import Run, RunError, RunInterrupted, absolute_paths, program


def run(
    overrides: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print sizes, costs and the first round's plan; train nothing")
    ] = False,
) -> None:
    """Run one federation and show its progress.

    Every key of conf/ can be overridden: `fedlodrop run task=sst2 allocator=equal run.seed=1`.
    """
    if dry_run:
        _dry_run(overrides or [])
    else:
        _show(lambda: fedlodrop.run(*overrides or [], progress=True))


def resume(folder: Annotated[Path, typer.Argument(help="Folder of a run")], overrides: Overrides = None) -> None:
    """Go on with an unfinished run from its checkpoint, or extend a finished one: `resume RUN run.num_rounds=20`."""
    _show(lambda: fedlodrop.resume(folder, *overrides or [], progress=True))


def config(overrides: Overrides = None) -> None:
    """Print the resolved configuration as YAML."""
    out.print(config_yaml(compose_config(join_overrides(overrides or []))), highlight=False, markup=False, end="")


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
