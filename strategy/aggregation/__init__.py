"""How a round's answers become one adapter: one file each. Checked answers go in one by one, one adapter comes out.

A new average is registered in `strategy.base`: `LoraStrategy.new_average` chooses by the settings, and a method in
`strategy.methods` that averages in its own way overrides `new_average` or `mean`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from adapter import AdapterMask, AdapterState
from adapter.base_update import Update


@dataclass(frozen=True)
class Answer:
    """A device's checked changes of what it kept, lora_A (r, n') and lora_B (m', r), where they travelled."""

    changes: AdapterState
    mask: AdapterMask
    weight: float  # its number of examples
    device: int = 0
    received: Callable[[], AdapterState] = lambda: AdapterState({}, {})  # whole factors and head that it was sent


@dataclass(frozen=True)
class Averaged:
    """The new adapter in float32, what the frozen base takes up, and what the round's record says of the averaging."""

    state: AdapterState
    base_update: Update | None = None
    account: dict[str, Any] | None = None
    averaging_error: float | None = None  # of ``aggregation=measured``, see strategy.aggregation.products


class Average(Protocol):
    """One round's average; equal answers give equal bits, whatever order they come in."""

    def add(self, answer: Answer) -> None:
        """Take an answer; a ValueError refuses it and leaves no trace."""

    def finish(self, state: AdapterState) -> Averaged:
        """Return the adapter that follows ``state``, of which the devices received cuts; ``state`` is not changed."""
