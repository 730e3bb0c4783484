"""Scores of the new model on the devices' own held-out examples: asking for them, checking and averaging them."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from flwr.app import Message

from adapter.protocol import Delivery
from strategy.aggregation.robust import lower_median
from strategy.round.checks import WORKER_DIED, Order, ReplyError, check_scores, match
from strategy.round.ledger import RoundLedger
from strategy.round.messages import Flat, train_message, wire_bytes
from strategy.round.roster import Directory
from strategy.settings import StrategySettings


def question(order: Order, delivery: Delivery, flat: Flat, base: Flat | None, ttl_s: float) -> tuple[Message, Order]:
    """Return the message that asks a device of this round, and what is kept of it to check the answer against."""
    quiet: dict[str, Any] = {"uplink_rate_bps": 0.0, "downlink_rate_bps": 0.0, "dropout_rate": 0.0, "mask_seed": 0}
    instruction = replace(order.instruction, factors="AB", delivery=delivery, **quiet)
    message = train_message(flat, instruction, order.metadata.dst_node_id, ttl_s, "evaluate", base)
    return message, replace(order, metadata=message.metadata, downlink_bytes=wire_bytes(message))


def average_scores(
    replies: Iterable[Message], questions: list[Order], ledger: RoundLedger, directory: Directory, s: StrategySettings
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Return the mean scores, by held-out examples, and the round's record of them (None without answers).

    What goes wrong is recorded in the ledger, as are the devices' own scores.
    """

    def fail(device: int | None, kind: str, message: str) -> None:
        if kind == WORKER_DIED:  # under its own name, for the run cannot go on with it
            ledger.fail(device, kind, message)
        else:
            ledger.fail(device, "evaluation", f"{kind}: {message}")

    scores, uplink = ledger.held_out, 0
    for order, reply in match(replies, questions, fail, s.round_timeout_s):
        announced = directory.announced[order.device]
        try:
            scores[order.device] = check_scores(reply, order, announced.num_holdout if announced else 0)
        except ReplyError as error:
            fail(order.device, error.kind, str(error))
            continue
        uplink += wire_bytes(reply)
    weights = {device: row["num-examples"] for device, row in scores.items() if row["num-examples"]}
    if not weights:
        return {}, None
    if s.max_weight is not None:  # as in training
        most = s.max_weight * lower_median(weights.values())
        weights = {device: min(count, most) for device, count in weights.items()}
    total = sum(weights.values())
    # What every device reported: a device that leaves a score out must not stop the server.
    names = sorted(set.intersection(*(set(row) for row in scores.values())) - {"num-examples"})
    mean = {name: sum(weights[k] * scores[k][name] for k in sorted(weights)) / total for name in names}
    downlink = sum(order.downlink_bytes for order in questions)
    record = {"devices": len(scores), "uplink_bytes": uplink, "downlink_bytes": downlink}
    return {**mean, "num-examples": int(total)}, {**mean, "num_examples": int(total), **record}
