"""Scores of the new model on the devices' own held-out examples: how a strategy asks for them and averages them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, Metadata, MetricRecord
from flwr.serverapp import Grid

from adapter import AdapterSpec, AdapterState, RoundInstruction, sample_mask
from adapter.delivery import Delivery
from strategy.book import DeviceBook
from strategy.checks import Order, ReplyError, check_scores
from strategy.ledger import RoundLedger
from strategy.messages import state_from_record, train_message, wire_bytes
from strategy.roster import Directory
from strategy.sending import contents, with_base
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
    _evaluate_downlink = 0

    def evaluation_delivery(self, device: int) -> Delivery:
        """Return what a device is sent to score the new model: all of it, and nothing of it is kept."""
        return with_base(Delivery(), self.book, device)

    def configure_evaluate(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> list[Message]:
        """Send the whole adapter to this round's scheduled devices, if they are to score it (Flower's hook)."""
        self.evaluation = None
        if not self.settings.client_evaluation or self.ledger is None:
            return []
        self._state = state_from_record(arrays, self.spec)
        mask = sample_mask(self.spec, 0, 0.0)
        messages = []
        for _, order in self._pending:
            delivery = self.evaluation_delivery(order.device)
            flat, base = contents(self.spec, delivery, self._state, mask, self.book, self.settings.downlink_dtype)
            instruction = RoundInstruction(
                server_round, 0.0, 0, order.instruction.bandwidth_hz, order.instruction.tx_power_w,
                order.instruction.deadline_s, order.instruction.cpu_hz, "AB", self.settings.code, delivery,
            )  # fmt: skip
            timeout_s = self.settings.round_timeout_s
            messages.append(train_message(flat, instruction, order.node_id, timeout_s, "evaluate", base=base))
        self._evaluate_downlink = sum(wire_bytes(message) for message in messages)
        return messages

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Average the devices' scores, weighted by held-out examples (Flower's hook)."""
        if not self.settings.client_evaluation:
            return None
        devices = {order.node_id: order.device for _, order in self._pending}
        scores: dict[int, dict[str, float]] = {}
        uplink = 0
        for reply in replies:
            device = devices.get(reply.metadata.src_node_id)
            try:
                row = check_scores(reply, None if device is None else self.directory.held_out(device))
                if device is None or device in scores:
                    raise ReplyError("duplicate", "a second answer was ignored")
            except ReplyError as error:
                assert self.ledger is not None
                self.ledger.fail(device, "evaluation", f"{error.kind}: {error}")
                continue
            scores[device] = row
            uplink += wire_bytes(reply)
        total = sum(row["num-examples"] for row in scores.values())
        if not total:
            return None
        # What every device reported: a device that leaves a score out must not stop the server.
        names = sorted(set.intersection(*(set(row) for row in scores.values())) - {"num-examples"})
        mean = {name: sum(scores[k]["num-examples"] * scores[k][name] for k in sorted(scores)) / total for name in names}
        self.evaluation = {**mean, "num_examples": int(total), "devices": len(scores), "uplink_bytes": uplink,
                           "downlink_bytes": self._evaluate_downlink}  # fmt: skip
        return MetricRecord({**mean, "num-examples": int(total)})
