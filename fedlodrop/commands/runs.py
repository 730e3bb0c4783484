"""Running federations: run, resume, config."""

from __future__ import annotations

import json
import logging
import shutil
import time
from pathlib import Path
from typing import Annotated

import typer

from conf.compose import ConfigError, check_files, compose_config, join_overrides, local_path, quoted, readable
from conf.schema import Config
from fedlodrop.commands.console import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_NOBODY,
    Overrides,
    fail,
    out,
    program,
    say,
    working,
)

# Only the light half is imported here; torch and Flower come when a run starts.


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
        _dry_run(list(overrides or []))
    else:
        _run(list(overrides or []))


def _dry_run(items: list[str]) -> None:
    config = compose_config(join_overrides(_absolute_paths(items)))
    with working("loading libraries, model files and data"):
        from fedlodrop.console.dry_run import dry_run

        served = dry_run(config, out)
    if not served:
        fail("no device can be served in round 1; the reasons stand below the plan", EXIT_NOBODY)


def resume(folder: Annotated[Path, typer.Argument(help="Folder of a run")], overrides: Overrides = None) -> None:
    """Go on with an unfinished run from its last checkpoint, or extend a finished one: `resume RUN run.num_rounds=20`."""
    say(f"looking at {folder}: loading libraries, model and data")
    from conf.compose import split_overrides
    from server_app.resume import saved_overrides

    saved = [
        item for item in split_overrides(saved_overrides(folder)) if not item.startswith(("run.dir=", "run.resume="))
    ]
    _run([*saved, *(overrides or []), f"run.resume={quoted(folder.resolve())}"])


def config(overrides: Overrides = None) -> None:
    """Print the resolved configuration as YAML."""
    from conf.compose import config_yaml

    out.print(config_yaml(compose_config(join_overrides(list(overrides or [])))), highlight=False, markup=False, end="")


def _absolute_paths(items: list[str]) -> list[str]:
    """Append the absolute form of every local path: workers and server run in other folders."""
    config = compose_config(join_overrides(items))
    check_files([[readable(item) for item in items]])
    given = {
        "task.train_file": config.task.train_file,
        "task.validation_file": config.task.validation_file,
        "model.path": config.model.path,
        "model.gguf_file": config.model.gguf_file,
        "run.resume": None if config.run.resume == "auto" else config.run.resume,
    }
    found = {key: local_path(value) for key, value in given.items() if value}
    return [*items, *(f"{key}={quoted(path)}" for key, path in found.items() if path)]


def _run(items: list[str]) -> None:
    from server_app.folders import results_folder, writable
    from server_app.results import claimed

    items = _absolute_paths(items)
    config = compose_config(join_overrides(items))
    if config.run.resume and config.run.resume != "auto":
        folder = Path(config.run.resume)
        if not folder.is_dir():
            raise ConfigError(f"run.resume must be the folder of an unfinished run, found no folder {folder}")
    else:
        folder = results_folder(config, Path.cwd(), (time.strftime("%Y-%m-%d"), time.strftime("%H-%M-%S")))
        items = [*items, f"run.dir={quoted(folder)}"]
    overrides = join_overrides(items)
    config = compose_config(overrides)
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    writable(folder, "run.dir").mkdir(parents=True, exist_ok=True)
    if not config.run.resume:
        say(
            f"{config.task.name} on {config.model.name}, {config.strategy.name} with allocator {config.allocator.name}, "
            f"{config.network.num_devices} devices, {config.run.num_rounds} rounds: loading libraries, model and data"
        )
    try:
        with claimed(folder):
            _run_in(folder, config, overrides)
    except ValueError:
        _forget(created)
        raise
    except KeyboardInterrupt:
        begun = (folder / "environment.json").exists()
        _forget(created)
        fail(f"interrupted; go on with: {program()} resume {folder}" if begun else "interrupted", EXIT_INTERRUPTED)


def _run_in(folder: Path, config: Config, overrides: str) -> None:
    """Run, or go on, in a folder that is ours."""
    from server_app.results import check_free
    from server_app.resume import check_start, is_finished

    _end_leftover(folder)
    check_free(folder)
    check_start(folder, config)
    if is_finished(folder, config):
        done = config.run.num_rounds
        say(
            f"already finished ({done} of {done} rounds); extend it with: {program()} resume {folder} run.num_rounds={2 * done}"
        )
        return
    (folder / "failure.json").unlink(missing_ok=True)
    run_engine = _run_flower if config.run.engine == "flower" else _run_local
    _finish(folder, run_engine(config, overrides, folder))


def _end_leftover(folder: Path) -> None:
    """End what a killed run still has at work in its folder: two servers would write into each other's records."""
    from server_app.engines.flower import RECORD, end_leftover

    if (folder / RECORD).exists() and end_leftover(folder):
        say("ended the SuperLink that the interrupted run had left behind")


def _forget(created: list[Path]) -> None:
    """Remove the folders of a run that never started: bad input leaves nothing behind."""
    for path in created:
        ours = {"flower.log", ".lock", ".command.lock"}
        if path.is_dir() and {entry.name for entry in path.iterdir()} <= ours:
            shutil.rmtree(path)


def _run_flower(config: Config, overrides: str, folder: Path) -> int:
    from server_app.engines.flower import FlowerEngine

    with FlowerEngine(folder / "flower.log") as engine:
        metric = _preflight(config)  # while the SuperLink starts
        from fedlodrop.console.display import RoundProgress

        with RoundProgress(out, folder, config.run.num_rounds, metric) as progress:
            progress.say("starting the SuperLink")
            engine.wait_ready()
            (folder / "summary.json").unlink(
                missing_ok=True
            )  # of the run that is extended: a new one will mean the end
            run_id = engine.submit(
                overrides, num_devices=config.network.num_devices, client_cpus=config.run.client_cpus
            )
            progress.say(f"starting Ray workers and loading the model (run {run_id})")
            status = engine.wait(run_id, folder)
    return 0 if status == "finished:completed" else EXIT_FAILED


def _run_local(config: Config, overrides: str, folder: Path) -> int:
    metric = _preflight(config)
    from fedlodrop.console.display import RoundProgress
    from server_app.engines.in_process import run_in_process

    logging.getLogger("flwr").setLevel(logging.CRITICAL)  # the display below shows what the server would log
    with RoundProgress(out, folder, config.run.num_rounds, metric) as progress:
        progress.say("loading the model")
        return run_in_process(overrides, config.network.num_devices)


def _preflight(config: Config) -> str:
    from server_app.build import preflight

    return preflight(config, say).primary_metric


def _finish(folder: Path, code: int) -> None:
    from fedlodrop.console.display import print_summary

    failure = folder / "failure.json"
    if failure.exists():
        content = json.loads(failure.read_text())
        fail(content["message"], content["exit_code"])
    if code or not (folder / "summary.json").exists():
        fail(f"the run failed; its last output is in {folder / 'flower.log'}", code or EXIT_FAILED)
    from fedlodrop.report import draw_report

    draw_report(folder, say)
    print_summary(out, folder, program())
