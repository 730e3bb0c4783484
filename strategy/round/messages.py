"""Adapters and orders as Flower messages: one raw buffer beside one flat record, in each direction."""

import copy
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from adapter import AdapterSpec, AdapterState, RoundInstruction
from adapter.protocol import BASE, BUFFER, INSTRUCTION, buffer_fields
from strategy.flower_internals import to_wire

_BASE_DELTA = ".base_delta"


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
    # Serializing copies every buffer four times, 20 ms for each MiB: it is done with empty ones. Not
    # `content.array_records`: that view refers to its record and back, and a buffer in such a ring is freed late.
    content = message.content if message.has_content() else RecordDict()
    records = {name: record for name, record in content.items() if isinstance(record, ArrayRecord)}
    light = {
        name: ArrayRecord({key: Array(array.dtype, array.shape, array.stype, b"") for key, array in record.items()})
        for name, record in records.items()
    }
    envelope = copy.copy(message)
    if light:
        envelope.content = RecordDict({**light, **{name: r for name, r in content.items() if name not in light}})
    proto = to_wire(envelope)
    metadata = proto.metadata
    longest = 2**64 - 1
    metadata.run_id = metadata.src_node_id = metadata.dst_node_id = longest
    metadata.src_task_id = metadata.dst_task_id = longest
    metadata.message_id = "f" * 64
    metadata.reply_to_message_id = "f" * 64 if message.metadata.reply_to_message_id else ""
    metadata.created_at = metadata.ttl = 1.5
    sizes = [[len(array.data) for array in record.values()] for record in records.values()]
    return int(proto.ByteSize()) + _growth(proto.content, sizes)


def _growth(content: Any, left_out: list[list[int]]) -> int:
    """Bytes by which the message grows when the buffers are put back: the buffers, and longer lengths around them."""
    total = 0
    for item, sizes in zip([i for i in content.items if i.HasField("array_record")], left_out, strict=True):
        record = 0
        for entry, size in zip(item.array_record.items, sizes, strict=True):
            array = 1 + _varint(size) + size if size else 0  # tag, length, bytes; an empty field is not written
            record += _grown(entry.ByteSize(), _grown(entry.value.ByteSize(), array))
        total += _grown(item.ByteSize(), _grown(item.array_record.ByteSize(), record))
    return _grown(content.ByteSize(), total)


def _grown(size: int, by: int) -> int:
    """Growth of a field that holds a message of ``size`` bytes when that message grows."""
    return by + _varint(size + by) - _varint(size)


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
