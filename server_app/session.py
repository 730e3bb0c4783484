"""One run on the server, from the composed configuration to the saved adapter; its loop: `server_app.rounds`."""

import json
import time
from collections.abc import Callable
from typing import Any

from flwr.serverapp import Grid
from safetensors.numpy import save_file

from adapter import AdapterState
from conf.compose import ConfigError, compose_config, config_yaml, source_digest
from conf.convert import device_code, lora_settings, model_settings
from conf.places import checkout
from conf.schema import Config
from optimizer.atomic import written_whole
from server_app.build import build_evaluator, build_fleet, build_strategy, describe, load_data, run_facts
from server_app.checkpoint import Checkpoint, has_checkpoint, load_checkpoint
from server_app.evaluate import Evaluator, compare_answers, confusion
from server_app.folders import check_start, is_finished, results_folder
from server_app.results import BASE_DELTA, ResultsFolder, count_rounds, environment, make_readable
from server_app.rounds import Run, run_rounds
from server_app.tracking import tracking
from strategy import LoraStrategy
from strategy.round.roster import Directory, query_directory, wait_for_nodes
from tasks.data.batches import data_notes
from tasks.data.load import TaskData
from tasks.export.huggingface import save_adapter
from tasks.models.build import model_notes
from tasks.models.lora import get_adapter, set_adapter
from tasks.models.tokenizer import load_tokenizer

Report = Callable[[str], None]  # takes one line of progress


def open_results(overrides: str) -> ResultsFolder:
    """Create the results folder of a run, or open that of a run that goes on, and keep others out of it.

    ConfigError or StorageError, and nothing touched, if it is another run's or another process is at work in it.
    """
    config = compose_config(overrides)
    folder = results_folder(config, checkout(), (time.strftime("%Y-%m-%d"), time.strftime("%H-%M-%S")))
    results = ResultsFolder(folder)
    results.hold()
    try:
        check_start(folder, config)
    except ConfigError:
        results.release()
        raise
    return results


def run_session(grid: Grid, overrides: str, results: ResultsFolder, report: Report) -> dict[str, Any]:
    """Run a federation to its end and return the content of summary.json; the devices compose the same overrides."""
    config = compose_config(overrides)
    if is_finished(results.folder, config):
        report(f"already finished: {count_rounds(results.folder)} rounds in {results.folder}")
        return dict(json.loads((results.folder / "summary.json").read_text()))
    evaluator = build_evaluator(config, load_data(config))
    facts, notes = _introduce(config, evaluator, report)
    start = _start(config, evaluator, results, report)
    made_with = environment(config.run.seed, source_digest().hex(), checkout()) | {"overrides": overrides}
    results.before = start.spent
    results.start(config_yaml(config), made_with | {"facts": facts}, rounds_done=start.server_round)
    directory = _roll_call(grid, config, report)
    strategy = _make_strategy(config, evaluator.task, directory, report)
    run = Run(grid, strategy, evaluator, results, config, report)
    with tracking(config, results.folder, start.server_round, report) as results.on_round:
        end = run_rounds(run, start)
    save_trained(run, end.state)
    return results.finish(_summary(run, directory, end) | {"data_notes": notes}, run.metric)


def _introduce(config: Config, evaluator: Evaluator, report: Report) -> tuple[dict[str, str], list[str]]:
    """Say what the run is, and what is odd about it; return the facts, and the notes on the data."""
    parts = {"test": evaluator.test, "validation": evaluator.validation, "sampled training": evaluator.train}
    notes = data_notes(evaluator.task.train, evaluator.task.test, parts, config.model.max_tokens)
    facts, of_model = run_facts(config, evaluator.task), model_notes(evaluator.model, lora_settings(config))
    for line in (*map(": ".join, facts.items()), *(f"note: {note}" for note in (*of_model, *notes))):
        report(line)
    return facts, notes


def _start(config: Config, evaluator: Evaluator, results: ResultsFolder, report: Report) -> Checkpoint:
    if config.run.resume and has_checkpoint(results.folder):
        return load_checkpoint(results.folder, describe(config, evaluator.task).spec)
    if config.run.resume:
        report("no checkpoint yet: from the beginning")
    return Checkpoint(0, 0.0, get_adapter(evaluator.model), None)


def _roll_call(grid: Grid, config: Config, report: Report) -> Directory:
    n, r = config.network, config.run
    nodes = wait_for_nodes(grid, n.num_devices, r.node_timeout_s, report, n.min_devices)
    code, patience_s = device_code(config), max(r.round_timeout_s, r.node_timeout_s)
    directory = query_directory(grid, nodes, code, patience_s, places=n.num_devices, least=n.min_devices)
    report(f"{directory.present.size} devices are there")
    return directory


def _make_strategy(config: Config, task: TaskData, directory: Directory, report: Report) -> LoraStrategy:
    fleet = build_fleet(config, task, load_tokenizer(model_settings(config)), directory.num_examples)
    for device, announced in enumerate(directory.announced):
        if announced is not None and announced.facts:
            fleet = fleet.with_announcement(device, announced)
    strategy = build_strategy(config, describe(config, task).spec, fleet, directory)
    if strategy.personalised:
        held = f"{config.run.client_evaluation:.0%} of their examples (run.client_evaluation)"
        report(f"devices hold out {held} to score their own models; there is no test score: {config.strategy.name}")
    return strategy


def save_trained(run: Run, state: AdapterState) -> None:
    """Write ``adapter/`` in PEFT's format and the changes of frozen weights, (out_features, in_features) by module."""
    folder, name, incomplete = run.results.folder, run.config.strategy.name, ""
    if run.strategy.personalised:
        incomplete = f"with {name} every device keeps the rest of its own, and only what all devices share is here"
    elif state.base:
        written = f"lies in `{BASE_DELTA}` beside this folder; `fedlodrop export RUN --to merged` writes the whole"
        incomplete = f"{name} also changed the base. Its change {written}"
    incomplete = incomplete and f"These factors alone are no trained model: {incomplete}."
    model, names = run.evaluator.model, run.evaluator.task.label_names
    set_adapter(model, state)
    save_adapter(model, folder / "adapter", label_names=names, incomplete=incomplete)
    if state.base:
        with written_whole(folder / BASE_DELTA) as temporary:
            save_file(state.base, temporary)
    make_readable([*(folder / "adapter").iterdir(), folder / BASE_DELTA], like=folder / "config.yaml")


def _summary(run: Run, directory: Directory, end: Checkpoint) -> dict[str, Any]:
    """Return what summary.json says of a run beside its scores and totals; tell what a person should see of it."""
    config, task, strategy, prefix = run.config, run.evaluator.task, run.strategy, run.evaluator.prefix
    answers = compare_answers(run.evaluator, load_tokenizer(model_settings(config)))
    if prefix is not None:
        run.report(f"prefix cache of the evaluation: {prefix.describe()}")
    return {
        "task": task.name,
        "strategy": config.strategy.name,
        "allocator": config.allocator.name,
        "seed": config.run.seed,
        "task_kind": task.kind,
        "label_names": list(task.label_names),
        "confusion": None if strategy.personalised else confusion(run.evaluator),
        "initial": end.initial,
        "ended_early": end.server_round < config.run.num_rounds,
        "setup_bytes": directory.setup_bytes,
        "device_classes": list(strategy.fleet.device_class),
        "adapter_parameters": strategy.spec.droppable_parameters,
        "head_parameters": strategy.spec.head_parameters,
        "num_outputs": task.num_outputs,
        "kind": task.kind,
        **({"answers": answers} if answers else {}),
        **({} if prefix is None else {"prefix_cache": prefix.report()}),
    }
