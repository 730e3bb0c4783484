"""The round loop: train, evaluate, record, save; it can start after any round (Flower's own always starts at round 1)."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from flwr.app import ConfigRecord
from flwr.serverapp import Grid

from adapter import AdapterState
from server_app.checkpoint import Checkpoint, Saved, save_checkpoint
from server_app.engines.in_process import LocalGrid
from server_app.evaluate import Evaluator
from server_app.exchange import exchange
from server_app.privacy_account import PrivacyAccount
from server_app.results import ResultsFolder, read_rounds
from strategy import LoraStrategy
from strategy.round.attendance import learn_from_round, look_around, note_changes
from strategy.round.checks import WORKER_DIED
from strategy.round.messages import state_from_record, state_to_record

_FAR = 2.0  # times the threshold: an honest change is seldom so long


class WorkerDiedError(RuntimeError):
    """A simulation worker is gone and Flower will not replace it; the message is one line for the user."""


class FruitlessRunError(RuntimeError):
    """Not one answer of a device was used in any round; the message is one line for the user."""


@dataclass(frozen=True)
class LoopSettings:
    """Length and rhythm of the loop."""

    num_rounds: int
    eval_every: int
    round_timeout_s: float
    overrides: str
    node_timeout_s: float
    privacy: PrivacyAccount | None = None


def run_rounds(
    grid: Grid,
    strategy: LoraStrategy,
    evaluator: Evaluator,
    results: ResultsFolder,
    start: Checkpoint,
    settings: LoopSettings,
    report: Callable[[str], None],
) -> Checkpoint:
    """Run all remaining rounds.

    A new run is scored before training, too: while the devices of the first round are at work, or before where they
    work in this process.

    Parameters
    ----------
    grid : Grid
        Flower's or the local one.
    strategy, evaluator, results
        The method, the server's scores, and where records go.
    start : Checkpoint
        Position to go on from; round 0 for a new run.
    settings : LoopSettings
        Length and rhythm.
    report : callable
        Takes one line of progress.

    Returns
    -------
    Checkpoint
        Position after the last round.

    Raises
    ------
    WorkerDiedError
        If a simulation worker died; the round is recorded and can be resumed from.
    FruitlessRunError
        If no device could be scheduled in any of the rounds, or no answer of those that were could be used.
    """
    position = start
    strategy.last_solution = start.plan
    strategy.fleet = strategy.fleet.relearned(start.estimates)
    if start.server_round:
        _go_on(grid, strategy, start, report)
    metric, initial = evaluator.task.primary_metric, start.initial
    if initial is None and isinstance(grid, LocalGrid):
        initial = _before_training(evaluator(start.state), metric, report)
    for server_round in range(start.server_round + 1, settings.num_rounds + 1):
        begun = time.perf_counter()
        changes = look_around(grid, strategy, settings.node_timeout_s, report)
        with ThreadPoolExecutor(1) as beside:
            score = beside.submit(evaluator, position.state) if initial is None else None
            state, record = _train(grid, strategy, position.state, server_round, settings.round_timeout_s)
        if score is not None:
            initial = _before_training(score.result(), metric, report)
        note_changes(record, strategy, changes)
        learn_from_round(strategy)
        record["sim_time_s"] = position.sim_time_s + record["sim_latency_s"]
        trained, last = time.perf_counter(), server_round == settings.num_rounds
        if (last or server_round % settings.eval_every == 0) and not strategy.personalised:
            record |= evaluator(state)
            record["eval_s"] = time.perf_counter() - trained
        if settings.privacy is not None:
            record |= settings.privacy.add(record)
        record["wall_s"] = time.perf_counter() - begun
        results.append_round(record)
        position = Checkpoint(
            server_round,
            record["sim_time_s"],
            state,
            initial,
            strategy.last_solution,
            Saved(*strategy.memory()),
            grid.save_devices() if isinstance(grid, LocalGrid) else None,
            strategy.fleet.learned(),
            results.spent(),
        )
        save_checkpoint(results.folder, position, settings.overrides)
        report(round_line(record, settings.num_rounds, metric))
        for failure in record["failures"]:
            report(f"  {failure['device'] or 'unknown device'}: {failure['kind']}: {failure['message']}")
        for line in guard_lines(record, begins=server_round == start.server_round + 1):
            report(f"  {line}")
        if any(failure["kind"] == WORKER_DIED for failure in record["failures"]):
            raise WorkerDiedError(
                f"a simulation worker died in round {server_round} and Flower does not replace it; if memory ran out, let "
                f"fewer devices train at a time: fedlodrop resume {results.folder} run.client_cpus=2 (or more)"
            )
    _check_fruit(read_rounds(results.folder))
    return position


def _check_fruit(rounds: list[dict[str, Any]]) -> None:
    """Refuse to call a run a success of which not one answer was used."""
    rows = [device for record in rounds for device in record["devices"]]
    scheduled = sum(row["scheduled"] for row in rows)
    if any(row["uplink_bytes"] for row in rows) or not rounds:
        return
    if not scheduled:
        reason = next((row["reason"] for row in reversed(rows) if row["reason"]), "no reason given")
        raise FruitlessRunError(
            f"no device could be served in any of {len(rounds)} rounds ({reason}); "
            "raise budget.deadline_s, budget.energy_j or network.total_bandwidth_hz"
        )
    failures = [failure for record in rounds for failure in record["failures"]]
    why = (
        "; ".join(f"{f['device'] or 'unknown device'}: {f['kind']}: {f['message']}" for f in failures[:1])
        or "no reason given"
    )
    raise FruitlessRunError(f"0 of {scheduled} answers used in {len(rounds)} rounds, so nothing was learnt ({why})")


def _go_on(grid: Grid, strategy: LoraStrategy, start: Checkpoint, report: Callable[[str], None]) -> None:
    """Give the method its knowledge back, and the devices their memory where this engine can."""
    strategy.restore(start.method.facts, start.method.tensors)
    if start.devices is not None and isinstance(grid, LocalGrid):
        grid.restore_devices(start.devices)
        return
    strategy.book.forget_all()
    if strategy.personalised:
        report(
            "devices keep their own lora_B and head with their processes: those that were restarted begin from the seed"
        )


def _before_training(scores: dict[str, Any], metric: str, report: Callable[[str], None]) -> dict[str, Any]:
    report(f"before training · test {metric} {scores['eval'][metric]:.3f}")
    return scores


def _train(
    grid: Grid, strategy: LoraStrategy, state: AdapterState, server_round: int, timeout_s: float
) -> tuple[AdapterState, dict[str, Any]]:
    """Run the training (and device-side evaluation) of one round; return the new adapter and the record so far."""
    arrays = state_to_record(state, strategy.spec)
    messages = strategy.configure_train(server_round, arrays, ConfigRecord(), grid)
    replies = exchange(grid, messages, timeout_s)
    del messages  # the buffers of all devices
    new, _ = strategy.aggregate_train(server_round, replies)
    if new is not None:
        arrays, state = new, state_from_record(new, strategy.spec)
    questions = strategy.configure_evaluate(server_round, arrays, ConfigRecord(), grid)
    if questions:
        strategy.aggregate_evaluate(server_round, exchange(grid, questions, timeout_s))
    assert strategy.ledger is not None
    record = strategy.ledger.to_dict()
    if strategy.evaluation is not None:
        record["client_eval"] = strategy.evaluation
    if strategy.personalised:  # then the mean over the devices' own models is the only score
        record["personalised"] = True
    return state, record


def guard_lines(record: dict[str, Any], *, begins: bool) -> list[str]:
    """Return what a person must know of answers that were not averaged as they came.

    About half of the honest changes are a little longer than the median one: named are those of twice its length and
    more. What stays the same from round to round is said when a run begins and when somebody joins.
    """
    lines = []
    if begins or record.get("joined"):
        for row in record.get("capped", ()):
            lines.append(
                f"{row['device']}: announces {row['num_examples']} examples and weighs {row['weight']:g} (strategy.max_weight)"
            )
        if robust := record.get("robust"):
            votes = 2 * robust["stands"] + 1
            lines.append(
                f"{robust['kind']} stands {robust['stands']} hostile of {record['answers']['asked']} devices (strategy.trim); "
                f"entries with fewer than {votes} votes do not move: {robust['unmoved']:.0%} of this round's"
            )
    for row in record.get("clipped", ()):
        if row["norm"] >= _FAR * row["threshold"]:
            lines.append(
                f"{row['device']}: its change of norm {row['norm']:.3g} was scaled down to {row['threshold']:.3g}"
            )
    return lines


def round_line(record: dict[str, Any], num_rounds: int, metric: str) -> str:
    """Return one finished round as a line of text."""
    rates = [device["dropout_rate"] for device in record["devices"] if device["scheduled"]]
    asked = len(record["devices"])
    parts = [f"round {record['round']}/{num_rounds}"]
    if record["train_loss"] is not None:
        parts.append(f"train loss {record['train_loss']:.3f}")
    if "eval" in record:
        parts.append(f"test loss {record['eval']['loss']:.3f}")
        parts.append(f"{metric} {record['eval'][metric]:.3f}")
    elif record.get("personalised") and metric in record.get("client_eval", {}):
        parts.append(f"{metric} {record['client_eval'][metric]:.3f} (devices' own models, held-out)")
    if rates:
        parts.append(f"dropout {min(rates):.2f}-{max(rates):.2f}")
    unused = bool(rates) and not any(device["uplink_bytes"] for device in record["devices"])
    parts.append(
        f"devices {len(rates)}/{asked}" + (", no answer used" if unused else "" if rates else ", round skipped")
    )
    parts.append(f"up {sum(device['uplink_bytes'] for device in record['devices']) / 1e3:.0f} kB")
    parts.append(f"simulated {record['sim_time_s']:.1f} s, {record['energy_j']:.2f} J")
    return " · ".join(parts)
