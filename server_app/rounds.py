"""The loop of `server_app.session`: train, evaluate, record, save; unlike Flower's, it can start after any round."""

import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

from flwr.app import ConfigRecord

from adapter import AdapterState
from conf.schema import Config
from optimizer.learning_curve import LearningCurveBound
from server_app import pilot
from server_app.build import build_allocator
from server_app.checkpoint import Checkpoint, Saved, has_checkpoint, save_checkpoint
from server_app.evaluate import Evaluator
from server_app.exchange import exchange
from server_app.privacy_account import privacy_spent
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


@dataclass(frozen=True)
class Run:
    """What the rounds of one run work with; ``report`` takes one line of progress."""

    grid: Any  # Flower's; one whose devices work in this process can save and restore their memory, too
    strategy: LoraStrategy
    evaluator: Evaluator
    results: ResultsFolder
    config: Config
    report: Callable[[str], None]

    @property
    def devices_here(self) -> bool:
        """Whether the devices work in this process."""
        return hasattr(self.grid, "save_devices")

    @property
    def metric(self) -> str:
        """The task's primary metric."""
        return self.evaluator.task.primary_metric

    def score_start(self, state: AdapterState) -> dict[str, Any]:
        """Score the model before training."""
        scores = self.evaluator(state)
        self.report(f"before training · test {self.metric} {scores['eval'][self.metric]:.3f}")
        return scores


def run_rounds(run: Run, start: Checkpoint) -> Checkpoint:
    """Run all rounds after ``start`` (round 0 for a new run) and return the position after the last one.

    A new run is scored before training, too: while the devices of the first round are at work, or before where they
    work in this process. DivergedError if a loss is not finite, or ten times that before training for three rounds.
    """
    _go_on(run, start)
    position, astray, r = start, 0, run.config.run
    if position.initial is None and run.devices_here:
        position = replace(position, initial=run.score_start(position.state))
    for server_round in range(start.server_round + 1, r.num_rounds + 1):
        if r.patience is not None and out_of_patience(read_rounds(run.results.folder), run.metric, r.patience):
            run.report(f"no better validation score in {r.patience} evaluations (run.patience): ended early")
            break
        record, position = _one_round(run, position, server_round)
        astray = astray + 1 if runs_away(record, position.initial) else 0
        if not astray:  # else the last good round stays, to go on from
            save_checkpoint(run.results.folder, position)
        elif not has_checkpoint(run.results.folder):
            save_checkpoint(run.results.folder, replace(start, initial=position.initial))
        begins = server_round == start.server_round + 1
        for line in round_lines(record, r.num_rounds, run.metric, begins=begins):
            run.report(line)
        if any(failure["kind"] == WORKER_DIED for failure in record["failures"]):
            raise WorkerDiedError(
                f"a simulation worker died in round {server_round} and Flower does not replace it; if memory ran out, "
                f"let fewer devices train at a time: fedlodrop resume {run.results.folder} run.client_cpus=2 (or more)"
            )
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
    if start.devices is not None and run.devices_here:
        run.grid.restore_devices(start.devices)
        return
    for device in range(len(strategy.directory.node_ids)):  # nobody remembers anything in a new process
        strategy.book.forget(device)
    if strategy.personalised:
        run.report("devices keep their own lora_B and head with their processes: restarted ones begin from the seed")


def _one_round(run: Run, before: Checkpoint, server_round: int) -> tuple[dict[str, Any], Checkpoint]:
    """Train, evaluate and record one round; return its record and the position after it."""
    strategy, r, begun = run.strategy, run.config.run, time.perf_counter()
    learnt = _learn(run)
    changes = look_around(run.grid, strategy, r.node_timeout_s, run.report)
    with ThreadPoolExecutor(1) as beside:
        scores = beside.submit(run.score_start, before.state) if before.initial is None else None
        state, record = _train(run, before.state, server_round)
    initial = before.initial if scores is None else scores.result()
    note_changes(record, strategy, changes)
    learn_from_round(strategy)
    record["sim_time_s"] = before.sim_time_s + record["sim_latency_s"]
    due = server_round % r.eval_every == 0 or server_round == r.num_rounds
    if due and not strategy.personalised:
        began = time.perf_counter()
        record |= run.evaluator(state)
        if not math.isfinite(record["eval"]["loss"]):
            raise _diverged(run, f"the test loss of round {server_round} is not finite")
        record["eval_s"] = time.perf_counter() - began
    if run.config.privacy.clip_norm is not None:
        record["privacy"] = privacy_spent(run.config, [*read_rounds(run.results.folder), record])
    record |= learnt
    record["wall_s"] = time.perf_counter() - begun
    run.results.append_round(record)
    method, devices = Saved(*strategy.memory()), run.grid.save_devices() if run.devices_here else None
    known = method, devices, strategy.fleet.learned(), run.results.spent()
    return record, Checkpoint(server_round, record["sim_time_s"], state, initial, strategy.last_solution, *known)


def _learn(run: Run) -> dict[str, Any]:
    """Fit the learning curve's exponents to the rounds on disk, so that resumed runs go on; return them."""
    if not (run.config.bound.pilot and run.config.bound.refit):
        return {}
    objective = pilot.objective(run.config, read_rounds(run.results.folder))
    run.strategy.allocator = build_allocator(run.config, objective)
    return {"exponents": asdict(objective.exponents)} if isinstance(objective, LearningCurveBound) else {}


def _train(run: Run, state: AdapterState, server_round: int) -> tuple[AdapterState, dict[str, Any]]:
    """Run the training (and device-side evaluation) of one round; return the new adapter and the record so far."""
    strategy, timeout_s = run.strategy, run.config.run.round_timeout_s
    arrays = state_to_record(state)
    messages = strategy.configure_train(server_round, arrays, ConfigRecord(), run.grid)
    replies = exchange(run.grid, messages, timeout_s)
    del messages  # the buffers of all devices
    new, _ = strategy.aggregate_train(server_round, replies)
    if new is not None:
        arrays, state = new, state_from_record(new, strategy.spec)
    questions = strategy.configure_evaluate(server_round, arrays, ConfigRecord(), run.grid)
    if questions:
        strategy.aggregate_evaluate(server_round, exchange(run.grid, questions, timeout_s))
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
