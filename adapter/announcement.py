"""Announcement of a device before it takes part: partition, examples and, where it knows them, hardware and limits.

Nothing of it is believed beyond its range: a device that announces a clock of 1e30 Hz is refused, not planned with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from adapter.protocol import ProtocolError

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
_MOST_DEVICES, _MOST_EXAMPLES = 10**6, 10**9


@dataclass(frozen=True)
class DeviceAnnouncement:
    """A device's answer to the query before its first round."""

    partition_id: int  # its place in the federation, from 0
    num_examples: int  # that it trains on, the weight of its answers
    num_holdout: int = 0  # that it scores the model on; 0 without device-side evaluation
    facts: Mapping[str, float] = field(default_factory=dict)  # any of `FACT_RANGES`

    def to_record(self) -> dict[str, Any]:
        """Return kebab-case keys; integers and floats only, as a metric record wants them."""
        return {
            "partition-id": self.partition_id,
            "num-examples": self.num_examples,
            "num-holdout": self.num_holdout,
            **{name: float(value) for name, value in self.facts.items()},
        }

    @classmethod
    def from_record(cls, record: Mapping[str, object]) -> DeviceAnnouncement:
        """Read and check a record; `ProtocolError`, one line, for a missing or unknown key or a value out of range."""
        rest = dict(record)
        highest = {"partition-id": _MOST_DEVICES, "num-examples": _MOST_EXAMPLES, "num-holdout": _MOST_EXAMPLES}
        counts = {name: _count(rest.pop(name, None), name, limit) for name, limit in highest.items()}
        if counts["num-examples"] < 1:
            raise ProtocolError("num-examples must be at least 1, found 0")
        return cls(counts["partition-id"], counts["num-examples"], counts["num-holdout"], check_facts(rest))


def check_facts(facts: Mapping[str, object]) -> dict[str, float]:
    """Return announced facts as floats; `ProtocolError` for an unknown name, or no number within `FACT_RANGES`."""
    checked = {}
    for name, value in facts.items():
        if name not in FACT_RANGES:
            raise ProtocolError(f"unknown fact {str(name)[:40]!r}; expected some of {', '.join(FACT_RANGES)}")
        low, high = FACT_RANGES[name]
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise ProtocolError(f"{name} must be a number from {low:g} to {high:g}, found {str(value)[:40]!r}")
        checked[name] = float(value)
    return checked


def _count(value: object, name: str, highest: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= highest:
        raise ProtocolError(f"{name} must be an integer from 0 to {highest}, found {str(value)[:40]!r}")
    return value
