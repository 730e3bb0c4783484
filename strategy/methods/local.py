"""Local training: nobody's adapter is averaged with anybody's, the line below which a federation is of no use.

Devices keep lora_B and the head, as in `strategy.methods.fedsa_lora`; of lora_A the server keeps every device's own.
The score is the mean over devices of their own models, which is personalised. What travels is an artefact.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from adapter import AdapterState
from adapter.state import FloatArray
from strategy.aggregation import Answer, Average, Averaged
from strategy.methods.fedsa_lora import FedSALora

Own = dict[int, dict[str, FloatArray]]


class _Apart:
    """Keeps every device's lora_A; the global adapter stays as it was."""

    def __init__(self, own: Own) -> None:
        self._own = own

    def add(self, answer: Answer) -> None:
        sent = answer.received().lora_A
        self._own[answer.device] = {name: sent[name] + change for name, change in answer.changes.lora_A.items()}

    def finish(self, state: AdapterState) -> Averaged:
        return Averaged(state.copy())


class Local(FedSALora):
    """One model per device, trained on its own examples alone."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._own: Own = {}

    def values(self, device: int) -> AdapterState:
        """Return the device's own lora_A, once it has one."""
        state = super().values(device)
        return replace(state, lora_A=self._own[device]) if device in self._own else state

    def new_average(self) -> Average:
        """Return what keeps the answers apart."""
        return _Apart(self._own)

    def replaced(self, device: int) -> None:
        """Start a newcomer from the beginning."""
        super().replaced(device)
        self._own.pop(device, None)

    def memory(self) -> tuple[dict[str, Any], dict[str, FloatArray]]:
        """Return what `LoraStrategy.memory` does, and every device's lora_A."""
        facts, tensors = super().memory()
        own = {f"own/{device}/{name}": value for device, part in self._own.items() for name, value in part.items()}
        return facts, tensors | own

    def restore(self, facts: Mapping[str, Any], tensors: Mapping[str, FloatArray]) -> None:
        """Go on from `memory`."""
        super().restore(facts, tensors)
        for name, value in tensors.items():
            if name.startswith("own/"):
                _, device, module = name.split("/", 2)
                self._own.setdefault(int(device), {})[module] = value
