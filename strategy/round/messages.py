"""Adapters and orders as Flower messages, planned in bits and measured in bytes: a raw buffer beside a flat record."""

import copy
import re
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from adapter import AdapterMask, AdapterSpec, AdapterState, RoundInstruction, pack, payload_coefficients
from adapter.base_update import BASE_HEADER_BYTES, base_entries, pack_base
from adapter.mask import Factors
from adapter.protocol import BASE, BUFFER, INSTRUCTION, Delivery, buffer_fields, wire_spec
from optimizer.problem import ResourceProblem
from strategy.flower_internals import to_wire
from strategy.round.device_book import DeviceBook
from strategy.settings import StrategySettings

LONGEST_REASON = 400  # characters of a remote error that are kept
_REMOTE = re.compile(r"<class '(?:\w+\.)*(\w+)'>:<'(.*)'>", re.DOTALL)  # a SuperNode's form of an exception

Flat = npt.NDArray[np.generic]


def travelling(delivery: Delivery, factors: Factors) -> Factors:
    """Factors of an answer: the trained ones, without lora_B where that is personal."""
    return factors if delivery.personal < 0 else ("A",)


def with_deliveries(
    problem: ResourceProblem, spec: AdapterSpec, deliveries: list[Delivery], factors: Factors, s: StrategySettings
) -> ResourceProblem:
    """Return the problem with every participant's s0 + s1 (1 - gamma) bits either way and the work of its rank."""
    parts = [(wire_spec(spec, delivery), delivery) for delivery in deliveries]

    def upload(dtype: str) -> dict[str, Any]:
        sizes = [payload_coefficients(layout, dtype, travelling(delivery, factors)) for layout, delivery in parts]
        return dict(zip(("fixed_bits", "droppable_bits"), np.array(sizes).T, strict=True))

    down = []
    for layout, delivery in parts:
        fixed, droppable = payload_coefficients(layout, s.downlink_dtype, tuple(delivery.sent))
        if delivery.whole:
            fixed, droppable = fixed + droppable, 0.0  # what the device keeps is not cut
        if delivery.has_base:
            fixed += 8 * BASE_HEADER_BYTES + 32 * base_entries(layout, delivery.base_ranks)
        down.append((fixed, droppable))
    down_fixed, down_droppable = np.array(down).T
    return replace(
        problem,
        adapter_cycles=problem.adapter_cycles * np.array([layout.rank / spec.rank for layout, _ in parts]),
        **upload(s.wire_dtype),
        downlink_fixed_bits=down_fixed,
        downlink_droppable_bits=down_droppable,
        choices={dtype: {"noise": variance} | upload(dtype) for dtype, variance in s.wire_noise.items()},
    )


def contents(
    layout: AdapterSpec, delivery: Delivery, values: AdapterState, mask: AdapterMask, book: DeviceBook, dtype: str
) -> tuple[Flat, Flat | None]:
    """Return the buffer of a message, the survivors' values in ``dtype``, and the update of the base beside it."""
    flat = pack(layout, values, mask, dtype, tuple(delivery.sent))
    if not delivery.has_base:
        return flat, None
    return flat, pack_base(layout, values.base, *book.base.since(delivery.base_from))


def train_message(
    flat: Flat, instruction: RoundInstruction, node_id: int, ttl_s: float, kind: str = "train", base: Flat | None = None
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
    # Converting copies every buffer several times: a twin without them is converted, then they are put in, once. Not
    # `content.array_records`: that view refers to its record and back, and a buffer in such a ring is freed late.
    twin, buffers = copy.copy(message), []
    if message.has_content():
        twin.content = RecordDict(dict(message.content))
        for name, record in message.content.items():
            if isinstance(record, ArrayRecord):
                twin.content[name] = ArrayRecord({k: Array(a.dtype, a.shape, a.stype, b"") for k, a in record.items()})
                buffers += [array.data for array in record.values()]
    proto = to_wire(twin)
    arrays = (each for item in proto.content.items for each in item.array_record.items)
    for array, data in zip(arrays, buffers, strict=True):
        array.value.data = data
    metadata = proto.metadata
    metadata.run_id = metadata.src_node_id = metadata.dst_node_id = 2**64 - 1
    metadata.src_task_id = metadata.dst_task_id = 2**64 - 1
    metadata.message_id = "f" * 64
    metadata.reply_to_message_id = "f" * 64 if message.metadata.reply_to_message_id else ""
    metadata.created_at = metadata.ttl = 1.5
    return int(proto.ByteSize())


def state_to_record(state: AdapterState) -> ArrayRecord:
    """Return the global adapter as Flower's array record, keyed ``<part>/<name>``."""
    return ArrayRecord({name: Array(value) for name, value in state.to_tensors().items()})


def state_from_record(record: ArrayRecord, spec: AdapterSpec) -> AdapterState:
    """Inverse of `state_to_record`, in the order of the layout: draws and sums over an adapter depend on it."""
    found = AdapterState.from_tensors({name: array.numpy() for name, array in record.items()})
    return replace(AdapterState.zeros(spec).zip(found, lambda _, value: value), base=found.base)


def last_line(reason: str | None) -> str:
    """Return the last non-empty line of a remote error: a traceback, or a SuperNode's form of one."""
    remote = _REMOTE.fullmatch((reason or "").strip())
    text = f"{remote[1]}: {remote[2]}" if remote else reason or ""
    lines = [line.strip() for line in text.replace("\\n", "\n").splitlines() if line.strip()]
    last = lines[-1] if lines else "no reason given"
    return last if len(last) <= LONGEST_REASON else last[: LONGEST_REASON - 1] + "…"
