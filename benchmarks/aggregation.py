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

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from adapter import AdapterSpec, AdapterState, ModuleShape, RoundInstruction, RoundReport, sample_mask
from adapter.pack import adapter_bytes, payload_coefficients
from adapter.protocol import BUFFER, INSTRUCTION, REPORT, DeviceAnnouncement, buffer_fields
from benchmarks.watch import peak_rss_mib
from conf.compose import compose_config, join_overrides
from optimizer.instances import sample_problem
from server_app.build import build_strategy
from strategy import LoraStrategy
from strategy.flower_internals import identify_process, set_metadata
from strategy.round.fleet import Fleet
from strategy.round.messages import state_to_record
from strategy.round.roster import Directory

EXAMPLES = 100
# RoBERTa-large: query and value projections of 24 layers, 1024 wide, r = 8, and a linear head of two classes.
SPEC = AdapterSpec(
    tuple(ModuleShape(f"layer.{k}.{part}", 1024, 1024, 8) for k in range(24) for part in ("query", "value")),
    (("head.weight", (2, 1024)),),
)


def make_strategy(num_devices: int, overrides: Sequence[str]) -> LoraStrategy:
    """Return the configured strategy over as many devices, each granted a dropout rate of one half."""
    fixed, droppable = payload_coefficients(SPEC, "fp32")
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
        compose_config(join_overrides(["allocator=fixed", "allocator.dropout_rate=0.5", *overrides])),
        SPEC,
        Fleet(template, ("phone",) * num_devices, lambda server_round: template.channel_gain),
        Directory(tuple(2**63 + k for k in range(num_devices)), announced),
    )


def _reply(order: Message, instruction: RoundInstruction, values: np.ndarray) -> Message:
    mask = sample_mask(SPEC, instruction.mask_seed, instruction.dropout_rate)
    flat = values[: adapter_bytes(SPEC, mask, "fp32") // 4 + SPEC.head_parameters]
    report = RoundReport(1, instruction.mask_seed, EXAMPLES, 0.5, 1.0).to_record()
    content = {BUFFER: ArrayRecord({BUFFER: Array(**buffer_fields(flat))}), REPORT: MetricRecord(report)}
    return Message(RecordDict(content), reply_to=order)


def _orders(strategy: LoraStrategy) -> list[tuple[Message, RoundInstruction]]:
    """Let the server send round 1 and return every order without its buffers, as a server has handed these on."""
    rng = np.random.default_rng(2)
    state = AdapterState.zeros(SPEC).map(lambda zero: (0.02 * rng.standard_normal(zero.shape)).astype(np.float32))
    sent = strategy.configure_train(1, state_to_record(state), ConfigRecord(), None)  # type: ignore[arg-type]
    orders = []
    for number, message in enumerate(sent):
        set_metadata(message, message_id=f"{number:064x}")
        empty = Message(RecordDict(), message.metadata.dst_node_id, "train", ttl=600.0)
        set_metadata(empty, message_id=f"{number:064x}")
        orders.append((empty, RoundInstruction.from_record(message.content.config_records[INSTRUCTION])))
    return orders


def measure(num_replies: int, overrides: Sequence[str] = ()) -> dict[str, tuple[float]]:
    """Return CPU seconds, and the peak of the memory above the start in dense float32 adapters."""
    identify_process(1)
    strategy = make_strategy(num_replies, overrides)
    orders, making_s = _orders(strategy), 0.0
    values = np.random.default_rng(0).standard_normal(SPEC.droppable_parameters + SPEC.head_parameters)
    values = (1e-3 * values).astype(np.float32)

    def replies() -> Iterator[Message]:  # in any order
        nonlocal making_s
        for number in np.random.default_rng(1).permutation(len(orders)):
            began = time.process_time()
            reply = _reply(*orders[number], values)
            making_s += time.process_time() - began
            yield reply
            del reply

    next(replies())  # whatever is allocated once is allocated now
    making_s = 0.0
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # else room that the preparation left would hide the growth
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the kernel's high-water mark is the present size
    peak_before = peak_rss_mib(os.getpid())
    began = time.process_time()
    new, _ = strategy.aggregate_train(1, replies())
    spent_s = time.process_time() - began - making_s
    assert new is not None and strategy.ledger is not None and len(strategy.ledger.received) == num_replies
    dense_mib = 4 * (SPEC.droppable_parameters + SPEC.head_parameters) / 2**20
    growth = (peak_rss_mib(os.getpid()) - peak_before) / dense_mib
    return {"aggregation_s": (spent_s,), "aggregation_peak_ratio": (growth,)}


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]) if len(sys.argv) > 1 else 1000, sys.argv[2:])))
