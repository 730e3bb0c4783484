"""What a message to one device holds and weighs, from the delivery that the method decided."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from adapter import AdapterMask, AdapterSpec, AdapterState, gather, pack, payload_coefficients, sample_mask
from adapter.base_update import BASE_HEADER_BYTES, base_entries, pack_base
from adapter.delivery import Delivery, wire_spec
from adapter.pack import WIRE_DTYPES
from optimizer.problem import ResourceProblem
from strategy.round.device_book import DeviceBook

Flat = npt.NDArray[np.generic]


def with_base(delivery: Delivery, book: DeviceBook, device: int) -> Delivery:
    """Return the delivery with the updates of the base that a device has not confirmed."""
    known = book.base_version(device)
    _, ranks = book.base.since(known)
    return replace(delivery, base_from=known, base_to=book.base.version, base_ranks=ranks)


def travelling(delivery: Delivery, factors: tuple[str, ...]) -> tuple[str, ...]:
    """Factors of an answer: the trained ones, without lora_B where that is personal."""
    return factors if delivery.personal < 0 else ("A",)


def payload(
    spec: AdapterSpec, delivery: Delivery, factors: tuple[str, ...], wire_dtype: str, downlink_dtype: str
) -> tuple[float, float, float, float]:
    """Return (uplink s0, s1, downlink s0, s1) of one device in bits, for the payload s0 + s1 (1 - gamma) of each direction."""
    wire = wire_spec(spec, delivery)
    up = payload_coefficients(wire, wire_dtype, travelling(delivery, factors))
    fixed, droppable = payload_coefficients(wire, downlink_dtype, tuple(delivery.sent))
    if delivery.whole:
        fixed, droppable = fixed + droppable, 0.0  # what the device keeps is not cut
    if delivery.has_base:
        fixed += 8 * BASE_HEADER_BYTES + 32 * base_entries(wire, delivery.base_ranks)
    return *up, fixed, droppable


def with_payloads(
    problem: ResourceProblem, payloads: list[tuple[float, float, float, float]], rank_share: list[float]
) -> ResourceProblem:
    """Return the round's problem with what every participant really sends, receives and, at its share of the rank, computes."""
    up_fixed, up_droppable, down_fixed, down_droppable = np.array(payloads).T
    return replace(
        problem,
        adapter_cycles=problem.adapter_cycles * np.array(rank_share),
        fixed_bits=up_fixed,
        droppable_bits=up_droppable,
        downlink_fixed_bits=down_fixed,
        downlink_droppable_bits=down_droppable,
    )


def contents(
    spec: AdapterSpec, delivery: Delivery, values: AdapterState, mask: AdapterMask, book: DeviceBook, dtype: str
) -> tuple[Flat, Flat | None]:
    """Return the buffer of a message and its base update.

    Parameters
    ----------
    spec : AdapterSpec
        Layout at full rank.
    delivery : Delivery
        What to send.
    values : AdapterState
        Whole factors at the device's rank, head, and base.
    mask : AdapterMask
        Survivors, for factors that are cut.
    book : DeviceBook
        Holds the updates of the base.
    dtype : str
        Number type of the buffer.
    """
    wire, sent = wire_spec(spec, delivery), tuple(delivery.sent)
    used = sample_mask(wire, 0, 0.0) if delivery.whole else mask
    flat = pack(wire, gather(wire, values, used, sent), used, dtype, sent)
    if not delivery.has_base:
        return flat, None
    updates, ranks = book.base.since(delivery.base_from)
    return flat, pack_base(wire, values.base, updates, ranks)


def as_received(state: AdapterState, dtype: str) -> AdapterState:
    """Return factors and head as devices see them after the wire's rounding, in float32."""
    if dtype == "fp32":
        return state
    rounded = [
        {name: value.astype(WIRE_DTYPES[dtype]).astype(np.float32) for name, value in part.items()}
        for part in (state.lora_A, state.lora_B, state.head)
    ]
    return AdapterState(rounded[0], rounded[1], rounded[2], state.base)
