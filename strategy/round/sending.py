"""What a message to one device holds and weighs, from the delivery that the method decided."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from adapter import AdapterMask, AdapterSpec, AdapterState, pack, payload_coefficients
from adapter.base_update import BASE_HEADER_BYTES, base_entries, pack_base
from adapter.delivery import Delivery, wire_spec
from adapter.pack import WIRE_DTYPES
from optimizer.problem import ResourceProblem
from strategy.round.device_book import DeviceBook

Flat = npt.NDArray[np.generic]


def travelling(delivery: Delivery, factors: tuple[str, ...]) -> tuple[str, ...]:
    """Factors of an answer: the trained ones, without lora_B where that is personal."""
    return factors if delivery.personal < 0 else ("A",)


def with_deliveries(
    problem: ResourceProblem,
    spec: AdapterSpec,
    deliveries: list[Delivery],
    factors: tuple[str, ...],
    wire_dtype: str,
    downlink_dtype: str,
    noise: Mapping[str, float],
) -> ResourceProblem:
    """Return the problem with every participant's s0 + s1 (1 - gamma) bits either way and the work of its rank.

    ``noise``: number types of the upload that the plan may choose from, and what their rounding adds.
    """

    def upload(dtype: str) -> dict[str, Any]:
        layouts = [(wire_spec(spec, delivery), travelling(delivery, factors)) for delivery in deliveries]
        fixed, droppable = np.array([payload_coefficients(layout, dtype, sent) for layout, sent in layouts]).T
        return {"fixed_bits": fixed, "droppable_bits": droppable}

    down = []
    for delivery in deliveries:
        layout = wire_spec(spec, delivery)
        fixed, droppable = payload_coefficients(layout, downlink_dtype, tuple(delivery.sent))
        if delivery.whole:
            fixed, droppable = fixed + droppable, 0.0  # what the device keeps is not cut
        if delivery.has_base:
            fixed += 8 * BASE_HEADER_BYTES + 32 * base_entries(layout, delivery.base_ranks)
        down.append((fixed, droppable))
    down_fixed, down_droppable = np.array(down).T
    rank_share = np.array([delivery.rank / spec.rank if delivery.rank else 1.0 for delivery in deliveries])
    return replace(
        problem,
        adapter_cycles=problem.adapter_cycles * rank_share,
        **upload(wire_dtype),
        downlink_fixed_bits=down_fixed,
        downlink_droppable_bits=down_droppable,
        choices={dtype: {"noise": variance} | upload(dtype) for dtype, variance in noise.items()},
    )


def contents(
    layout: AdapterSpec, delivery: Delivery, values: AdapterState, mask: AdapterMask, book: DeviceBook, dtype: str
) -> tuple[Flat, Flat | None]:
    """Return the buffer of a message, the survivors' values in ``dtype``, and the update of the base beside it."""
    flat = pack(layout, values, mask, dtype, tuple(delivery.sent))
    if not delivery.has_base:
        return flat, None
    return flat, pack_base(layout, values.base, *book.base.since(delivery.base_from))


def as_received(state: AdapterState, dtype: str) -> AdapterState:
    """Return factors and head as devices see them after the wire's rounding, in float32."""
    return state if dtype == "fp32" else state.map(lambda value: value.astype(WIRE_DTYPES[dtype]).astype(np.float32))
