"""What the server tells a device for one round and what the device answers, as flat records (no framework here).

The buffer with the sub-adapter travels beside the record. A device answers with *changes* of the weights it received,
so that an entry it dropped has changed by nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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

# Serialization name of the buffer. Not Flower's "numpy.ndarray": that one prepends a file header of 128 bytes to every
# array.
RAW = "raw"


def buffer_fields(flat: npt.NDArray[np.generic]) -> dict[str, Any]:
    """Return a flat buffer as the fields of a message's array: dtype, shape, stype and data."""
    return {"dtype": flat.dtype.str, "shape": (flat.size,), "stype": RAW, "data": flat.tobytes()}


class ProtocolError(ValueError):
    """A record that does not follow the contract; the message names the key."""


@dataclass(frozen=True)
class RoundInstruction:
    """One device's orders for one round.

    Parameters
    ----------
    server_round : int
        Round, from 1.
    dropout_rate : float
        gamma, in [0, 1).
    mask_seed : int
        Seed of the survivors, below 2**63.
    bandwidth_hz, tx_power_w : float
        Uplink grant [Hz], [W].
    deadline_s : float
        Round deadline [s].
    cpu_hz : float
        CPU clock to train at [Hz].
    factors : str
        Factors that are trained and travel: ``"AB"``, ``"A"`` or ``"B"``.
    code : bytes
        Digest of the server's source; a device with other code refuses.
    delivery : Delivery
        What the message brings; the default (both factors, cut to the survivors) does not travel.
    uplink_rate_bps, downlink_rate_bps : float
        Rates under the grant [bit/s], for a device that waits for its radio; 0, which does not travel: it does not
        wait.
    """

    server_round: int
    dropout_rate: float
    mask_seed: int
    bandwidth_hz: float
    tx_power_w: float
    deadline_s: float
    cpu_hz: float
    factors: str
    code: bytes
    delivery: Delivery = Delivery()
    uplink_rate_bps: float = 0.0
    downlink_rate_bps: float = 0.0

    def to_record(self) -> dict[str, Any]:
        """Return kebab-case keys and scalar values (and one list of integers)."""
        record: dict[str, Any] = {} if self.delivery == Delivery() else {"delivery": self.delivery.to_list()}
        rates = {"uplink-rate-bps": float(self.uplink_rate_bps), "downlink-rate-bps": float(self.downlink_rate_bps)}
        record |= {name: rate for name, rate in rates.items() if rate}
        return record | {
            "server-round": self.server_round,
            "dropout-rate": float(self.dropout_rate),
            "mask-seed": self.mask_seed,
            "bandwidth-hz": float(self.bandwidth_hz),
            "tx-power-w": float(self.tx_power_w),
            "deadline-s": float(self.deadline_s),
            "cpu-hz": float(self.cpu_hz),
            "factors": self.factors,
            "code": self.code,
        }

    @classmethod
    def from_record(cls, record: Mapping[str, object]) -> RoundInstruction:
        """Read and check a record.

        Raises `ProtocolError` if a key is missing or a value has the wrong type or range.
        """
        instruction = cls(
            server_round=_integer(record, "server-round", lowest=1),
            dropout_rate=_number(record, "dropout-rate"),
            mask_seed=_integer(record, "mask-seed"),
            bandwidth_hz=_number(record, "bandwidth-hz"),
            tx_power_w=_number(record, "tx-power-w"),
            deadline_s=_number(record, "deadline-s"),
            cpu_hz=_number(record, "cpu-hz"),
            factors=str(_value(record, "factors", str)),
            code=_bytes(record, "code"),
            delivery=_delivery(record),
            uplink_rate_bps=_number(record, "uplink-rate-bps") if "uplink-rate-bps" in record else 0.0,
            downlink_rate_bps=_number(record, "downlink-rate-bps") if "downlink-rate-bps" in record else 0.0,
        )
        if not 0 <= instruction.dropout_rate < 1:
            raise ProtocolError(f"dropout-rate must lie in [0, 1), found {instruction.dropout_rate!r}")
        if instruction.factors not in ("AB", "A", "B"):
            raise ProtocolError(f"factors must be 'AB', 'A' or 'B', found {instruction.factors!r}")
        return instruction


@dataclass(frozen=True)
class RoundReport:
    """One device's answer beside the buffer of its changes.

    Parameters
    ----------
    server_round, mask_seed : int
        Repeated from the instruction.
    num_examples : int
        Training examples of the device, the weight of its answer.
    train_loss : float or None
        Mean loss over the local steps; None when the device keeps it to itself (privacy).
    train_s : float
        Wall time of the local training [s].
    rank : int
        Rank the device pruned its adapter to; 0, which does not travel: the rank it was told.
    upload_s : float
        Time the device's radio took for the upload [s]; 0, which does not travel: not measured.
    """

    server_round: int
    mask_seed: int
    num_examples: int
    train_loss: float | None
    train_s: float
    rank: int = 0
    upload_s: float = 0.0

    def to_record(self) -> dict[str, Any]:
        """Return kebab-case keys; integers and floats only, as a metric record wants them."""
        optional = {"rank": self.rank, "upload-s": float(self.upload_s)}
        return {name: value for name, value in optional.items() if value} | {
            "server-round": self.server_round,
            "mask-seed": self.mask_seed,
            "num-examples": self.num_examples,
            "train-loss": _NOT_TOLD if self.train_loss is None else float(self.train_loss),
            "train-s": float(self.train_s),
        }

    @classmethod
    def from_record(cls, record: Mapping[str, object]) -> RoundReport:
        """Read and check a record; unknown keys are refused.

        Raises `ProtocolError` if a key is missing or unknown, or a value has the wrong type or range.
        """
        report = cls(
            server_round=_integer(record, "server-round", lowest=1),
            mask_seed=_integer(record, "mask-seed"),
            num_examples=_integer(record, "num-examples", lowest=1),
            train_loss=None if record.get("train-loss") == _NOT_TOLD else _number(record, "train-loss"),
            train_s=_number(record, "train-s"),
            rank=_integer(record, "rank", lowest=1) if "rank" in record else 0,
            upload_s=_number(record, "upload-s") if "upload-s" in record else 0.0,
        )
        unknown = sorted(set(record) - set(report.to_record()))
        if unknown:
            raise ProtocolError(f"the report holds an unknown key {unknown[0]!r}")
        for name, value in (
            ("train-loss", report.train_loss),
            ("train-s", report.train_s),
            ("upload-s", report.upload_s),
        ):
            if value is not None and value > LARGEST:
                raise ProtocolError(f"{name} must be at most {LARGEST:g}, found {value!r}")
        return report


def _delivery(record: Mapping[str, object]) -> Delivery:
    numbers = record.get("delivery")
    if numbers is None:
        return Delivery()
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
    value = _value(record, key, int)
    assert isinstance(value, int)
    if not lowest <= value < 2**63:
        raise ProtocolError(f"{key} must be an integer from {lowest} to 2**63 - 1, found {value!r}")
    return value


def _number(record: Mapping[str, object], key: str) -> float:
    value = _value(record, key, (int, float))
    assert isinstance(value, (int, float))
    if not math.isfinite(value) or value < 0:
        raise ProtocolError(f"{key} must be finite and >= 0, found {value!r}")
    return float(value)


def _bytes(record: Mapping[str, object], key: str) -> bytes:
    value = _value(record, key, bytes)
    assert isinstance(value, bytes)
    return value
