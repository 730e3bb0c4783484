"""What the server tells a device for one round and what the device answers, as flat records (no framework here).

The buffer with the sub-adapter travels beside the record. A device answers with *changes* of the weights it received,
so that an entry it dropped has changed by nothing.

Every part of the global model has a version: lora_A and lora_B the round in which they last changed (0: the seeded
start, which every device can make itself), the base the number of updates added to it. The server sends what a device
has not confirmed; the rest it names by version, and a device that does not hold that version says so and is sent
everything next time.

Before its first round a device announces itself. Nothing of that is believed beyond its range: one that announces a
clock of 1e30 Hz is refused, not planned with.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from typing import Any, Self, cast

import numpy as np
import numpy.typing as npt

from adapter.state import AdapterSpec

# Bytes around the buffer that the planner reserves in each direction: the record below plus the message's own envelope
# (identifiers, time stamps). tests/integration/test_wire_size.py measures the real envelope against it.
HEADER_BYTES = 512

# Names of the records in a message, and of the buffer and the base update in their record.
BUFFER, BASE, INSTRUCTION, REPORT, PROFILE = "buffer", "base", "instruction", "report", "profile"

LARGEST = 1e12  # of a loss, a score or a time that a device reports: sums over devices stay finite
_NOT_TOLD = -1.0  # in place of a loss that a device keeps to itself

DTYPES = ("fp32", "fp16", "int8", "int4")  # number types of the values in a buffer
RAW = "raw"  # serialization of the buffer; Flower's "numpy.ndarray" would add a header of 128 bytes to every array


class ProtocolError(ValueError):
    """A record that does not follow the contract; the message names the key."""


def buffer_fields(flat: npt.NDArray[np.generic]) -> dict[str, Any]:
    """Return a flat buffer as the fields of a message's array: dtype, shape, stype and data."""
    return {"dtype": flat.dtype.str, "shape": (flat.size,), "stype": RAW, "data": flat.tobytes()}


_SENT = ("", "A", "B", "AB")  # by the number that travels


