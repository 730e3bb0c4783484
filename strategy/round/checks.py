"""A device is not trusted: every reply is checked in full before anything of it touches the model."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from flwr.app import ArrayRecord, Message, Metadata, MetricRecord, RecordDict

from adapter import AdapterMask, AdapterSpec, AdapterState, PayloadError, ProtocolError, RoundInstruction, RoundReport
from adapter.mask import Factors
from adapter.pack import WIRE_DTYPES, unpack
from adapter.protocol import BUFFER, LARGEST, RAW, REPORT, Delivery, wire_spec
from strategy.round.messages import last_line

_ERROR_KINDS = {2: "client_error", 3: "expired", 5: "unavailable", 8: "process_died"}  # by Flower's code
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

    Survivors are drawn again when needed: the indices of a thousand devices would fill the server's memory.
    """

    device: int
    metadata: Metadata  # of the message
    instruction: RoundInstruction
    draw_mask: Callable[[], AdapterMask]
    num_examples: int  # as announced
    downlink_bytes: int
    weight: float = 1.0  # of the answer in the average


def match(
    replies: Iterable[Message], pending: Iterable[Order], fail: Callable[[int | None, str, str], None], timeout_s: float
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
    reply: Message, order: Order, spec: AdapterSpec, wire_dtype: str, factors: Factors, prunable: bool = False
) -> tuple[AdapterState, RoundReport]:
    """Check an (untrusted) reply against its order; return the survivors' changes, float32, all finite, and the report.

    ``prunable`` devices may answer with a lower rank, which they then name. ReplyError on an error reply or anything
    that is not as ordered: source, round, seed, number of examples, key, type, size, a value that is not finite.
    """
    content = _content(reply, order)
    report, data = _check_report(content, order), _buffer(content, wire_dtype)
    if report.rank and (not prunable or report.rank >= spec.rank):
        raise ReplyError("rank", f"expected rank {spec.rank} as ordered, found {report.rank}")
    try:
        layout = wire_spec(spec, Delivery(rank=report.rank))
        return unpack(layout, data, order.draw_mask(), wire_dtype, factors), report
    except PayloadError as error:
        raise ReplyError("payload", str(error)) from error


def _buffer(content: RecordDict, wire_dtype: str) -> bytes:
    """Return the bytes of the one flat array that a reply holds beside its report."""
    if set(content.keys()) != {BUFFER, REPORT}:
        raise ReplyError("keys", f"expected the records {BUFFER} and {REPORT}, found {sorted(content.keys())}")
    record = content[BUFFER]
    if not isinstance(record, ArrayRecord) or list(record) != [BUFFER]:
        raise ReplyError("keys", f"expected one array named {BUFFER}")
    array = record[BUFFER]
    dtype, shape = WIRE_DTYPES[wire_dtype], tuple(array.shape)
    if array.dtype != dtype.str or array.stype != RAW:
        raise ReplyError("dtype", f"expected {dtype.str} ({RAW}), found {array.dtype!r} ({array.stype!r})")
    if shape != (len(array.data) // dtype.itemsize,):
        raise ReplyError("payload", f"expected a flat shape that fits {len(array.data)} bytes, found {shape}")
    return array.data


def check_scores(reply: Message, order: Order, held_out: int) -> dict[str, float]:
    """Return what a device says of the model on its ``held_out`` examples: scores and ``num-examples``, their weight.

    ReplyError on an error reply or anything unexpected: source, form, a number that would not fit a sum, another
    weight.
    """
    content = _content(reply, order)
    record = content.get(REPORT)
    if set(content.keys()) != {REPORT} or not isinstance(record, MetricRecord):
        raise ReplyError("keys", f"expected one metric record named {REPORT}, found {sorted(content.keys())[:4]}")
    if not 2 <= (found := len(record)) <= _MOST_SCORES:
        raise ReplyError("report", f"expected 1 to {_MOST_SCORES - 1} scores and num-examples, found {found} values")
    for name, value in record.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= LARGEST:
            said = f"for {str(name)[:40]!r}, found {str(value)[:40]!r}"
            raise ReplyError("report", f"expected a number of at most {LARGEST:g} {said}")
    if record.get("num-examples") != held_out or not isinstance(record["num-examples"], int):
        raise ReplyError("examples", f"expected {held_out} held-out examples, found {record.get('num-examples')!r}")
    return {name: float(value) for name, value in record.items()}  # type: ignore[arg-type]


def _content(reply: Message, order: Order) -> RecordDict:
    """Return what a reply holds if it is an answer, and that of the node that was asked."""
    if reply.has_error():
        reason = reply.error.reason or ""
        # Flower keeps a dead simulation worker in its pool, where it swallows most later messages: the run must stop.
        if any(name in reason for name in ("ActorDiedError", "RayActorError", "WorkerCrashedError")):
            raise ReplyError(WORKER_DIED, "the simulation worker that trained this device died (out of memory?)")
        last = last_line(reason)
        if "MemoryLostError" in last:  # client_app/memory.py
            raise ReplyError(MEMORY_LOST, f"{last}; it is sent everything next time")
        raise ReplyError(_ERROR_KINDS.get(reply.error.code, "error"), last)
    node, expected = reply.metadata.src_node_id, order.metadata.dst_node_id
    if node != expected:
        raise ReplyError("source", f"expected an answer of node {expected}, found node {node}")
    return reply.content


def _check_report(content: RecordDict, order: Order) -> RoundReport:
    record = content.get(REPORT)
    if not isinstance(record, MetricRecord):
        raise ReplyError("keys", f"expected a metric record named {REPORT}")
    try:
        report = RoundReport.from_record(record)
    except ProtocolError as error:
        raise ReplyError("report", str(error)) from error
    for kind, name, wanted in (
        ("round", "server_round", order.instruction.server_round),
        ("seed", "mask_seed", order.instruction.mask_seed),
        ("examples", "num_examples", order.num_examples),
    ):
        if (found := getattr(report, name)) != wanted:
            raise ReplyError(kind, f"expected {name} {wanted}, found {found}")
    return report
