"""Scores of the new model on the devices' own held-out examples: asking for them, checking and averaging them."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from flwr.app import Message

from adapter.delivery import Delivery
from strategy.aggregation.robust import lower_median
from strategy.round.checks import WORKER_DIED, Order, ReplyError, check_scores, match
from strategy.round.ledger import RoundLedger
from strategy.round.messages import train_message, wire_bytes
from strategy.round.roster import Directory
from strategy.round.sending import Flat
from strategy.settings import StrategySettings


class DeviceScores:
    """One round's questions and answers; what goes wrong is recorded in the ledger."""

    def __init__(self, ledger: RoundLedger, settings: StrategySettings) -> None:
        self.messages: list[Message] = []
        self._questions: list[Order] = []
        self._ledger, self._settings = ledger, settings

    def ask(self, device: int, delivery: Delivery, flat: Flat, base: Flat | None) -> None:
        """Add the message that asks a device of this round."""
        order = self._ledger.orders[device]
        quiet: dict[str, Any] = {"uplink_rate_bps": 0.0, "downlink_rate_bps": 0.0, "dropout_rate": 0.0, "mask_seed": 0}
        instruction = replace(order.instruction, factors="AB", delivery=delivery, **quiet)
        node, timeout_s = order.metadata.dst_node_id, self._settings.round_timeout_s
        message = train_message(flat, instruction, node, timeout_s, "evaluate", base=base)
        self.messages.append(message)
        self._questions.append(replace(order, metadata=message.metadata, downlink_bytes=wire_bytes(message)))

    def average(self, replies: Iterable[Message], directory: Directory) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """Return the mean scores, by held-out examples, and the round's record of them (None without answers)."""
        scores: dict[int, dict[str, float]] = {}
        uplink = 0
        for order, reply in match(replies, self._questions, self._fail, self._settings.round_timeout_s):
            try:
                scores[order.device] = check_scores(reply, order, directory.held_out(order.device))
            except ReplyError as error:
                self._fail(order.device, error.kind, str(error))
                continue
            uplink += wire_bytes(reply)
        self._ledger.held_out = scores
        weights = self._weights(scores)
        total = sum(weights.values())
        if not total:
            return {}, None
        # What every device reported: a device that leaves a score out must not stop the server.
        names = sorted(set.intersection(*(set(row) for row in scores.values())) - {"num-examples"})
        mean = {name: sum(weights[k] * scores[k][name] for k in sorted(weights)) / total for name in names}
        downlink = sum(order.downlink_bytes for order in self._questions)
        record = {"devices": len(scores), "uplink_bytes": uplink, "downlink_bytes": downlink}
        return {**mean, "num-examples": int(total)}, {**mean, "num_examples": int(total), **record}

    def _weights(self, scores: dict[int, dict[str, float]]) -> dict[int, float]:
        """Weight of every answer: its held-out examples, held to a multiple of the median one as in training."""
        held_out = {device: row["num-examples"] for device, row in scores.items() if row["num-examples"]}
        limit = self._settings.max_weight
        if limit is None or not held_out:
            return held_out
        return {device: min(count, limit * lower_median(held_out.values())) for device, count in held_out.items()}

    def _fail(self, device: int | None, kind: str, message: str) -> None:
        """Record an answer that is not used; a dead worker under its own name, for the run cannot go on with it."""
        self._ledger.fail(device, *((kind, message) if kind == WORKER_DIED else ("evaluation", f"{kind}: {message}")))
