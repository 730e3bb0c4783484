"""Adapters and orders as Flower messages: one raw buffer beside one flat record, in each direction."""

import copy
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from adapter import AdapterSpec, AdapterState, RoundInstruction
from adapter.protocol import BASE, BUFFER, INSTRUCTION, buffer_fields
from strategy.flower_internals import to_wire

_BASE_DELTA = ".base_delta"
LONGEST_REASON = 400  # characters of a remote error that are kept
_REMOTE = re.compile(r"<class '(?:\w+\.)*(\w+)'>:<'(.*)'>", re.DOTALL)  # a SuperNode's form of an exception


def train_message(
    flat: npt.NDArray[np.generic],
    instruction: RoundInstruction,
    node_id: int,
    ttl_s: float,
    kind: str = "train",
    *,
    base: npt.NDArray[np.generic] | None = None,
) -> Message:
    """Build one device's message: its sub-adapter, an update of the base if there is one, and its orders."""
    arrays = {BUFFER: Array(**buffer_fields(flat))}
    if base is not None:
        arrays[BASE] = Array(**buffer_fields(base))
    content = RecordDict({BUFFER: ArrayRecord(arrays), INSTRUCTION: ConfigRecord(instruction.to_record())})
    return Message(content, node_id, kind, group_id=str(instruction.server_round), ttl=ttl_s)


def wire_bytes(message: Message) -> int:
    """Return the serialized size of a message in bytes, as it would be with identifiers of full length.

    Node, run and task identifiers are random 64-bit numbers that Flower writes with 1 to 10 bytes. Their longest form
    is counted, so that equal runs report equal bytes; the true message is at most 40 bytes shorter.
    """
    # Serializing copies every buffer four times, 7 ms for each MiB: a twin without them is measured. Not
    # `content.array_records`: that view refers to its record and back, and a buffer in such a ring is freed late.
    twin, sizes = copy.copy(message), []
    if message.has_content():
        twin.content = RecordDict(dict(message.content))
        for name, record in message.content.items():
            if isinstance(record, ArrayRecord):
                twin.content[name] = ArrayRecord({k: Array(a.dtype, a.shape, a.stype, b"") for k, a in record.items()})
                sizes += [len(array.data) for array in record.values()]
    proto = to_wire(twin)
    metadata = proto.metadata
    metadata.run_id = metadata.src_node_id = metadata.dst_node_id = 2**64 - 1
    metadata.src_task_id = metadata.dst_task_id = 2**64 - 1
    metadata.message_id = "f" * 64
    metadata.reply_to_message_id = "f" * 64 if message.metadata.reply_to_message_id else ""
    metadata.created_at = metadata.ttl = 1.5
    return _filled(proto, iter(sizes))


def _filled(proto: Any, sizes: Iterator[int]) -> int:
    """Return the size of a serialized message once its arrays, in their order, hold buffers of these sizes."""
    total = int(proto.ByteSize())
    if proto.DESCRIPTOR.name == "Array" and (size := next(sizes)):
        total += 1 + _varint(size) + size  # tag, length, bytes; an empty field is not written
    for field, value in proto.ListFields():
        for inner in () if field.message_type is None else [value] if hasattr(value, "ByteSize") else value:
            empty, full = inner.ByteSize(), _filled(inner, sizes)
            total += full + _varint(full) - empty - _varint(empty)
    return total


def _varint(value: int) -> int:
    """Bytes of a length in the wire format: seven bits each."""
    return max(1, -(-value.bit_length() // 7))


def state_to_record(state: AdapterState, spec: AdapterSpec) -> ArrayRecord:
    """Return the global adapter as Flower's array record, keyed ``<module>.lora_A.weight`` like PEFT's files."""
    values = {
        f"{name}.{part}.weight": value for part in ("lora_A", "lora_B") for name, value in state.parts()[part].items()
    }
    values |= {name: state.head[name] for name, _ in spec.head}
    values |= {name + _BASE_DELTA: value for name, value in state.base.items()}
    return ArrayRecord({name: Array(np.asarray(value, dtype=np.float32)) for name, value in values.items()})


def state_from_record(record: ArrayRecord, spec: AdapterSpec) -> AdapterState:
    """Inverse of `state_to_record`."""
    return AdapterState(
        {m.name: record[f"{m.name}.lora_A.weight"].numpy() for m in spec.modules},
        {m.name: record[f"{m.name}.lora_B.weight"].numpy() for m in spec.modules},
        {name: record[name].numpy() for name, _ in spec.head},
        {m.name: record[m.name + _BASE_DELTA].numpy() for m in spec.modules if m.name + _BASE_DELTA in record},
    )


def last_line(reason: str | None) -> str:
    """Return the last non-empty line of a remote error: a traceback, or a SuperNode's form of one."""
    remote = _REMOTE.fullmatch((reason or "").strip())
    text = f"{remote[1]}: {remote[2]}" if remote else reason or ""
    lines = [line.strip() for line in text.replace("\\n", "\n").splitlines() if line.strip()]
    last = lines[-1] if lines else "no reason given"
    return last if len(last) <= LONGEST_REASON else last[: LONGEST_REASON - 1] + "…"