@dataclass(frozen=True)
class Delivery:
    """Contents of a message to a device, beside its orders."""

    sent: str = "AB"  # factors in the buffer: "", "A", "B" or "AB"
    whole: bool = False  # the sent factors are whole and the device keeps them; else cut to this round's survivors
    rank: int = 0  # of the device's adapter, 0 for the layout's own
    # Versions of the factors that the device trains from; one that is not sent and has version 0 is the seeded one.
    version_A: int = 0
    version_B: int = 0
    seed_round: int = 0  # seeded factors are those of this round; 0: those the run started with
    # -1: the head travels and nothing is personal. Otherwise lora_B and the head stay on the device, and this is the
    # last round whose personal part it confirmed (0: none, it starts from the seed).
    personal: int = -1
    # Versions of the base before and after the update in the message (equal: there is none), and the ranks of the
    # updates between them; no ranks: the whole change of the base is sent densely.
    base_from: int = 0
    base_to: int = 0
    base_ranks: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what no server sends."""
        numbers = (self.rank, self.version_A, self.version_B, self.seed_round, self.base_from, *self.base_ranks)
        if self.sent not in _SENT or min(numbers) < 0 or self.personal < -1 or self.base_to < self.base_from:
            raise ProtocolError(f"a delivery holds a value out of range: {self}")
        if self.base_ranks and len(self.base_ranks) != (missed := self.base_to - self.base_from):
            raise ProtocolError(f"delivery: expected {missed} ranks of base updates, found {len(self.base_ranks)}")

    @property
    def has_base(self) -> bool:
        """Whether an update of the base lies beside the buffer."""
        return self.base_to > self.base_from

    def version(self, factor: str) -> int:
        """Version of factor ``"A"`` or ``"B"``."""
        return self.version_A if factor == "A" else self.version_B

    def to_list(self) -> list[int]:
        """Return the numbers that travel; one list costs less than ten named values."""
        sent, *numbers, base_ranks = (getattr(self, item.name) for item in fields(self))
        return [_SENT.index(sent), *map(int, numbers), *base_ranks]

    @classmethod
    def from_list(cls, numbers: list[Any]) -> Delivery:
        """Inverse of `to_list`; `ProtocolError` for no integers, too few of them or one out of range."""
        scalars = len(fields(cls)) - 1
        if not all(type(number) is int for number in numbers):
            raise ProtocolError(f"delivery must be a list of integers, found {numbers!r}")
        if len(numbers) < scalars or numbers[0] not in range(len(_SENT)) or numbers[1] not in (0, 1):
            raise ProtocolError(f"delivery: expected at least {scalars} numbers, found {numbers}")
        values: list[Any] = [_SENT[numbers[0]], bool(numbers[1]), *numbers[2:scalars], tuple(numbers[scalars:])]
        return cls(*values)


def wire_spec(spec: AdapterSpec, delivery: Delivery) -> AdapterSpec:
    """Return the layout of what travels to and from a device: its own rank, and no head where the head is personal."""
    modules = spec.modules
    if delivery.rank > spec.rank:
        raise ProtocolError(f"expected a rank of at most {spec.rank}, found {delivery.rank}")
    if delivery.rank:
        modules = tuple(replace(module, r=delivery.rank) for module in modules)
    return AdapterSpec(modules, () if delivery.personal >= 0 else spec.head)


class _Record:
    """A dataclass as a flat record with kebab-case keys; what has its default value does not travel."""

    def to_record(self) -> dict[str, Any]:
        """Return kebab-case keys and scalar values (of a delivery one list of integers)."""
        written = ((item, getattr(self, item.name)) for item in fields(cast(Any, self)))
        return {_key(item): _written(value, item) for item, value in written if value != item.default}

    @classmethod
    def _read(cls, record: Mapping[str, object]) -> Self:
        given = [item for item in fields(cast(Any, cls)) if item.default is MISSING or _key(item) in record]
        return cls(**{item.name: _read_value(record, item) for item in given})


def _key(item: Field[Any]) -> str:
    return item.name.replace("_", "-")


def _written(value: Any, item: Field[Any]) -> Any:
    if str(item.type).startswith("float"):
        return _NOT_TOLD if value is None else float(value)
    return value.to_list() if isinstance(value, Delivery) else value


_TYPES = {"str": str, "bytes": bytes, "Delivery": list}  # of the annotations of what is no number


def _read_value(record: Mapping[str, object], item: Field[Any]) -> Any:
    """Return the value of a field, of its type and between the limits in its metadata."""
    key, kind, limits = _key(item), str(item.type), item.metadata
    if key not in record:
        raise ProtocolError(f"the record lacks {key!r}")
    value = cast(Any, record[key])
    if kind == "int":
        return _checked(key, value, int, limits.get("lowest", 0), 2**63 - 1)
    if kind == "float | None" and value == _NOT_TOLD:
        return None
    if kind.startswith("float"):
        return float(_checked(key, value, int | float, 0, limits.get("highest", sys.float_info.max)))
    if not isinstance(value, _TYPES[kind]):
        raise ProtocolError(f"{key} has type {type(value).__name__}, value {value!r}")
    return Delivery.from_list(value) if kind == "Delivery" else value


def _checked(key: str, value: Any, kind: Any, lowest: float, highest: float) -> Any:
    if isinstance(value, bool) or not isinstance(value, kind) or not lowest <= value <= highest:
        wanted = "an integer" if kind is int else "a number"
        raise ProtocolError(f"{key} must be {wanted} from {lowest:g} to {highest:g}, found {str(value)[:40]!r}")
    return value


_FROM_1, _SUMMED = {"lowest": 1}, {"highest": LARGEST}


@dataclass(frozen=True)
class RoundInstruction(_Record):
    """One device's orders for one round."""

    server_round: int = field(metadata=_FROM_1)
    dropout_rate: float  # gamma, in [0, 1)
    mask_seed: int  # of the survivors, below 2**63
    bandwidth_hz: float  # uplink grant [Hz]
    tx_power_w: float  # uplink grant [W]
    deadline_s: float  # of the round [s]
    cpu_hz: float  # CPU clock to train at [Hz]
    factors: str  # that are trained and travel: "AB", "A" or "B"
    code: bytes  # digest of the server's source; a device with other code refuses
    delivery: Delivery = Delivery()  # what the message brings; by default both factors, cut to the survivors
    wire_dtype: str = ""  # number type of the answer where the plan chose one; empty: that of the run
    # Rates under the grant [bit/s], for a device that waits for its radio; 0: it does not wait.
    uplink_rate_bps: float = 0.0
    downlink_rate_bps: float = 0.0

    @classmethod
    def from_record(cls, record: Mapping[str, object]) -> RoundInstruction:
        """Read and check a record; `ProtocolError` if a key is missing or a value has the wrong type or range."""
        instruction = cls._read(record)
        if not 0 <= instruction.dropout_rate < 1:
            raise ProtocolError(f"dropout-rate must lie in [0, 1), found {instruction.dropout_rate!r}")
        if instruction.factors not in ("AB", "A", "B"):
            raise ProtocolError(f"factors must be 'AB', 'A' or 'B', found {instruction.factors!r}")
        if instruction.wire_dtype not in ("", *DTYPES):
            raise ProtocolError(f"wire-dtype must be one of {', '.join(DTYPES)}, found {instruction.wire_dtype!r}")
        return instruction


