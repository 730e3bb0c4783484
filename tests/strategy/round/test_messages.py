import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from adapter import (
    HEADER_BYTES,
    AdapterState,
    RoundInstruction,
    RoundReport,
    gather,
    pack,
    payload_coefficients,
    rounding_rng,
    sample_mask,
)
from adapter.protocol import BUFFER, REPORT, buffer_fields
from strategy.flower_internals import WireMessage, from_wire, identify_process, set_metadata, to_wire
from strategy.round.messages import (
    LONGEST_REASON,
    last_line,
    state_from_record,
    state_to_record,
    train_message,
    wire_bytes,
)
from tests.support.adapters import random_state, small_spec

SPEC = small_spec()
INSTRUCTION = RoundInstruction(10**6, 0.123456789, 2**63 - 1, 1.23456e5, 0.19876, 4.0, 1.712345e9, "AB", b"12345678")
REPLY = RoundReport(10**6, 2**63 - 1, 10**9, 0.123456789, 12.3456789)


def _pair(rate: float, dtype: str) -> tuple[Message, Message, int]:
    """A message and its answer with identifiers of full length, as on a network, and the bytes of the buffer."""
    identify_process(2**64 - 1)
    mask = sample_mask(SPEC, 5, rate)
    flat = pack(SPEC, gather(SPEC, random_state(SPEC), mask), mask, dtype, rng=rounding_rng(5, 1))
    down = train_message(flat, INSTRUCTION, 2**64 - 1, 600.0)
    set_metadata(down, message_id="a" * 64)
    content = RecordDict(
        {BUFFER: ArrayRecord({BUFFER: Array(**buffer_fields(flat))}), REPORT: MetricRecord(REPLY.to_record())}
    )
    up = Message(content, reply_to=from_wire(to_wire(down)))
    set_metadata(up, message_id="b" * 64)
    return down, up, flat.nbytes


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.7])
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "int8", "int4"])
def test_the_planned_payload_covers_the_serialized_message(rate: float, dtype: str) -> None:
    fixed, droppable = payload_coefficients(SPEC, dtype)
    for message in _pair(rate, dtype)[:2]:
        serialized = len(to_wire(message).SerializeToString())
        assert wire_bytes(message) >= serialized >= wire_bytes(message) - 40
        assert 8 * wire_bytes(message) <= fixed + droppable * (1 - rate)


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "int8", "int4"])
def test_the_header_is_what_the_planner_reserves(dtype: str) -> None:
    down, up, payload = _pair(0.5, dtype)
    for message in (down, up):
        overhead = wire_bytes(message) - payload
        # Not above it, or a deadline could be missed; not far below it, or bandwidth would be granted for nothing.
        assert 0.75 * HEADER_BYTES < overhead <= HEADER_BYTES


def test_random_identifiers_do_not_change_the_counted_bytes() -> None:
    # Found by comparing two runs: a task number below 2**63 is one byte shorter on the wire.
    counted = set()
    for number in (1, 2**62, 2**63 - 1, 2**64 - 1):
        identify_process(number)
        flat = pack(
            SPEC, gather(SPEC, random_state(SPEC), sample_mask(SPEC, 5, 0.5)), sample_mask(SPEC, 5, 0.5), "fp32"
        )
        down = train_message(flat, INSTRUCTION, number, 600.0)
        set_metadata(down, message_id=f"{number:x}")
        counted.add((wire_bytes(down), wire_bytes(Message(RecordDict(), reply_to=down))))
    assert len(counted) == 1


def test_the_global_adapter_survives_the_array_record() -> None:
    state = random_state(SPEC)
    back = state_from_record(state_to_record(state), SPEC)
    back.check(SPEC)
    backwards = AdapterState.from_tensors(dict(reversed(state.to_tensors().items())))  # as files may hold it
    again = state_from_record(state_to_record(backwards), SPEC)
    assert [item[:2] for item in again.items()] == [item[:2] for item in state.items()]
    np.testing.assert_array_equal(back.lora_B["v"], state.lora_B["v"])
    np.testing.assert_array_equal(back.head["head.bias"], state.head["head.bias"])


@pytest.mark.parametrize("size", [0, 127, 128, 16_384, 2**21 - 40, 2**21])
def test_the_size_of_a_message_is_that_of_its_longest_form(size: int) -> None:
    identify_process(2**64 - 1)
    arrays = ArrayRecord({"a": Array("<f4", (size,), "raw", b"x" * size), "b": Array("<f4", (3,), "raw", b"yyy")})
    more = ArrayRecord({"c": Array("<f4", (size,), "raw", b"z" * (size // 2))})
    content = RecordDict({"r": arrays, "m": MetricRecord({"k": 3}), "s": more, "c": ConfigRecord({"t": "text"})})
    message = Message(content, 2**64 - 1, "train", ttl=600.0)
    set_metadata(message, message_id="f" * 64)
    longest = to_wire(message)
    longest.metadata.src_task_id = longest.metadata.dst_task_id = longest.metadata.src_node_id = 2**64 - 1
    assert wire_bytes(message) == longest.ByteSize()


def test_last_line_of_a_remote_traceback() -> None:
    assert last_line("Traceback\\n  File x\\nValueError: no data\\n") == "ValueError: no data"
    assert last_line(None) == "no reason given"
    # What a SuperNode sends, where a simulation sends a traceback.
    remote = "<class 'tasks.data.examples.TaskError'>:<'task file: expected a file at 'a.tsv', found none'>"
    assert last_line(remote) == "TaskError: task file: expected a file at 'a.tsv', found none"
    # A device chooses the length of its reason, and every round's record keeps it.
    assert len(last_line("x" * 10**6)) == LONGEST_REASON and last_line("x" * 10**6).endswith("xx…")


def test_the_size_of_a_message_is_known_without_a_copy_of_its_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    identify_process(1)
    converted: list[int] = []

    def convert(message: Message) -> WireMessage:
        converted.append((proto := to_wire(message)).ByteSize())
        return proto

    monkeypatch.setattr("strategy.round.messages.to_wire", convert)
    message = train_message(np.zeros(2**18, np.float32), INSTRUCTION, 1, 600.0, base=np.zeros(2**18, np.float32))
    assert wire_bytes(message) > 2**21 and max(converted) < 2000
    assert len(message.content[BUFFER][BUFFER].data) == 2**20, "the message itself keeps them"
