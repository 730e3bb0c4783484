"""One run on the server, from the composed configuration to the saved adapter."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flwr.serverapp import Grid

from conf.compose import DEVICE_PACKAGES, ConfigError, checkout, compose_config, config_yaml, source_digest
from conf.plain import lora_settings, model_settings
from conf.schema import Config
from server_app.build import (
    build_evaluator,
    build_fleet,
    build_spec,
    build_strategy,
    load_data,
)
from server_app.checkpoint import Checkpoint, has_checkpoint, load_checkpoint
from server_app.evaluate import Evaluator
from server_app.folders import RESULTS_ROOT, contained, results_folder
from server_app.privacy_account import PrivacyAccount
from server_app.results import ResultsFolder, environment, read_rounds
from server_app.resume import check_start, is_finished
from server_app.rounds import LoopSettings, run_rounds
from server_app.tracking import tracking
from server_app.trained import save_trained
from strategy.round.roster import query_directory
from strategy.round.sampling import wait_for_nodes
from tasks.data.notes import data_notes
from tasks.models.build import get_adapter, load_tokenizer, model_notes

AUTO = "auto"  # run.resume: go on if run.dir holds a checkpoint, else begin


def open_results(overrides: str) -> ResultsFolder:
    """Create the results folder of a run, or open that of a run that goes on, and keep others out of it.

    Raises
    ------
    ConfigError, StorageError
        If it is another run's (`server_app.resume.check_start`) or another process is at work in it; nothing was
        touched.
    """
    config = compose_config(overrides)
    if config.run.resume and config.run.resume != AUTO:
        base = Path(os.environ.get(RESULTS_ROOT) or checkout())
        folder = contained((base / Path(config.run.resume).expanduser()).resolve(), "run.resume")
    else:
        folder = results_folder(config, checkout(), (time.strftime("%Y-%m-%d"), time.strftime("%H-%M-%S")))
    results = ResultsFolder(folder)
    results.hold()
    try:
        check_start(folder, config)
    except ConfigError:
        results.release()
        raise
    return results


def run_session(grid: Grid, overrides: str, results: ResultsFolder, report: Callable[[str], None]) -> dict[str, Any]:
    """Run a federation to its end.

    Parameters
    ----------
    grid : Grid
        Flower's or the local one.
    overrides : str
        Hydra overrides; the devices compose the same string.
    results : ResultsFolder
        Where everything is written.
    report : callable
        Takes one line of progress.

    Returns
    -------
    dict
        The content of summary.json.
    """
    config = compose_config(overrides)
    if is_finished(results.folder, config):
        report(f"already finished: {config.run.num_rounds} rounds in {results.folder}")
        return dict(json.loads((results.folder / "summary.json").read_text()))
    task = load_data(config)
    evaluator = build_evaluator(config, task)
    spec = build_spec(config, task)
    report(
        f"{task.name}: {len(task.train)} training, {len(task.validation)} validation, {len(task.test)} test examples · "
        f"adapter {spec.droppable_parameters} + head {spec.head_parameters} parameters"
    )
    parts = {"test": evaluator.test, "validation": evaluator.validation, "sampled training": evaluator.train}
    notes = data_notes(task.train, task.test, parts, config.model.max_tokens)
    for note in (*model_notes(evaluator.model, lora_settings(config)), *notes):
        report(f"note: {note}")
    start = _start(config, evaluator, results, report)
    made_with = environment(config.run.seed, source_digest().hex(), checkout()) | {"overrides": overrides}
    results.start(config_yaml(config), made_with, rounds_done=start.server_round, spent=start.spent)
    n, r = config.network, config.run
    nodes = wait_for_nodes(grid, n.num_devices, r.node_timeout_s, report, n.min_devices)
    code, patience_s = source_digest(DEVICE_PACKAGES), max(r.round_timeout_s, r.node_timeout_s)
    directory = query_directory(grid, nodes, code, patience_s, places=n.num_devices, least=n.min_devices)
    report(f"{directory.present.size} devices are there")
    fleet = build_fleet(config, task, load_tokenizer(model_settings(config)), directory.num_examples)
    fleet = fleet.with_facts(directory.announced)
    strategy = build_strategy(config, spec, fleet, directory)
    if strategy.personalised:
        held = f"{config.run.client_evaluation:.0%} of their examples (run.client_evaluation)"
        report(
            f"{config.strategy.name} is personalised: devices hold out {held} to score their own models; there is no test score"
        )
    account = PrivacyAccount(config.privacy, read_rounds(results.folder))
    settings = LoopSettings(r.num_rounds, r.eval_every, r.round_timeout_s, overrides, r.node_timeout_s, account)
    resolved = asdict(config)
    curves = tracking(config.tracking, results.folder, config.run.name, resolved, start.server_round, report)
    with curves as results.on_round:
        end = run_rounds(grid, strategy, evaluator, results, start, settings, report)
    save_trained(results.folder, evaluator.model, end.state, config, task.label_names)
    extra = {
        "task": task.name,
        "strategy": config.strategy.name,
        "allocator": config.allocator.name,
        "seed": config.run.seed,
        "task_kind": task.kind,
        "label_names": list(task.label_names),
        "initial": end.initial,
        "setup_bytes": directory.setup_bytes,
        "device_classes": list(fleet.device_class),
        "adapter_parameters": spec.droppable_parameters,
        "head_parameters": spec.head_parameters,
        "num_outputs": task.num_outputs,
        "kind": task.kind,
        "data_notes": notes,
    }
    if evaluator.prefix is not None:
        report(f"prefix cache of the evaluation: {evaluator.prefix.describe()}")
        extra["prefix_cache"] = evaluator.prefix.report()
    return results.finish(extra, task.primary_metric)


def _start(config: Config, evaluator: Evaluator, results: ResultsFolder, report: Callable[[str], None]) -> Checkpoint:
    if config.run.resume and has_checkpoint(results.folder):
        return load_checkpoint(results.folder, build_spec(config, evaluator.task))
    if config.run.resume:
        report("no checkpoint yet: from the beginning")
    return Checkpoint(0, 0.0, get_adapter(evaluator.model), None)
