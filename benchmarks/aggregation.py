"""Averaging the replies of 1000 devices with RoBERTa-large's adapter, in a process of its own: time and peak memory.

Run as `python -m benchmarks.aggregation [REPLIES [OVERRIDE ...]]`; prints one line of JSON. The strategy is the default
one unless overrides such as `strategy.clip_factor=null` say otherwise. Every reply goes the whole way of a round:
matched with its order, checked, unpacked, added. Making the replies is not timed; one exists at a time, as on a server
that drops each.
"""

import contextlib
import ctypes
import gc
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from adapter import (
    AdapterSpec,
    AdapterState,
    ModuleShape,
    RoundInstruction,
    RoundReport,
    payload_coefficients,
    sample_mask,
)
from adapter.announcement import DeviceAnnouncement
from adapter.protocol import BUFFER, INSTRUCTION, REPORT, buffer_fields
from benchmarks.watch import peak_rss_mib
from conf.compose import compose_config, join_overrides
from optimizer.instances import sample_problem
from server_app.build import build_strategy
from strategy import LoraStrategy
from strategy.flower_internals import identify_process, set_metadata
from strategy.round.fleet import Fleet
from strategy.round.messages import state_to_record
from strategy.round.roster import Directory

LAYERS, HIDDEN, RANK, DROPOUT_RATE, EXAMPLES = 24, 1024, 8, 0.5, 100


def roberta_large() -> AdapterSpec:
    """Query and value projections of 24 layers, 1024 wide, r = 8, and a linear head of two classes."""
    names = [f"layer.{layer}.{part}" for layer in range(LAYERS) for part in ("query", "value")]
    return AdapterSpec(
        tuple(ModuleShape(name, HIDDEN, HIDDEN, RANK) for name in names), (("head.weight", (2, HIDDEN)),)
    )


def make_strategy(spec: AdapterSpec, num_devices: int, overrides: Sequence[str]) -> LoraStrategy:
    """Return the configured strategy over as many devices, each granted a dropout rate of one half."""
    fixed, droppable = payload_coefficients(spec, "fp32")
    full = np.ones(num_devices)
    template = replace(
        sample_problem(num_devices, 0),
        deadline_s=100.0,
        total_examples=0.0,
        num_examples=EXAMPLES * full,
        channel_gain=1e-9 * full,
        energy_budget_j=1e3 * full,
        droppable_bits=droppable * full,
        fixed_bits=fixed * full,
        total_bandwidth_hz=1e5 * num_devices,
    )
    announced = tuple(DeviceAnnouncement(k, EXAMPLES, 30) for k in range(num_devices))
    return build_strategy(
        compose_config(join_overrides(["allocator=fixed", f"allocator.dropout_rate={DROPOUT_RATE}", *overrides])),
        spec,
        Fleet(template, ("phone",) * num_devices, lambda server_round: template.channel_gain),
        Directory(tuple(2**63 + k for k in range(num_devices)), announced),
    )


class _Replies:
    """Make one reply after the other and keep the time that takes apart."""

    def __init__(self, spec: AdapterSpec, orders: list[tuple[Any, RoundInstruction]]) -> None:
        self._spec, self._orders = spec, orders
        self._values = np.random.default_rng(0).standard_normal(spec.droppable_parameters + spec.head_parameters)
        self._values = (1e-3 * self._values).astype(np.float32)
        self.making_s = 0.0

    def __iter__(self) -> Iterator[Message]:
        for number in np.random.default_rng(1).permutation(len(self._orders)):  # answers come in any order
            began = time.process_time()
            reply = self._reply(*self._orders[number])
            self.making_s += time.process_time() - began
            yield reply
            del reply

    def _reply(self, sent: Message, instruction: RoundInstruction) -> Message:
        mask = sample_mask(self._spec, instruction.mask_seed, instruction.dropout_rate)
        kept = sum(module.columns.size + module.rows.size for module in mask.modules) * RANK
        flat = self._values[: kept + self._spec.head_parameters]
        report = RoundReport(1, instruction.mask_seed, EXAMPLES, 0.5, 1.0)
        content = RecordDict(
            {BUFFER: ArrayRecord({BUFFER: Array(**buffer_fields(flat))}), REPORT: MetricRecord(report.to_record())}
        )
        return Message(content, reply_to=sent)


def measure(num_replies: int, overrides: Sequence[str] = ()) -> dict[str, float]:
    """Return seconds (CPU) and the peak memory above the start, in dense float32 adapters."""
    identify_process(1)
    spec = roberta_large()
    strategy = make_strategy(spec, num_replies, overrides)
    rng = np.random.default_rng(2)
    draw = lambda *shape: (0.02 * rng.standard_normal(shape)).astype(np.float32)  # noqa: E731
    state = AdapterState(
        {m.name: draw(m.r, m.in_features) for m in spec.modules},
        {m.name: draw(m.out_features, m.r) for m in spec.modules},
        {name: draw(*shape) for name, shape in spec.head},
    )
    orders: list[tuple[Any, RoundInstruction]] = []
    arrays = state_to_record(state, spec)
    messages = strategy.configure_train(1, arrays, ConfigRecord(), None)  # type: ignore[arg-type]
    for number, message in enumerate(messages):
        set_metadata(message, message_id=f"{number:064x}")
        instruction = RoundInstruction.from_record(message.content.config_records[INSTRUCTION])
        empty = Message(RecordDict(), message.metadata.dst_node_id, "train", ttl=600.0)
        set_metadata(empty, message_id=f"{number:064x}")
        orders.append((empty, instruction))
    del messages, message  # a server has handed them to its grid by now
    replies = _Replies(spec, orders)
    next(iter(replies))  # whatever is allocated once is allocated now
    replies.making_s = 0.0
    gc.collect()
    _reset_peak()
    peak_before = peak_rss_mib(os.getpid())
    began = time.process_time()
    new, _ = strategy.aggregate_train(1, replies)
    spent_s = time.process_time() - began - replies.making_s
    assert new is not None and strategy.ledger is not None and len(strategy.ledger.received) == num_replies
    dense_mib = 4 * (spec.droppable_parameters + spec.head_parameters) / 2**20
    return {
        "seconds": spent_s,
        "peak_ratio": (peak_rss_mib(os.getpid()) - peak_before) / dense_mib,
        "replies": num_replies,
    }


def _reset_peak() -> None:
    """Give unused memory back and set the kernel's high-water mark to the present size, where the system can."""
    with contextlib.suppress(OSError, AttributeError):  # else room that the preparation left would hide the growth
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]) if len(sys.argv) > 1 else 1000, sys.argv[2:])))
