"""From a message and the device's memory to the adapter it trains from."""

from dataclasses import dataclass

from adapter import AdapterMask, AdapterSpec, AdapterState, unpack
from adapter.base_update import unpack_base
from adapter.mask import FACTORS
from adapter.protocol import Delivery, wire_spec
from client_app.memory import Arrays, DeviceMemory, MemoryLostError


@dataclass(frozen=True)
class Parcel:
    """The arrays of a message: the buffer with factors and head, and the base update if there is one."""

    buffer: bytes
    base: bytes | None = None


@dataclass(frozen=True)
class Start:
    """What both ends know from the seed: the layout at full rank, the adapter a run starts with, and the seed."""

    spec: AdapterSpec
    initial: AdapterState
    seed: int


def restore(
    start: Start, parcel: Parcel, delivery: Delivery, mask: AdapterMask, dtype: str, memory: DeviceMemory
) -> AdapterState:
    """Return the adapter a device trains from, at its own rank, with head and base.

    ``mask`` says which of what travels survives this round; entries that were dropped and did not travel are zero.
    Factors sent whole, the base and a first personal part are remembered. adapter.PayloadError if a buffer does not
    fit; MemoryLostError if something that the server counts on is not in memory.
    """
    spec, sent_factors = wire_spec(start.spec, delivery), tuple(delivery.sent)
    sent_mask = AdapterMask.full(spec) if delivery.whole else mask
    sent, whole = unpack(spec, parcel.buffer, sent_mask, dtype, sent_factors), AdapterState.zeros(spec)
    for part, name, kept in sent_mask.survivors(spec, sent_factors):
        whole.parts()[part][name][kept] = sent.parts()[part][name]
    drawn = AdapterState.seeded(start.spec, start.seed, delivery.seed_round) if delivery.seed_round else start.initial
    fresh = drawn.cut_rank(spec.rank)
    state = AdapterState({}, {}, sent.head, _base(spec, parcel, delivery, memory))
    for factor in FACTORS:
        part, version = f"lora_{factor}", delivery.version(factor)
        if factor not in delivery.sent:
            state.parts()[part].update(memory.require(part, version) if version else fresh.parts()[part])
            continue
        state.parts()[part].update(whole.parts()[part])
        if delivery.whole and version:
            memory.put(part, version, whole.parts()[part])
    if delivery.personal >= 0:
        if (held := memory.version("personal")) < delivery.personal:
            raise MemoryLostError(
                f"expected this device's own part of round {delivery.personal}, found {held or 'none'}"
            )
        own = memory.get("personal")  # nothing where it starts from the seed
        state.lora_B = {name: own.get(f"lora_B/{name}", value) for name, value in state.lora_B.items()}
        state.head = {name: own.get(f"head/{name}", value) for name, value in start.initial.head.items()}
    return state


def _base(spec: AdapterSpec, parcel: Parcel, delivery: Delivery, memory: DeviceMemory) -> Arrays:
    """Return the change of the base after the message's update, and remember it."""
    if not delivery.base_to:
        return {}
    held = memory.version("base")
    dense = delivery.has_base and not delivery.base_ranks  # the whole change: what the device holds does not matter
    if held < delivery.base_from and not dense:
        raise MemoryLostError(
            f"expected version {delivery.base_from} of the base in this device's memory, found {held}"
        )
    base = {} if dense else memory.get("base")
    if not delivery.has_base or (held >= delivery.base_to and not dense):
        return base
    if parcel.base is None:
        raise MemoryLostError("the message announces a base update and holds none")
    base = unpack_base(spec, parcel.base, base, delivery.base_ranks, skip=held - delivery.base_from)
    memory.put("base", delivery.base_to, base)
    return base
