"""Seeded mutations of replies: whatever is accepted is a reply an honest device could have sent, and nothing stops the server.

Figures of 10,000 mutations per seed are in docs/deployment.md; `make test-slow` repeats them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from adapter import RoundReport, pack
from adapter.protocol import BUFFER, REPORT, buffer_fields
from strategy import FedLoDrop
from strategy.aggregation.kept import MAX_CHANGE
from strategy.flower_internals import WireMessage, from_wire, identify_process, set_metadata, to_wire
from strategy.round.checks import ReplyError, check_reply
from tests.strategy.test_base import SPEC, _answer, _ask, _strategy

_ODD: tuple[Any, ...] = (
    0,
    1,
    -1,
    2,
    2**31,
    2**63 - 1,
    -(2**63),
    0.0,
    -1.5,
    1e308,
    float("nan"),
    float("inf"),
    [1, 2],
    [0.5],
    [],
)
_TEXT = ("", "raw", "numpy.ndarray", "<f4", "<f8", "<f2", ">f4", "|O", "<i4", "float32", "\x00", "pickle", "x" * 200)


class Fuzzer:
    """One round of four devices, asked and answered once; every mutation starts from a valid answer."""

    def __init__(self, seed: int) -> None:
        identify_process(1)
        self.rng = np.random.default_rng(seed)
        self.strategy = _strategy(FedLoDrop)
        messages = _ask(self.strategy)  # type: ignore[arg-type]
        self.valid = [to_wire(_answer(message, 0.01)).SerializeToString() for message in messages]
        self.orders = list(self.strategy.ledger.orders.values())

    def pick(self, values: Any) -> Any:
        return values[int(self.rng.integers(len(values)))]

    def bytes_of(self, data: bytes) -> bytes:
        """Flip, cut, repeat or insert bytes anywhere."""
        raw, kind = bytearray(data), int(self.rng.integers(5))
        at = int(self.rng.integers(len(raw))) if raw else 0
        if kind == 0 and raw:
            raw[at] ^= 1 << int(self.rng.integers(8))
        elif kind == 1:
            del raw[at:]
        elif kind == 2:
            raw[at:at] = self.rng.bytes(int(self.rng.integers(1, 64)))
        elif kind == 3:
            raw += raw[at:]
        elif raw:
            raw[at] = int(self.rng.integers(256))
        return bytes(raw)

    def wire(self, proto: bytes) -> bytes:
        """Mutate the serialized message."""
        for _ in range(int(self.rng.integers(1, 4))):
            proto = self.bytes_of(proto)
        return proto

    def content(self, proto: bytes) -> bytes:
        """Mutate what the message means: its records, arrays and metadata."""
        message = from_wire(WireMessage.FromString(proto))
        kinds: list[Callable[[Message], None]] = [
            self._report,
            self._array,
            self._values,
            self._records,
            self._metadata,
        ]
        for _ in range(int(self.rng.integers(1, 3))):
            self.pick(kinds)(message)
        return to_wire(message).SerializeToString()

    def _report(self, message: Message) -> None:
        record = message.content.get(REPORT)
        if not isinstance(record, MetricRecord):
            return
        key = self.pick([*record, "bonus", "rank", "upload-s", "num-holdout"])
        if self.rng.random() < 0.25 and key in record:
            del record[key]
        else:
            record[key] = self.pick(_ODD)

    def _array(self, message: Message) -> None:
        record = message.content.get(BUFFER)
        if not isinstance(record, ArrayRecord) or BUFFER not in record:
            return
        old = record[BUFFER]
        fields = {"dtype": old.dtype, "shape": tuple(old.shape), "stype": old.stype, "data": old.data}
        part = self.pick(["dtype", "stype", "shape", "data"])
        if part == "data":
            fields["data"] = self.bytes_of(old.data)
        elif part == "shape":
            fields["shape"] = self.pick([(), (0,), (1, 2), (2**31 - 1,), (-1,), (*old.shape, 1), (1, *old.shape)])
        else:
            fields[part] = self.pick(_TEXT)
        record[self.pick([BUFFER, BUFFER, BUFFER, "base", "x"])] = Array(**fields)

    def _values(self, message: Message) -> None:
        record = message.content.get(BUFFER)
        if not isinstance(record, ArrayRecord) or BUFFER not in record or len(record[BUFFER].data) % 4:
            return
        flat = np.frombuffer(record[BUFFER].data, "<f4").copy()
        if flat.size:
            flat[int(self.rng.integers(flat.size))] = self.pick(
                [np.nan, np.inf, -np.inf, 3e38, -1e30, 1e-40, 2000.0, 5.0]
            )
        record[BUFFER] = Array(**buffer_fields(flat))

    def _records(self, message: Message) -> None:
        records = {
            REPORT: MetricRecord({"num-examples": 1}),
            BUFFER: ArrayRecord({}),
            "config": ConfigRecord({"x": b"1"}),
        }
        name = self.pick([REPORT, BUFFER, "config", "instruction"])
        if self.rng.random() < 0.5 and name in message.content:
            del message.content[name]
        else:
            message.content[name] = self.pick(list(records.values()))

    def _metadata(self, message: Message) -> None:
        name = self.pick(
            ["src_node_id", "dst_node_id", "group_id", "message_type", "ttl", "run_id", "reply_to_message_id"]
        )
        odd: dict[str, tuple[Any, ...]] = {
            "group_id": ("", "2", "x"),
            "message_type": ("evaluate", "query.profile", "x"),
            "ttl": (-1.0, 0.0, 1e300),
            "reply_to_message_id": ("", "f" * 64),
        }
        set_metadata(message, **{name: self.pick(odd.get(name, (0, 1, 2**63 + 1, 2**64 - 1)))})

    def step(self) -> str:
        """Mutate one reply, hand it to the server, and check what it made of it; return the outcome."""
        k = int(self.rng.integers(len(self.valid)))
        mutated = (self.wire if self.rng.random() < 0.5 else self.content)(self.valid[k])
        try:
            reply = from_wire(WireMessage.FromString(mutated))
        except Exception:  # Flower's own parser; server_app/exchange.py treats this as silence
            return "unreadable"
        ledger = self.strategy.ledger
        assert ledger is not None
        ledger.received.clear()
        ledger.failures.clear()
        arrays, _ = self.strategy.aggregate_train(1, [reply])
        if not ledger.received:
            assert arrays is None and ledger.failures
            return str(
                min(failure["kind"] for failure in ledger.failures if failure["kind"] != "no_answer")
                if any(failure["kind"] != "no_answer" for failure in ledger.failures)
                else "no_answer"
            )
        (device,) = ledger.received
        self._could_be_honest(reply, device)
        assert arrays is not None and all(np.isfinite(array.numpy()).all() for array in arrays.values())
        return "unchanged" if mutated in self.valid else "accepted"

    def _could_be_honest(self, reply: Message, device: int) -> None:
        """An accepted reply repeats its order exactly and is, byte for byte, what packing its changes gives."""
        order = self.orders[device]
        changes, report = check_reply(reply, order, SPEC, "fp32", ("A", "B"))
        assert reply.metadata.src_node_id == order.metadata.dst_node_id
        assert (report.server_round, report.mask_seed) == (1, order.instruction.mask_seed)
        assert report.num_examples == order.num_examples and report.rank == 0
        assert set(reply.content.keys()) == {BUFFER, REPORT} and list(reply.content[BUFFER]) == [BUFFER]
        array = reply.content[BUFFER][BUFFER]
        flat = pack(SPEC, changes, order.draw_mask(), "fp32")
        assert buffer_fields(flat) == {
            "dtype": array.dtype,
            "shape": tuple(array.shape),
            "stype": array.stype,
            "data": array.data,
        }
        assert np.isfinite(flat).all() and np.abs(flat).max() <= MAX_CHANGE
        assert RoundReport.from_record(reply.content[REPORT]) == report


def _run(seed: int, count: int) -> Counter[str]:
    fuzzer = Fuzzer(seed)
    return Counter(fuzzer.step() for _ in range(count))


def test_five_hundred_mutations() -> None:
    outcomes = _run(0, 500)
    assert sum(outcomes.values()) == 500 and len(outcomes) >= 8
    print(dict(outcomes.most_common()))


@pytest.mark.slow
def test_ten_thousand_mutations() -> None:
    outcomes = _run(1, 10_000)
    assert sum(outcomes.values()) == 10_000
    assert {"unreadable", "payload", "dtype", "keys", "report", "round", "seed", "examples", "source"} <= set(outcomes)
    print(dict(outcomes.most_common()))


def test_a_mutation_that_changes_the_shape_alone_is_refused() -> None:
    fuzzer = Fuzzer(2)
    message = from_wire(WireMessage.FromString(fuzzer.valid[0]))
    old = message.content[BUFFER][BUFFER]
    message.content[BUFFER] = ArrayRecord(
        {BUFFER: Array(dtype=old.dtype, shape=(1, *old.shape), stype=old.stype, data=old.data)}
    )
    with pytest.raises(ReplyError, match="shape"):
        check_reply(message, fuzzer.orders[0], SPEC, "fp32", ("A", "B"))


def test_the_valid_replies_are_accepted() -> None:
    fuzzer = Fuzzer(3)
    replies = [from_wire(WireMessage.FromString(data)) for data in fuzzer.valid]
    arrays, _ = fuzzer.strategy.aggregate_train(1, replies)
    assert arrays is not None and isinstance(replies[0].content, RecordDict)