@dataclass(frozen=True)
class RoundReport(_Record):
    """One device's answer beside the buffer of its changes."""

    server_round: int = field(metadata=_FROM_1)  # repeated from the instruction, as is the seed
    mask_seed: int
    num_examples: int = field(metadata=_FROM_1)  # that the device trains on, the weight of its answer
    # Mean over the local steps; None when the device keeps it to itself (privacy).
    train_loss: float | None = field(metadata=_SUMMED)
    train_s: float = field(metadata=_SUMMED)  # wall time of the local training [s]
    rank: int = field(default=0, metadata=_FROM_1)  # the device pruned its adapter to; 0: the rank it was told
    upload_s: float = field(default=0.0, metadata=_SUMMED)  # time of the device's radio for it [s]; 0: not measured

    @classmethod
    def from_record(cls, record: Mapping[str, object]) -> RoundReport:
        """Read and check a record; `ProtocolError` for a missing or unknown key or a value of wrong type or range."""
        report = cls._read(record)
        if unknown := sorted(set(record) - set(report.to_record())):
            raise ProtocolError(f"the report holds an unknown key {unknown[0]!r}")
        return report


# Facts a device may announce, their unit in the name, and the range in which a real device lies.
FACT_RANGES: dict[str, tuple[float, float]] = {
    "memory-mib": (1.0, 1e9),
    "step-s": (1e-6, 1e5),  # measured: one training step on a whole batch, nothing dropped
    "cpu-hz": (1e6, 1e12),
    "flops-per-cycle": (1e-3, 1e6),
    "capacitance": (0.0, 1.0),
    "max-tx-power-w": (0.0, 1e3),
    "energy-budget-j": (0.0, 1e12),
    "downlink-rate-bps": (1.0, 1e13),
}
_COUNT_RANGES = {"partition-id": (0, 10**6), "num-examples": (1, 10**9), "num-holdout": (0, 10**9)}


@dataclass(frozen=True)
class DeviceAnnouncement:
    """A device's answer to the query before its first round."""

    partition_id: int  # its place in the federation, from 0
    num_examples: int  # that it trains on, the weight of its answers
    num_holdout: int = 0  # that it scores the model on; 0 without device-side evaluation
    facts: Mapping[str, float] = field(default_factory=dict)  # any of `FACT_RANGES`

    def to_record(self) -> dict[str, Any]:
        """Return kebab-case keys; integers and floats only, as a metric record wants them."""
        counts = {name: getattr(self, name.replace("-", "_")) for name in _COUNT_RANGES}
        return counts | {name: float(value) for name, value in self.facts.items()}

    @classmethod
    def from_record(cls, record: Mapping[str, object]) -> DeviceAnnouncement:
        """Read and check a record; `ProtocolError`, one line, for a missing or unknown key or a value out of range."""
        rest = dict(record)
        counts = [_checked(name, rest.pop(name, None), int, *limits) for name, limits in _COUNT_RANGES.items()]
        values: list[Any] = [*counts, check_facts(rest)]
        return cls(*values)


def check_facts(facts: Mapping[str, object]) -> dict[str, float]:
    """Return announced facts as floats; `ProtocolError` for an unknown name, or no number within `FACT_RANGES`."""
    checked = {}
    for name, value in facts.items():
        if name not in FACT_RANGES:
            raise ProtocolError(f"unknown fact {str(name)[:40]!r}; expected some of {', '.join(FACT_RANGES)}")
        checked[name] = float(_checked(name, value, int | float, *FACT_RANGES[name]))
    return checked
