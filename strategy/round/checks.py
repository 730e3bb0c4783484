"""A device is not trusted: every reply is checked in full before anything of it touches the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from flwr.app import ArrayRecord, Message, Metadata, MetricRecord

from adapter import (
    AdapterMask,
    AdapterSpec,
    AdapterState,
    PayloadError,
    ProtocolError,
    RoundInstruction,
    RoundReport,
    unpack,
)
from adapter.pack import WIRE_DTYPES
from adapter.protocol import BUFFER, LARGEST, RAW, REPORT
from strategy.round.sampling import last_line

# What Flower says when a message could not be delivered, in words.
_ERROR_KINDS = {2: "client_error", 3: "expired", 5: "unavailable", 8: "process_died"}
WORKER_DIED = "worker_died"
_MOST_SCORES = 16  # no task has more metrics
MEMORY_LOST = "memory_lost"


class ReplyError(ValueError):
    """A reply that is not used; ``kind`` is one word for the record, the message says what was expected and found."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Order:
    """What one device was told this round, kept on the server to check the answer against.

    The survivors are drawn again when they are needed: the indices of a thousand devices would fill the server's
    memory.
    """

    device: int
    metadata: Metadata  # of the message
    instruction: RoundInstruction
    draw_mask: Callable[[], AdapterMask]
    num_examples: int  # as announced
    downlink_bytes: int
    weight: float = 1.0  # of the answer in the average

    @property
    def node_id(self) -> int:
        """Node that was asked."""
        return self.metadata.dst_node_id

    @property
    def mask(self) -> AdapterMask:
        """The device's survivors."""
        return self.draw_mask()


def match(
    replies: Iterable[Message],
    pending: Iterable[Order],
    fail: Callable[[int | None, str, str], None],
    timeout_s: float,
) -> Iterator[tuple[Order, Message]]:
    """Pair every (untrusted) reply with its order by the message it answers, as it comes.

    ``fail`` is told device, kind and message of strays, duplicates and silence; ``timeout_s`` is how long was waited.
    """
    by_message = {order.metadata.message_id: order for order in pending}
    answered: set[int] = set()
    for reply in replies:
        order = by_message.get(reply.metadata.reply_to_message_id)
        if order is None:
            fail(None, "stray", "an answer to no message of this round was ignored")
        elif order.device in answered:
            fail(order.device, "duplicate", "a second answer was ignored")
        else:
            answered.add(order.device)
            yield order, reply
        del reply
    for device in sorted({order.device for order in by_message.values()} - answered):
        fail(device, "no_answer", f"no answer within {timeout_s:g} s")


def check_reply(
    reply: Message,
    order: Order,
    spec: AdapterSpec,
    wire_dtype: str,
    factors: tuple[str, ...],
    *,
    prunable: bool = False,
) -> tuple[AdapterState, RoundReport]:
    """Check an (untrusted) reply against its order; return the survivors' changes, float32, all finite, and the report.

    ``prunable`` devices may answer with a lower rank, which they then name.

    Raises
    ------
    ReplyError
        On an error reply, a wrong source, round, seed, number of examples, key, type, size, or a value that is not
        finite.
    """
    if reply.has_error():
        raise _error_of(reply.error.code, reply.error.reason or "")
    _check_source(reply, order)
    report = _check_report(reply, order)
    data = _buffer(reply, wire_dtype)
    try:
        if report.rank:
            if not prunable or report.rank >= spec.rank:
                raise ReplyError("rank", f"expected rank {spec.rank} as ordered, found {report.rank}")
            spec = replace(spec, modules=tuple(replace(module, r=report.rank) for module in spec.modules))
        changes = unpack(spec, data, order.mask, wire_dtype, factors)
    except PayloadError as error:
        raise ReplyError("payload", str(error)) from error
    return changes, report


def _buffer(reply: Message, wire_dtype: str) -> bytes:
    """Return the bytes of the one flat array that a reply holds beside its report."""
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
    if tuple(array.shape) != (len(array.data) // WIRE_DTYPES[wire_dtype].itemsize,):
        raise ReplyError(
            "payload", f"expected a flat shape that fits {len(array.data)} bytes, found {tuple(array.shape)}"
        )
    return array.data


def check_scores(reply: Message, order: Order, held_out: int) -> dict[str, float]:
    """Return what a device says of the model on its ``held_out`` examples: scores and ``num-examples``, their weight.

    Raises
    ------
    ReplyError
        On an error reply, a wrong source, a record of another form, a number that would not fit a sum, or another
        number of examples than announced.
    """
    if reply.has_error():
        raise _error_of(reply.error.code, reply.error.reason or "")
    _check_source(reply, order)
    record = reply.content.get(REPORT)
    if set(reply.content.keys()) != {REPORT} or not isinstance(record, MetricRecord):
        raise ReplyError("keys", f"expected one metric record named {REPORT}, found {sorted(reply.content.keys())[:4]}")
    if not 2 <= len(record) <= _MOST_SCORES:
        raise ReplyError(
            "report", f"expected 1 to {_MOST_SCORES - 1} scores and num-examples, found {len(record)} values"
        )
    for name, value in record.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= LARGEST:
            found = f"for {str(name)[:40]!r}, found {str(value)[:40]!r}"
            raise ReplyError("report", f"expected a number of at most {LARGEST:g} {found}")
    if record.get("num-examples") != held_out or not isinstance(record["num-examples"], int):
        raise ReplyError("examples", f"expected {held_out} held-out examples, found {record.get('num-examples')!r}")
    return {name: float(value) for name, value in record.items()}  # type: ignore[arg-type]


def _check_source(reply: Message, order: Order) -> None:
    if reply.metadata.src_node_id != order.node_id:
        raise ReplyError(
            "source", f"expected an answer of node {order.node_id}, found node {reply.metadata.src_node_id}"
        )


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
        raise ReplyError(
            "examples", f"expected {order.num_examples} examples as announced, found {report.num_examples}"
        )
    return report
