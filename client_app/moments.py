"""The torch optimizer's state between rounds, one set per factor: RoLoRA's option to go on where a factor was left.

A round resets the optimizer unless ``strategy.optimizer_state=kept``. Kept, the state of lora_A waits while lora_B
trains and the other way round; the head has its own. Entries dropped this round start at zero, so that no old momentum
moves them, and get their stored state back afterwards.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.optim import Optimizer

from adapter.state import FloatArray
from client_app.memory import DeviceMemory

Parameters = Mapping[str, torch.nn.Parameter]  # ``<module>.lora_A``, ``<module>.lora_B``, or as in the head


def load_moments(optimizer: Optimizer, parameters: Parameters, kept: Mapping[str, Any], memory: DeviceMemory) -> None:
    """Give every parameter its state of last time; ``kept`` is the index of what survives of those that drop."""
    for name, parameter in parameters.items():
        for key, value in memory.get(_part(name)).items():
            owner, kind = key.rsplit("/", 1)
            if owner == name:
                state = _merged(np.zeros_like(value), value, kept.get(name, ...))
                optimizer.state[parameter][kind] = torch.from_numpy(state).to(parameter.device)


def save_moments(
    optimizer: Optimizer, parameters: Parameters, kept: Mapping[str, Any], memory: DeviceMemory, version: int
) -> None:
    """Remember the state of every parameter that trained; entries that were dropped keep what was stored before."""
    new = dict[str, dict[str, FloatArray]]()
    for name, parameter in parameters.items():
        part = _part(name)
        held = memory.get(part)
        for kind, value in optimizer.state[parameter].items():
            array, key = value.detach().float().cpu().numpy(), f"{name}/{kind}"
            new.setdefault(part, {})[key] = _merged(held.get(key, array), array, kept.get(name, ...))
    for part, arrays in new.items():
        memory.put(part, version, arrays)


def _part(name: str) -> str:
    ending = name.rsplit(".", 1)[-1]
    return f"moments-{ending}" if ending in ("lora_A", "lora_B") else "moments-head"


def _merged(old: FloatArray, new: FloatArray, kept: Any) -> FloatArray:
    """Return the old values with the new ones where an entry was kept; counts of steps are new as they are."""
    merged = old.copy()
    index = kept if new.ndim else ...
    merged[index] = new[index]
    return merged
