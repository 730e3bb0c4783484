"""Versions of factors, base and personal parts that every device has confirmed, and so what it must be sent."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from adapter import AdapterSpec, RoundInstruction
from adapter.base_update import Update, is_dense
from adapter.protocol import Delivery
from adapter.state import FloatArray

_PARTS = ("A", "B", "base", "personal")


@dataclass
class BaseLog:
    """The last updates of the base, as far back as sending them is cheaper than sending the whole change."""

    version: int = 0  # updates so far
    updates: list[Update] = field(default_factory=list)  # the newest ones, oldest first

    def push(self, update: Update, spec: AdapterSpec) -> None:
        """Add an update, and forget those that no device will be sent as factors any more."""
        self.version += 1
        self.updates.append(update)
        while self.updates and all(is_dense(module, _ranks(self.updates)) for module in spec.modules):
            self.updates.pop(0)

    def since(self, version: int) -> tuple[list[Update], tuple[int, ...]]:
        """Return the updates after ``version`` and their ranks; both empty if one of them is no longer held."""
        skip = version - (self.version - len(self.updates))
        missed = self.updates[skip:] if skip >= 0 else []
        return missed, _ranks(missed)


def _ranks(updates: list[Update]) -> tuple[int, ...]:
    return tuple(next(iter(update.values()))[0].shape[1] for update in updates)


class DeviceBook:
    """Versions: the current ones, and those that every device confirmed last (0: what the seed gives)."""

    def __init__(self, num_devices: int) -> None:
        self.versions = {"A": 0, "B": 0}
        self.base = BaseLog()
        self._known = [dict.fromkeys(_PARTS, 0) for _ in range(num_devices)]

    def stale(self, device: int) -> str:
        """Return the factors whose current version a device has not confirmed."""
        return "".join(factor for factor, version in self.versions.items() if self._known[device][factor] != version)

    def personal(self, device: int) -> int:
        """Round of the personal part a device has confirmed, 0 for none."""
        return self._known[device]["personal"]

    def with_base(self, delivery: Delivery, device: int) -> Delivery:
        """Return a delivery with the updates of the base that a device has not confirmed."""
        known = self._known[device]["base"]
        _, ranks = self.base.since(known)
        return replace(delivery, base_from=known, base_to=self.base.version, base_ranks=ranks)

    def confirm(self, device: int, instruction: RoundInstruction) -> None:
        """A device answered: it holds what this order brought and kept."""
        delivery, known = instruction.delivery, self._known[device]
        if delivery.whole:
            known.update({factor: delivery.version(factor) for factor in delivery.sent})
        known["base"] = delivery.base_to
        if delivery.personal >= 0:
            known["personal"] = instruction.server_round

    def forget(self, device: int) -> None:
        """A device lost its memory, or another one took its place: it is sent everything next time."""
        self._known[device] = dict.fromkeys(_PARTS, 0)

    def to_facts(self) -> dict[str, Any]:
        """Return the JSON part of the state."""
        base = {"base_version": self.base.version, "base_updates": len(self.base.updates)}
        return {"versions": dict(self.versions), **base, "known": [dict(row) for row in self._known]}

    def to_tensors(self) -> dict[str, FloatArray]:
        """Return the arrays of the state by name, ``update/<number>/<L or R>/<module>``."""
        return {
            f"update/{number}/{side}/{name}": value
            for number, update in enumerate(self.base.updates)
            for name, pair in update.items()
            for side, value in zip("LR", pair, strict=True)
        }

    def restore(self, facts: Mapping[str, Any], tensors: Mapping[str, FloatArray]) -> None:
        """Go on from saved state."""
        self.versions = {factor: int(facts["versions"][factor]) for factor in ("A", "B")}
        updates: list[Update] = []
        for number in range(int(facts["base_updates"])):
            start = f"update/{number}/L/"
            names = [key.removeprefix(start) for key in tensors if key.startswith(start)]
            updates.append({name: (tensors[start + name], tensors[f"update/{number}/R/{name}"]) for name in names})
        self.base = BaseLog(int(facts["base_version"]), updates)
        self._known = [{part: int(row[part]) for part in _PARTS} for row in facts["known"]]
