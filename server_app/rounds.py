"""The loop of `server_app.session`: train, evaluate, record, save; unlike Flower's, it can start after any round."""

import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

from flwr.app import ConfigRecord
from flwr.serverapp import Grid

from adapter import AdapterState
from conf.schema import RunConfig
from server_app.checkpoint import Checkpoint, Saved, has_checkpoint, save_checkpoint
from server_app.evaluate import Evaluator
from server_app.exchange import exchange
from server_app.privacy_account import PrivacyAccount
from server_app.progress import failure_text, round_lines
from server_app.results import ResultsFolder, out_of_patience, read_rounds
from strategy import LoraStrategy
from strategy.round.attendance import learn_from_round, look_around, note_changes
from strategy.round.checks import WORKER_DIED
from strategy.round.messages import state_from_record, state_to_record


class WorkerDiedError(RuntimeError):
    """A simulation worker is gone and Flower will not replace it; the message is one line for the user."""


class FruitlessRunError(RuntimeError):
    """Not one answer of a device was used in any round; the message is one line for the user."""


class DivergedError(RuntimeError):
    """The loss left every bound; the message is one line for the user."""


_BEYOND = ("not finite", "expected changes of at most")  # what refused answers say of a training without bounds
_FAR, _LONG = 10.0, 3  # so many times the loss before training, for so many rounds, is no setback any more


@runtime_checkable
class DevicesHere(Protocol):
    """A grid whose devices work in this process, so that their memory can be saved with the checkpoint."""

    def save_devices(self) -> Saved:
        """Return what the devices remember."""

    def restore_devices(self, saved: Saved) -> None:
        """Give every device its memory back."""


@dataclass(frozen=True)
class Run:
    """What the rounds of one run work with; ``report`` takes one line of progress."""

    grid: Grid
    strategy: LoraStrategy
    evaluator: Evaluator
    results: ResultsFolder
    settings: RunConfig
    privacy: PrivacyAccount
    report: Callable[[str], None]
    learn: Callable[[LoraStrategy], dict[str, Any]]  # before a round: lets the plan know what the last ones have shown

    @property
    def metric(self) -> str:
        """The task's primary metric."""
        return self.evaluator.task.primary_metric


def run_rounds(run: Run, start: Checkpoint) -> Checkpoint:
    """Run all rounds after ``start`` (round 0 for a new run) and return the position after the last one.

    A new run is scored before training, too: while the devices of the first round are at work, or before where they
    work in this process. WorkerDiedError if a simulation worker died; the round is recorded and can be resumed from.
    DivergedError if a loss is not finite, or ten times that before training for three rounds. FruitlessRunError if no
    device could be scheduled in any round, or no answer could be used.
    """
    _go_on(run, start)
    position, astray = start, 0
    if position.initial is None and isinstance(run.grid, DevicesHere):
        position = replace(position, initial=_before_training(run, run.evaluator(position.state)))
    patience = run.settings.patience
    for server_round in range(start.server_round + 1, run.settings.num_rounds + 1):
        if patience is not None and out_of_patience(read_rounds(run.results.folder), run.metric, patience):
            run.report(f"no better validation score in {patience} evaluations (run.patience): ended early")
            break
        record, position = _one_round(run, position, server_round)
        astray = astray + 1 if runs_away(record, position.initial) else 0
        if not astray:  # else the last good round stays, to go on from
            save_checkpoint(run.results.folder, position)
        elif not has_checkpoint(run.results.folder):
            save_checkpoint(run.results.folder, replace(start, initial=position.initial))
        begins = server_round == start.server_round + 1
        for line in round_lines(record, run.settings.num_rounds, run.metric, begins=begins):
            run.report(line)
        _check_workers(record, run)
        if astray == _LONG:
            raise _diverged(run, f"the loss was more than {_FAR:g} times that before training for {_LONG} rounds")
    _check_fruit(read_rounds(run.results.folder))
    return position


def _go_on(run: Run, start: Checkpoint) -> None:
    """Give the method its knowledge back, and the devices their memory where this engine can."""
    strategy = run.strategy
    strategy.last_solution = start.plan
    strategy.fleet = strategy.fleet.relearned(start.estimates)
    if start.server_round == 0:
        return
    strategy.restore(start.method.facts, start.method.tensors)
    if start.devices is not None and isinstance(run.grid, DevicesHere):
        run.grid.restore_devices(start.devices)
        return
    strategy.book.forget_all()
    if strategy.personalised:
        run.report(
            "devices keep their own lora_B and head with their processes: those that were restarted begin from the seed"
        )


