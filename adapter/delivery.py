"""What one message brings a device, and what the device must already hold: versions instead of repeated bytes.

Every part of the global model has a version: lora_A and lora_B the round in which they last changed (0: the seeded
start, which every device can make itself), the base the number of updates added to it. The server sends what a device
has not confirmed; the rest it names by version, and a device that does not hold that version says so and is sent
everything next time.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from adapter.state import AdapterSpec

_BITS = {"": 0, "A": 1, "B": 2, "AB": 3}
_FACTORS = {value: name for name, value in _BITS.items()}


class DeliveryError(ValueError):
    """A delivery that contradicts itself; the message says how."""


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
        if self.sent not in _BITS or min(numbers) < 0 or self.personal < -1 or self.base_to < self.base_from:
            raise DeliveryError(f"a delivery holds a value out of range: {self}")
        if self.base_ranks and len(self.base_ranks) != self.base_to - self.base_from:
            raise DeliveryError(
                f"expected {self.base_to - self.base_from} ranks of base updates, found {len(self.base_ranks)}"
            )

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
        return [_BITS[sent], *map(int, numbers), *base_ranks]

    @classmethod
    def from_list(cls, numbers: list[int]) -> Delivery:
        """Inverse of `to_list`; `DeliveryError` if the list is too short or a number is out of range."""
        scalars = len(fields(cls)) - 1
        if len(numbers) < scalars or numbers[0] not in _FACTORS or numbers[1] not in (0, 1):
            raise DeliveryError(f"expected at least {scalars} numbers that describe a delivery, found {numbers}")
        values: list[Any] = [_FACTORS[numbers[0]], bool(numbers[1]), *numbers[2:scalars], tuple(numbers[scalars:])]
        return cls(*values)


def wire_spec(spec: AdapterSpec, delivery: Delivery) -> AdapterSpec:
    """Return the layout of what travels to and from a device: its own rank, and no head where the head is personal."""
    modules = spec.modules
    if delivery.rank > spec.rank:
        raise DeliveryError(f"expected a rank of at most {spec.rank}, found {delivery.rank}")
    if delivery.rank:
        modules = tuple(replace(module, r=delivery.rank) for module in modules)
    return AdapterSpec(modules, () if delivery.personal >= 0 else spec.head)
