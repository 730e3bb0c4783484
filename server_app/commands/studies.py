"""Studies: compare, calibrate."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from conf.compose import ConfigError
from server_app.commands.console import EXIT_FAILED, EXIT_INTERRUPTED, fail, say


def compare(
    files: Annotated[list[Path], typer.Argument(help="Study files, e.g. studies/generalization.yaml")],
    quick: Annotated[bool, typer.Option("--quick", help="Tiny sizes of every study: minutes, no evidence")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the tables; default: results/studies. Each study gets a folder of its name")
    ] = None,
    jobs: Annotated[int | None, typer.Option(help="Runs side by side, one thread each; default: the number of cores")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder with the data files; default: the study file's data_dir")] = None,
    no_run: Annotated[bool, typer.Option("--no-run", help="Run nothing: only read what is there")] = False,
    page: Annotated[Path | None, typer.Option(help="Write the results page of these studies, from their tables")] = None,
) -> None:
    """Run studies: methods × settings × seeds, tuned on validation data, as tables, figures and a page.

    Started again, finished runs are skipped and failed ones tried once more.
    """
    from server_app.study.plan import read_study

    studies = [read_study(path, quick=quick, data_dir=data) for path in files]
    base = out or Path("results/studies")
    workers = jobs or os.cpu_count() or 1
    if workers < 1:
        raise ConfigError(f"--jobs: expected at least 1, found {workers}")
    folders = [(base / f"{study.name}{'-quick' if quick else ''}").resolve() for study in studies]
    unfinished = 0
    if not no_run:
        from server_app.compare import run_study

        for study, folder in zip(studies, folders, strict=True):
            say(f"{study.name}: {study.title}, in {folder}")
            try:
                finished, missing = run_study(study, folder, workers, say)
            except KeyboardInterrupt:
                fail("interrupted; the same command goes on", EXIT_INTERRUPTED)
            say(f"{study.name}: {finished} runs finished, {missing} not; tables and figures in {folder}")
            unfinished += missing
    if page is not None:
        from server_app.study.page import write_page

        commands = [
            f"fedlodrop compare {os.path.relpath(path)} --out {os.path.relpath(base)}" + (" --quick" if quick else "")
            for path in files
        ]
        write_page(page, list(zip(studies, folders, commands, strict=True)))
        say(f"page: {page.resolve()}")
    if unfinished:
        fail(f"{unfinished} runs did not finish; the same command tries them again", EXIT_FAILED)
