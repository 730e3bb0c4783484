"""A device is not trusted: every reply is checked in full before anything of it touches the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord

from adapter import AdapterMask, AdapterSpec, AdapterState, PayloadError, ProtocolError, RoundInstruction, RoundReport, unpack
from adapter.pack import WIRE_DTYPES
from adapter.protocol import BUFFER, RAW, REPORT
from strategy.sampling import last_line

# What Flower says when a message could not be delivered, in words.
_ERROR_KINDS = {2: "client_error", 3: "expired", 5: "unavailable", 8: "process_died"}
WORKER_DIED = "worker_died"
MEMORY_LOST = "memory_lost"


class ReplyError(ValueError):
    """A reply that is not used; ``kind`` is one word for the record, the message says what was expected and found."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Order:
    """What one device was told this round, kept on the server to check the answer against.

    The survivors are drawn again when they are needed: the indices of a thousand devices would fill the server's memory.
    """

    device: int
    node_id: int
    instruction: RoundInstruction
    draw_mask: Callable[[], AdapterMask]
    num_examples: int
    downlink_bytes: int

    @property
    def mask(self) -> AdapterMask:
        """The device's survivors."""
        return self.draw_mask()


def check_reply(
    reply: Message, order: Order, spec: AdapterSpec, wire_dtype: str, factors: tuple[str, ...]
) -> tuple[AdapterState, RoundReport]:
    """Check a reply against its order and take it apart.

    Parameters
    ----------
    reply : Message
        Untrusted.
    order : Order
        What the device was told.
    spec, wire_dtype, factors
        Layout, number type and travelling factors.

    Returns
    -------
    tuple
        The changes of the survivors, float32, all finite, and the report.

    Raises
    ------
    ReplyError
        On an error reply, a wrong source, round, seed, number of examples, key, type, size, or a value that is not finite.
    """
    if reply.has_error():
        raise _error_of(reply.error.code, reply.error.reason or "")
    if reply.metadata.src_node_id != order.node_id:
        raise ReplyError("source", f"expected an answer of node {order.node_id}, found node {reply.metadata.src_node_id}")
    report = _check_report(reply, order)
    content = reply.content
    if set(content.keys()) != {BUFFER, REPORT}:
        raise ReplyError("keys", f"expected the records {BUFFER} and {REPORT}, found {sorted(content.keys())}")
    record = content[BUFFER]
    if not isinstance(record, ArrayRecord) or list(record) != [BUFFER]:
        raise ReplyError("keys", f"expected one array named {BUFFER}")
    array = record[BUFFER]
    expected_dtype = WIRE_DTYPES[wire_dtype].str
    if array.dtype != expected_dtype or array.stype != RAW:
        raise ReplyError("dtype", f"expected {expected_dtype} ({RAW}), found {array.dtype!r} ({array.stype!r})")
    try:
        changes = unpack(spec, array.data, order.mask, wire_dtype, factors)
    except PayloadError as error:
        raise ReplyError("payload", str(error)) from error
    return changes, report


def _error_of(code: int, reason: str) -> ReplyError:
    # Flower keeps a dead simulation worker in its pool, where it swallows most later messages: the run must stop.
    if any(name in reason for name in ("ActorDiedError", "RayActorError", "WorkerCrashedError")):
        return ReplyError(WORKER_DIED, "the simulation worker that trained this device died (out of memory?)")
    last = last_line(reason)
    if "MemoryLostError" in last:  # client_app/memory.py
        return ReplyError(MEMORY_LOST, f"{last}; it is sent everything next time")
    return ReplyError(_ERROR_KINDS.get(code, "error"), last)


def _check_report(reply: Message, order: Order) -> RoundReport:
    record = reply.content.get(REPORT)
    if not isinstance(record, MetricRecord):
        raise ReplyError("keys", f"expected a metric record named {REPORT}")
    try:
        report = RoundReport.from_record(record)
    except ProtocolError as error:
        raise ReplyError("report", str(error)) from error
    instruction = order.instruction
    for name, kind in (("server_round", "round"), ("mask_seed", "seed")):
        if getattr(report, name) != getattr(instruction, name):
            raise ReplyError(kind, f"expected {name} {getattr(instruction, name)}, found {getattr(report, name)}")
    if report.num_examples != order.num_examples:
        raise ReplyError("examples", f"expected {order.num_examples} examples as announced, found {report.num_examples}")
    return report


def finite_scores(record: MetricRecord) -> bool:
    """Whether a device's scores are finite numbers with a positive count of examples."""
    values = list(record.values())
    numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) and np.isfinite(v) for v in values)
    count = record.get("num-examples")
    return numbers and isinstance(count, int) and count > 0
