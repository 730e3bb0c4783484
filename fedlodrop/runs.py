"""One run: begin it, go on with it, read what it left. Light to import; PyTorch and Flower come when a run starts."""

import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conf.compose import ConfigError, check_files, compose_config, join_overrides, quoted, readable, split_overrides
from conf.places import local_path, make_importable
from conf.schema import Config
from tasks.process import prepare_process

if TYPE_CHECKING:
    import pandas as pd
    from peft import PeftModel

EXIT_FAILED = 1
Say = Callable[[str], None]  # shows a person one line


class RunError(RuntimeError):
    """A run that ended without results; the message is one line, ``exit_code`` the command's."""

    def __init__(self, message: str, exit_code: int = EXIT_FAILED) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class RunInterrupted(KeyboardInterrupt):
    """Ctrl-C during a run; ``folder`` is None where nothing was begun, else the run goes on with `fedlodrop.resume`."""

    def __init__(self, folder: Path | None) -> None:
        super().__init__("interrupted" + (f"; go on with fedlodrop.resume({str(folder)!r})" if folder else ""))
        self.folder = folder


def speaker(progress: bool) -> Say:
    """Return what prints a line, or without ``progress`` nothing."""
    if not progress:
        return lambda line: None
    from fedlodrop.commands.shared import say

    return say