def _one_round(run: Run, before: Checkpoint, server_round: int) -> tuple[dict[str, Any], Checkpoint]:
    """Train, evaluate and record one round; return its record and the position after it."""
    strategy, begun = run.strategy, time.perf_counter()
    learnt = run.learn(strategy)
    changes = look_around(run.grid, strategy, run.settings.node_timeout_s, run.report)
    with ThreadPoolExecutor(1) as beside:
        score = beside.submit(run.evaluator, before.state) if before.initial is None else None
        state, record = _train(run, before.state, server_round)
    initial = before.initial if score is None else _before_training(run, score.result())
    note_changes(record, strategy, changes)
    learn_from_round(strategy)
    record["sim_time_s"] = before.sim_time_s + record["sim_latency_s"]
    due = server_round % run.settings.eval_every == 0 or server_round == run.settings.num_rounds
    if due and not strategy.personalised:
        began = time.perf_counter()
        record |= run.evaluator(state)
        if not math.isfinite(record["eval"]["loss"]):
            raise _diverged(run, f"the test loss of round {server_round} is not finite")
        record["eval_s"] = time.perf_counter() - began
    record |= run.privacy.add(record) | learnt
    record["wall_s"] = time.perf_counter() - begun
    run.results.append_round(record)
    method, devices = Saved(*strategy.memory()), run.grid.save_devices() if isinstance(run.grid, DevicesHere) else None
    known = method, devices, strategy.fleet.learned(), run.results.spent()
    return record, Checkpoint(server_round, record["sim_time_s"], state, initial, strategy.last_solution, *known)


def _train(run: Run, state: AdapterState, server_round: int) -> tuple[AdapterState, dict[str, Any]]:
    """Run the training (and device-side evaluation) of one round; return the new adapter and the record so far."""
    strategy, timeout_s = run.strategy, run.settings.round_timeout_s
    arrays = state_to_record(state, strategy.spec)
    messages = strategy.configure_train(server_round, arrays, ConfigRecord(), run.grid)
    replies = exchange(run.grid, messages, timeout_s)
    del messages  # the buffers of all devices
    new, _ = strategy.aggregate_train(server_round, replies)
    if new is not None:
        arrays, state = new, state_from_record(new, strategy.spec)
    questions = strategy.configure_evaluate(server_round, arrays, ConfigRecord(), run.grid)
    if questions:
        strategy.aggregate_evaluate(server_round, exchange(run.grid, questions, timeout_s))
    assert strategy.ledger is not None
    record = strategy.ledger.to_dict()
    if strategy.evaluation is not None:
        record["client_eval"] = strategy.evaluation
    if strategy.personalised:  # then the mean over the devices' own models is the only score
        record["personalised"] = True
    return state, record


def runs_away(record: dict[str, Any], initial: dict[str, Any] | None) -> bool:
    """Whether a round's loss is far above that before training, or every device's training ended beyond all numbers."""
    if record["failures"] and not record["answers"]["used"]:
        return all(any(sign in failure["message"] for sign in _BEYOND) for failure in record["failures"])
    loss = record["eval"]["loss"] if "eval" in record else record["train_loss"]
    return initial is not None and loss is not None and loss > _FAR * initial["eval"]["loss"]


def _diverged(run: Run, what: str) -> DivergedError:
    folder = run.results.folder
    return DivergedError(
        f"the run diverged: {what}; go on from its last good round at a lower rate: fedlodrop resume {folder} "
        "training.lr=... (training.head_lr and strategy.server_lr may change, too)"
    )


def _before_training(run: Run, scores: dict[str, Any]) -> dict[str, Any]:
    run.report(f"before training · test {run.metric} {scores['eval'][run.metric]:.3f}")
    return scores


def _check_workers(record: dict[str, Any], run: Run) -> None:
    """End a run whose simulation has lost a worker."""
    if any(failure["kind"] == WORKER_DIED for failure in record["failures"]):
        raise WorkerDiedError(
            f"a simulation worker died in round {record['round']} and Flower does not replace it; if memory ran out, "
            f"let fewer devices train at a time: fedlodrop resume {run.results.folder} run.client_cpus=2 (or more)"
        )


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
    why = next((failure_text(failure) for record in rounds for failure in record["failures"]), "no reason given")
    raise FruitlessRunError(f"0 of {scheduled} answers used in {len(rounds)} rounds, so nothing was learnt ({why})")
