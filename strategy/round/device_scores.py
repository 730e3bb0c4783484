"""Scores of the new model on the devices' own held-out examples: how a strategy asks for them and averages them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, Metadata, MetricRecord
from flwr.serverapp import Grid

from adapter import AdapterSpec, AdapterState, RoundInstruction, sample_mask
from adapter.delivery import Delivery
from strategy.averages.robust import lower_median
from strategy.round.checks import WORKER_DIED, Order, ReplyError, check_scores, match
from strategy.round.device_book import DeviceBook
from strategy.round.ledger import RoundLedger
from strategy.round.messages import state_from_record, train_message, wire_bytes
from strategy.round.roster import Directory
from strategy.round.sending import contents, with_base
from strategy.settings import StrategySettings


class DeviceScores:
    """Flower's two evaluation hooks, for `strategy.base.LoraStrategy`."""

    spec: AdapterSpec
    settings: StrategySettings
    directory: Directory
    book: DeviceBook
    ledger: RoundLedger | None
    evaluation: dict[str, Any] | None
    _state: AdapterState | None
    _pending: list[tuple[Metadata, Order]]
    _questions: list[tuple[Metadata, Order]]
    _evaluate_downlink = 0

    def evaluation_delivery(self, device: int) -> Delivery:
        """Return what a device is sent to score the new model: all of it, and nothing of it is kept."""
        return with_base(Delivery(), self.book, device)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Send the whole adapter to this round's scheduled devices, if they are to score it (Flower's hook)."""
        self.evaluation = None
        if not self.settings.client_evaluation or self.ledger is None:
            return []
        self._state = state_from_record(arrays, self.spec)
        mask = sample_mask(self.spec, 0, 0.0)
        messages, self._questions = [], []
        for _, order in self._pending:
            delivery = self.evaluation_delivery(order.device)
            flat, base = contents(self.spec, delivery, self._state, mask, self.book, self.settings.downlink_dtype)
            instruction = RoundInstruction(
                server_round,
                0.0,
                0,
                order.instruction.bandwidth_hz,
                order.instruction.tx_power_w,
                order.instruction.deadline_s,
                order.instruction.cpu_hz,
                "AB",
                self.settings.code,
                delivery,
            )
            timeout_s = self.settings.round_timeout_s
            message = train_message(flat, instruction, order.node_id, timeout_s, "evaluate", base=base)
            messages.append(message)
            self._questions.append((message.metadata, order))
        self._evaluate_downlink = sum(wire_bytes(message) for message in messages)
        return messages

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Average the devices' scores, weighted by held-out examples (Flower's hook)."""
        if not self.settings.client_evaluation:
            return None
        assert self.ledger is not None
        scores: dict[int, dict[str, float]] = {}
        uplink = 0
        for order, reply in match(replies, self._questions, self._fail, self.settings.round_timeout_s):
            try:
                row = check_scores(reply, order, self.directory.held_out(order.device))
            except ReplyError as error:
                self._fail(order.device, error.kind, str(error))
                continue
            scores[order.device] = row
            uplink += wire_bytes(reply)
        weights = self._score_weights(scores)
        total = sum(weights.values())
        if not total:
            return None
        # What every device reported: a device that leaves a score out must not stop the server.
        names = sorted(set.intersection(*(set(row) for row in scores.values())) - {"num-examples"})
        mean = {name: sum(weights[k] * scores[k][name] for k in sorted(weights)) / total for name in names}
        self.evaluation = {
            **mean,
            "num_examples": int(total),
            "devices": len(scores),
            "uplink_bytes": uplink,
            "downlink_bytes": self._evaluate_downlink,
        }
        return MetricRecord({**mean, "num-examples": int(total)})

    def _score_weights(self, scores: dict[int, dict[str, float]]) -> dict[int, float]:
        """Weight of every answer: its held-out examples, held to a multiple of the median one as in training."""
        held_out = {device: row["num-examples"] for device, row in scores.items() if row["num-examples"]}
        limit = self.settings.max_weight
        if limit is None or not held_out:
            return held_out
        return {device: min(count, limit * lower_median(held_out.values())) for device, count in held_out.items()}

    def _fail(self, device: int | None, kind: str, message: str) -> None:
        """Record an answer that is not used; a dead worker under its own name, for the run cannot go on with it."""
        assert self.ledger is not None
        self.ledger.fail(device, *((kind, message) if kind == WORKER_DIED else ("evaluation", f"{kind}: {message}")))
