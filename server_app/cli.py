"""The `fedlodrop` command."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from conf.compose import ConfigError, compose_config, join_overrides, local_path, quoted
from conf.schema import Config

# Only the light half is imported here; torch and Flower come when a run starts.

EXIT_FAILED, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 1, 2, 130

cli = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    help="Federated LoRA with dropout over wireless devices.",
)
_out, _err = Console(), Console(stderr=True)

Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Configuration overrides, e.g. allocator=equal network.num_devices=20", show_default=False),
]


@cli.callback()
def _root() -> None:
    """Federated LoRA with dropout over wireless devices."""


@cli.command()
def run(overrides: Overrides = None) -> None:
    """Run one federation and show its progress.

    Every key of conf/ can be overridden: `fedlodrop run task=sst2 allocator=equal run.seed=1`.
    """
    _run(list(overrides or []))


@cli.command()
def resume(folder: Annotated[Path, typer.Argument(help="Folder of an unfinished run")], overrides: Overrides = None) -> None:
    """Go on with an unfinished run from its last checkpoint."""
    from conf.compose import split_overrides
    from server_app.checkpoint import saved_overrides

    saved = [item for item in split_overrides(saved_overrides(folder)) if not item.startswith(("run.dir=", "run.resume="))]
    _run([*saved, *(overrides or []), f"run.resume={quoted(folder.resolve())}"])


@cli.command()
def report(
    folders: Annotated[list[Path], typer.Argument(help="Folders of one or several runs")],
    out: Annotated[Path | None, typer.Option(help="Where to write it; default: report.html of the first run")] = None,
) -> None:
    """Draw report.html of a run, or of several runs side by side."""
    from server_app.report import write_report

    for folder in folders:
        if not (folder / "rounds.jsonl").exists():
            raise ConfigError(f"expected the folder of a run with rounds.jsonl, found none in {folder}")
    target = out or folders[0] / "report.html"
    write_report([folder.resolve() for folder in folders], target)
    _out.print(f"report: {target.resolve()}", highlight=False, soft_wrap=True)


@cli.command()
def config(overrides: Overrides = None) -> None:
    """Print the resolved configuration as YAML."""
    from conf.compose import config_yaml

    _out.print(config_yaml(compose_config(join_overrides(list(overrides or [])))), highlight=False, markup=False, end="")


def _absolute_paths(items: list[str]) -> list[str]:
    """Append the absolute form of every local path: workers and server run in other folders."""
    config = compose_config(join_overrides(items))
    given = {"task.train_file": config.task.train_file, "task.validation_file": config.task.validation_file,
             "model.path": config.model.path, "run.resume": config.run.resume}  # fmt: skip
    found = {key: local_path(value) for key, value in given.items() if value}
    return [*items, *(f"{key}={quoted(path)}" for key, path in found.items() if path)]


def _run(items: list[str]) -> None:
    from server_app.build import results_folder

    items = _absolute_paths(items)
    config = compose_config(join_overrides(items))
    if config.run.resume:
        folder = Path(config.run.resume)
        if not folder.is_dir():
            raise ConfigError(f"run.resume must be the folder of an unfinished run, found no folder {folder}")
    else:
        folder = results_folder(config, Path.cwd(), (time.strftime("%Y-%m-%d"), time.strftime("%H-%M-%S")))
        items = [*items, f"run.dir={quoted(folder)}"]
        if (folder / "rounds.jsonl").exists():
            raise ConfigError(
                f"{folder} already holds a run; choose another run.dir, or continue it: fedlodrop resume {folder}"
            )
    overrides = join_overrides(items)
    config = compose_config(overrides)
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for stale in ("summary.json", "failure.json"):
        (folder / stale).unlink(missing_ok=True)
    run_engine = _run_flower if config.run.engine == "flower" else _run_local
    try:
        code = run_engine(config, overrides, folder)
    except ValueError:
        _forget(created)
        raise
    except KeyboardInterrupt:
        hint = f"; go on with: {_program()} resume {folder}" if (folder / "checkpoint").exists() else ""
        _fail(f"interrupted{hint}", EXIT_INTERRUPTED)
    _finish(folder, code)


def _forget(created: list[Path]) -> None:
    """Remove the folders of a run that never started: bad input leaves nothing behind."""
    for path in created:
        (path / "flower.log").unlink(missing_ok=True)
        if not any(path.iterdir()):
            path.rmdir()


def _run_flower(config: Config, overrides: str, folder: Path) -> int:
    from server_app.flower_engine import FlowerEngine

    with FlowerEngine(folder / "flower.log") as engine:
        metric = _preflight(config)  # while the SuperLink starts
        from server_app.display import RoundProgress

        with RoundProgress(_out, folder, config.run.num_rounds, metric) as progress:
            progress.say("starting the SuperLink")
            engine.wait_ready()
            run_id = engine.submit(overrides, num_devices=config.network.num_devices, client_cpus=config.run.client_cpus)
            progress.say(f"starting Ray workers and loading the model (run {run_id})")
            status = engine.wait(run_id, folder)
    return 0 if status == "finished:completed" else EXIT_FAILED


def _run_local(config: Config, overrides: str, folder: Path) -> int:
    metric = _preflight(config)
    from server_app.display import RoundProgress
    from server_app.local_grid import run_in_process

    logging.getLogger("flwr").setLevel(logging.CRITICAL)  # the display below shows what the server would log
    with RoundProgress(_out, folder, config.run.num_rounds, metric) as progress:
        progress.say("loading the model")
        return run_in_process(overrides, config.network.num_devices)


def _preflight(config: Config) -> str:
    from server_app.build import preflight

    return preflight(config).primary_metric


def _finish(folder: Path, code: int) -> None:
    from server_app.display import print_summary

    failure = folder / "failure.json"
    if failure.exists():
        content = json.loads(failure.read_text())
        _fail(content["message"], content["exit_code"])
    if code or not (folder / "summary.json").exists():
        _fail(f"the run failed; its last output is in {folder / 'flower.log'}", code or EXIT_FAILED)
    print_summary(_out, folder, _program())


def _program() -> str:
    """Return how this command was called, for the commands that are suggested."""
    called = Path(sys.argv[0])
    if called.name != "fedlodrop" or shutil.which("fedlodrop") == str(called):
        return "fedlodrop"
    return os.path.relpath(called)


def _fail(message: str, code: int) -> NoReturn:
    _err.print(f"fedlodrop: {message}", style="red", highlight=False, markup=False, soft_wrap=True)
    raise typer.Exit(code)


def main() -> None:
    """Run the command line; expected errors become one line and a non-zero exit."""
    try:
        cli(standalone_mode=True)
    except (ValueError, RuntimeError) as error:
        _err.print(f"fedlodrop: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
        sys.exit(EXIT_BAD_INPUT)


if __name__ == "__main__":
    main()