@dataclass(frozen=True, eq=False)
class Run:
    """A run and what it left in its folder.

    ``summary`` is the content of summary.json, empty while the run is unfinished. ``rounds`` has one row per finished
    round: scores, costs and the plan, nested names joined with dots (``eval.accuracy``); ``devices`` one per round and
    device: dropout rate, bytes, energy, why it sat out.
    """

    folder: Path
    summary: dict[str, Any] = field(repr=False)
    rounds: "pd.DataFrame" = field(repr=False)
    devices: "pd.DataFrame" = field(repr=False)

    def model(self) -> "PeftModel":
        """Return the trained model, in evaluation mode and float32."""
        from fedlodrop.model.load import load_trained

        model: PeftModel = load_trained(self.folder).model
        return model

    def predict(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[list[tuple[str, float]]]:
        """Ask the trained model: per text its outputs with their probabilities, from the likeliest down."""
        from fedlodrop.model.load import load_trained
        from fedlodrop.model.predict import predict

        return predict(load_trained(self.folder), texts, pairs)


def run_folder(folder: str | Path) -> Path:
    """Return the absolute path of a run's folder; ConfigError if it holds no rounds.jsonl."""
    here = Path(folder)
    if not (here / "rounds.jsonl").exists():
        base = here if here.is_dir() else here.parent
        found = sorted(path.parent.name for path in base.glob("*/rounds.jsonl"))
        there = f"; in {base} there are {', '.join(found[:6])}{' and others' if found[6:] else ''}" if found else ""
        raise ConfigError(f"expected the folder of a run with rounds.jsonl, found none in {folder}{there}")
    return here.resolve()


def load(folder: str | Path) -> Run:
    """Read what a run left in its folder, finished or not.

    Examples
    --------
    >>> import fedlodrop
    >>> fedlodrop.load("results/nowhere")
    Traceback (most recent call last):
    conf.compose.ConfigError: expected the folder of a run with rounds.jsonl, found none in results/nowhere
    """
    folder = run_folder(folder)
    import pandas as pd

    from server_app.results import read_rounds

    records = read_rounds(folder)
    path = folder / "summary.json"
    summary = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    rounds = pd.json_normalize([{key: value for key, value in row.items() if key != "devices"} for row in records])
    devices = pd.json_normalize(records, "devices", ["round"]) if records else pd.DataFrame()
    return Run(folder, summary, rounds, devices)


def resume(folder: str | Path, *overrides: str, progress: bool = False) -> Run:
    """Go on with an unfinished run from its last checkpoint, or extend a finished one.

    Examples
    --------
    >>> import fedlodrop
    >>> tiny = ["run.engine=local", "model=tiny", "task.train_limit=100", "network.num_devices=3"]
    >>> one = fedlodrop.run(*tiny, "run.num_rounds=1", "run.dir=results/extended")
    >>> fedlodrop.resume(one.folder, "run.num_rounds=2").summary["rounds_done"]
    2
    """
    speaker(progress)(f"looking at {folder}: loading libraries, model and data")
    from server_app.folders import saved_overrides

    saved = split_overrides(saved_overrides(Path(folder)))
    kept = [item for item in saved if not item.startswith(("run.dir=", "run.resume="))]
    return run(*kept, *overrides, f"run.resume={quoted(Path(folder).resolve())}", progress=progress)


def run(*overrides: str, progress: bool = False) -> Run:
    """Run one federation and return what it found.

    Raises
    ------
    ConfigError, RunError, RunInterrupted
        On settings that cannot be used, if the run ends without results, on Ctrl-C.

    Examples
    --------
    >>> import fedlodrop
    >>> tiny = ["run.engine=local", "model=tiny", "task.train_limit=100", "network.num_devices=3"]
    >>> run = fedlodrop.run(*tiny, "run.num_rounds=2", "run.dir=results/two")
    >>> run.folder.name, len(run.rounds), sorted(run.summary["final"])
    ('two', 2, ['eval', 'gap', 'round', 'validation'])
    >>> run.predict(["wake me at seven"])[0][0][0] in run.summary["label_names"]
    True
    """
    from server_app.folders import results_folder, writable
    from server_app.results import claimed

    say, items = speaker(progress), absolute_paths(overrides)
    config = compose_config(join_overrides(items))
    if config.run.resume and config.run.resume != "auto":
        folder = Path(config.run.resume)
        if not folder.is_dir():
            raise ConfigError(f"run.resume must be the folder of an unfinished run, found no folder {folder}")
    else:
        folder = results_folder(config, Path.cwd(), (time.strftime("%Y-%m-%d"), time.strftime("%H-%M-%S")))
        items = [*items, f"run.dir={quoted(folder)}"]
    joined = join_overrides(items)
    config = compose_config(joined)
    make_importable(config, anew=True)
    forget_data()
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    writable(folder, "run.dir").mkdir(parents=True, exist_ok=True)
    if not config.run.resume:
        what = f"{config.task.name} on {config.model.name}, {config.strategy.name}"
        size = f"{config.network.num_devices} devices, {config.run.num_rounds} rounds"
        say(f"{what} with allocator {config.allocator.name}, {size}: loading libraries, model and data")
    try:
        with claimed(folder), process_as_found():
            _run_in(folder, config, joined, progress)
    except (ValueError, KeyboardInterrupt) as error:
        begun = (folder / "environment.json").exists()
        ours = {"flower.log", ".lock", ".command.lock"}
        for path in created:  # bad input leaves nothing behind
            if path.is_dir() and {entry.name for entry in path.iterdir()} <= ours:
                shutil.rmtree(path)
        if isinstance(error, ValueError):
            raise
        raise RunInterrupted(folder if begun else None) from None
    return load(folder)


def forget_data() -> None:
    """Let the devices of a run in this process read their data anew: files may have changed since the last run."""
    if worker := sys.modules.get("client_app.worker"):
        worker.forget_data()


def absolute_paths(items: Sequence[str]) -> list[str]:
    """Append the absolute form of every local path: workers and server run in other folders."""
    config = compose_config(join_overrides(list(items)))
    check_files([[readable(item) for item in items]])
    keys = "task.train_file task.validation_file task.dataset model.path model.gguf_file run.resume".split()
    given = dict(zip(keys, attrgetter(*keys)(config), strict=True))
    found = {key: local_path(value) for key, value in given.items() if value and (key, value) != ("run.resume", "auto")}
    return [*items, *(f"{key}={quoted(path)}" for key, path in found.items() if path)]


def program() -> str:
    """Return how this command was called, for the commands that are suggested."""
    called = Path(sys.argv[0])
    if called.name != "fedlodrop" or shutil.which("fedlodrop") == str(called):
        return "fedlodrop"
    return os.path.relpath(called)


@contextmanager
def process_as_found() -> Iterator[None]:
    """Leave environment variables, Flower's logger and PyTorch's number of threads as they were."""
    before = dict(os.environ)
    prepare_process()
    import torch
    from flwr.common.logger import FLOWER_LOGGER

    level, handlers, threads = FLOWER_LOGGER.level, FLOWER_LOGGER.handlers, torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        FLOWER_LOGGER.setLevel(level)
        FLOWER_LOGGER.handlers = handlers
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


def _run_in(folder: Path, config: Config, overrides: str, progress: bool) -> None:
    from server_app.engines.flower import end_leftover
    from server_app.folders import check_start, is_finished
    from server_app.results import check_free, count_rounds

    say = speaker(progress)
    if end_leftover(folder):  # two servers would write into each other's records
        say("ended the SuperLink that the interrupted run had left behind")
    check_free(folder)
    check_start(folder, config)
    if is_finished(folder, config):
        done, asked = count_rounds(folder), config.run.num_rounds
        longer = f"run.num_rounds={2 * done}" if done == asked else "run.patience=null"
        say(f"already finished ({done} of {asked} rounds); extend it with: {program()} resume {folder} {longer}")
        return
    (folder / "failure.json").unlink(missing_ok=True)
    code = (_run_flower if config.run.engine == "flower" else _run_local)(config, overrides, folder, progress)
    if (folder / "failure.json").exists():
        content = json.loads((folder / "failure.json").read_text())
        raise RunError(content["message"], content["exit_code"])
    if code or not (folder / "summary.json").exists():
        raise RunError(f"the run failed; its last output is in {folder / 'flower.log'}", code or EXIT_FAILED)
    from fedlodrop.report.page import draw_report

    draw_report(folder, say)


def _run_flower(config: Config, overrides: str, folder: Path, progress: bool) -> int:
    from server_app.engines.flower import FlowerEngine

    # The SuperLink starts while the data are checked.
    with FlowerEngine(folder / "flower.log") as engine, _shown(config, folder, progress) as say:
        say("starting the SuperLink")
        engine.wait_ready()
        (folder / "summary.json").unlink(missing_ok=True)  # of the run that is extended: a new one means the end
        run_id = engine.submit(overrides, config)
        say(f"starting Ray workers and loading the model (run {run_id})")
        return 0 if engine.wait(run_id, folder) == "finished:completed" else EXIT_FAILED


def _run_local(config: Config, overrides: str, folder: Path, progress: bool) -> int:
    from server_app.engines.in_process import run_in_process

    with _shown(config, folder, progress) as say:
        logging.getLogger("flwr").setLevel(logging.CRITICAL)  # the rounds are shown as they end
        say("loading the model")
        return run_in_process(overrides, config.network.num_devices)


@contextmanager
def _shown(config: Config, folder: Path, progress: bool) -> Iterator[Say]:
    """Check the data and say what the run is; within the block, show its rounds as they end."""
    from server_app.build import preflight, run_facts

    say = speaker(progress)
    task = preflight(config, say)
    for name, words in (*run_facts(config, task).items(), ("folder", str(folder))):
        say(f"{name + ':':10}{words}")
    if not progress:
        yield say
        return
    from fedlodrop.commands.shared import out
    from fedlodrop.console.display import RoundProgress

    with RoundProgress(out, folder, config.run.num_rounds, task.primary_metric) as shown:
        yield shown.say
