"""What a device keeps between rounds, in Flower's ``Context.state``, and the adapter that it trains from.

Every part is a set of float32 arrays with a version, one part per purpose, replaced as a whole: the memory does not
grow with the rounds. Changes count when `commit` is called; a device that fails half-way through a round remembers what
it knew before.

    lora_A, lora_B     factors as received, whole; version: the round they were aggregated in
    base               change of the frozen weights; version: number of updates added
    personal           lora_B and head of a personalised method; version: the round they were trained in
    moments-<what>     state of the torch optimizer for one factor or the head
    residual           what quantised uploads have left unsaid so far
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from adapter import AdapterMask, AdapterSpec, AdapterState, unpack
from adapter.base_update import unpack_base
from adapter.mask import FACTORS
from adapter.protocol import Delivery, wire_spec
from adapter.state import FloatArray

_PREFIX = "memory."
Arrays = dict[str, FloatArray]


class MemoryLostError(RuntimeError):
    """The server counts on something that this device does not hold (any more); it is sent everything next time."""


class DeviceMemory:
    """Parts by name, each with a version; reads see earlier writes, `commit` stores them.

    Of the device's ``Context.state``, only records named ``memory.<part>`` and ``memory.<part>.version`` are touched.
    """

    def __init__(self, state: RecordDict) -> None:
        self._state = state
        self._written: dict[str, tuple[int, Arrays]] = {}

    def version(self, part: str) -> int:
        """Return the version of a part, 0 for one that is not held."""
        if part in self._written:
            return self._written[part][0]
        record = self._state.config_records.get(_PREFIX + part + ".version")
        return 0 if record is None else int(record["version"])  # type: ignore[arg-type]

    def get(self, part: str) -> Arrays:
        """Return copies of a part's arrays, empty for one that is not held."""
        if part in self._written:
            return {name: value.copy() for name, value in self._written[part][1].items()}
        record = self._state.array_records.get(_PREFIX + part)
        return {} if record is None else {name: array.numpy() for name, array in record.items()}

    def require(self, part: str, version: int) -> Arrays:
        """Return a part of exactly this version; MemoryLostError if the device holds another one, or none."""
        if self.version(part) != version:
            held = f"version {self.version(part)}" if self.version(part) else "none"
            raise MemoryLostError(f"expected version {version} of {part} in this device's memory, found {held}")
        return self.get(part)

    def put(self, part: str, version: int, arrays: Mapping[str, FloatArray]) -> None:
        """Replace a part."""
        self._written[part] = (version, {name: np.array(value, dtype=np.float32) for name, value in arrays.items()})

    def commit(self) -> None:
        """Store what was put; call it once the device's answer is complete."""
        for part, (version, arrays) in self._written.items():
            self._state[_PREFIX + part] = ArrayRecord({name: Array(value) for name, value in arrays.items()})
            self._state[_PREFIX + part + ".version"] = ConfigRecord({"version": version})
        self._written = {}


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
