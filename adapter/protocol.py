"""What the server tells a device for one round and what the device answers, as flat records (no framework here).

The buffer with the sub-adapter travels beside the record. A device answers with *changes* of the weights it received,
so that an entry it dropped has changed by nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, Self, cast

import numpy as np
import numpy.typing as npt

from adapter.delivery import Delivery, DeliveryError

# Bytes around the buffer that the planner reserves in each direction: the record below plus the message's own envelope
# (identifiers, time stamps). tests/integration/test_wire_size.py measures the real envelope against it.
HEADER_BYTES = 512

# Names of the records in a message, and of the buffer and the base update in their record.
BUFFER = "buffer"
BASE = "base"
INSTRUCTION = "instruction"
REPORT = "report"
PROFILE = "profile"

LARGEST = 1e12  # of a loss, a score or a time that a device reports: sums over devices stay finite
_NOT_TOLD = -1.0  # in place of a loss that a device keeps to itself

DTYPES = ("fp32", "fp16", "int8", "int4")  # number types of the values in a buffer
# Serialization name of the buffer. Not Flower's "numpy.ndarray": that one prepends a file header of 128 bytes to every
# array.
RAW = "raw"


def buffer_fields(flat: npt.NDArray[np.generic]) -> dict[str, Any]:
    """Return a flat buffer as the fields of a message's array: dtype, shape, stype and data."""
    return {"dtype": flat.dtype.str, "shape": (flat.size,), "stype": RAW, "data": flat.tobytes()}


class ProtocolError(ValueError):
    """A record that does not follow the contract; the message names the key."""


class _Record:
    """A dataclass as a flat record with kebab-case keys; what has its default value does not travel."""

    def to_record(self) -> dict[str, Any]:
        """Return kebab-case keys and scalar values (of a delivery one list of integers)."""
        written = ((item, getattr(self, item.name)) for item in fields(cast(Any, self)))
        return {_key(item): _written(value, str(item.type)) for item, value in written if value != item.default}

    @classmethod
    def _read(cls, record: Mapping[str, object]) -> Self:
        given = [item for item in fields(cast(Any, cls)) if item.default is MISSING or _key(item) in record]
        return cls(**{item.name: _read_value(record, item) for item in given})


def _key(item: Field[Any]) -> str:
    return item.name.replace("_", "-")


def _written(value: Any, kind: str) -> Any:
    if kind.startswith("float"):
        return _NOT_TOLD if value is None else float(value)
    return value.to_list() if isinstance(value, Delivery) else value


def _read_value(record: Mapping[str, object], item: Field[Any]) -> Any:
    key = _key(item)
    if item.type == "Delivery":
        return _delivery(record[key])
    if item.type == "float | None" and record.get(key) == _NOT_TOLD:
        return None
    if item.type == "int":
        return _integer(record, key, item.metadata.get("lowest", 0))
    if "float" in str(item.type):
        return _number(record, key)
    return _value(record, key, str if item.type == "str" else bytes)


_FROM_1 = {"lowest": 1}


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
        if instruction.wire_dtype and instruction.wire_dtype not in DTYPES:
            raise ProtocolError(f"wire-dtype must be one of {', '.join(DTYPES)}, found {instruction.wire_dtype!r}")
        return instruction


@dataclass(frozen=True)
class RoundReport(_Record):
    """One device's answer beside the buffer of its changes."""

    server_round: int = field(metadata=_FROM_1)  # repeated from the instruction, as is the seed
    mask_seed: int
    num_examples: int = field(metadata=_FROM_1)  # that the device trains on, the weight of its answer
    train_loss: float | None  # mean over the local steps; None when the device keeps it to itself (privacy)
    train_s: float  # wall time of the local training [s]
    rank: int = field(default=0, metadata=_FROM_1)  # the device pruned its adapter to; 0: the rank it was told
    upload_s: float = 0.0  # time the device's radio took for the upload [s]; 0: not measured

    @classmethod
    def from_record(cls, record: Mapping[str, object]) -> RoundReport:
        """Read and check a record; `ProtocolError` for a missing or unknown key or a value of wrong type or range."""
        report = cls._read(record)
        unknown = sorted(set(record) - set(report.to_record()))
        if unknown:
            raise ProtocolError(f"the report holds an unknown key {unknown[0]!r}")
        for name in ("train_loss", "train_s", "upload_s"):
            value = getattr(report, name)
            if value is not None and value > LARGEST:
                raise ProtocolError(f"{name.replace('_', '-')} must be at most {LARGEST:g}, found {value!r}")
        return report


def _delivery(numbers: object) -> Delivery:
    if not isinstance(numbers, list) or not all(isinstance(n, int) and not isinstance(n, bool) for n in numbers):
        raise ProtocolError(f"delivery must be a list of integers, found {numbers!r}")
    try:
        return Delivery.from_list(numbers)
    except DeliveryError as error:
        raise ProtocolError(str(error)) from error


def _value(record: Mapping[str, object], key: str, kind: type | tuple[type, ...]) -> object:
    if key not in record:
        raise ProtocolError(f"the record lacks {key!r}")
    value = record[key]
    if isinstance(value, bool) or not isinstance(value, kind):
        raise ProtocolError(f"{key} has type {type(value).__name__}, value {value!r}")
    return value


def _integer(record: Mapping[str, object], key: str, lowest: int = 0) -> int:
    value = cast(int, _value(record, key, int))
    if not lowest <= value < 2**63:
        raise ProtocolError(f"{key} must be an integer from {lowest} to 2**63 - 1, found {value!r}")
    return value


def _number(record: Mapping[str, object], key: str) -> float:
    value = cast(float, _value(record, key, (int, float)))
    if not math.isfinite(value) or value < 0:
        raise ProtocolError(f"{key} must be finite and >= 0, found {value!r}")
    return float(value)
