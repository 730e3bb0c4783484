"""The torch optimizer's state between rounds, one set per factor: RoLoRA's option to go on where a factor was left.

A round resets the optimizer unless ``strategy.optimizer_state=kept``. Kept, the state of lora_A waits while lora_B
trains and the other way round; the head has its own. Entries dropped this round start at zero, so that no old momentum
moves them, and get their stored state back afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from adapter import AdapterMask, AdapterSpec
from adapter.state import FloatArray
from client_app.memory import DeviceMemory


def load_moments(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, torch.nn.Parameter],
    spec: AdapterSpec,
    mask: AdapterMask,
    memory: DeviceMemory,
) -> None:
    """Give every parameter the state it had when it last trained on this device.

    ``parameters`` are named ``<module>.lora_A``, ``<module>.lora_B`` or as in the head; the optimizer is fresh.
    """
    survivors = _survivors(spec, mask)
    stored = {part: memory.get(part) for part in sorted({_part(name) for name in parameters})}
    for name, parameter in parameters.items():
        held = stored[_part(name)]
        state = {key.rsplit("/", 1)[1]: value for key, value in held.items() if key.rsplit("/", 1)[0] == name}
        for key, value in state.items():
            if value.ndim and name in survivors:
                value = np.where(survivors[name], value, 0.0)
            optimizer.state[parameter][key] = torch.from_numpy(np.array(value, dtype=np.float32)).to(parameter.device)


def save_moments(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, torch.nn.Parameter],
    spec: AdapterSpec,
    mask: AdapterMask,
    memory: DeviceMemory,
    server_round: int,
) -> None:
    """Remember the state of every parameter that trained; entries that were dropped keep what was stored before."""
    survivors = _survivors(spec, mask)
    for part in sorted({_part(name) for name in parameters}):
        held, new = memory.get(part), dict[str, FloatArray]()
        for name, parameter in parameters.items():
            if _part(name) != part:
                continue
            for key, value in optimizer.state[parameter].items():
                array = value.detach().float().cpu().numpy()
                old = held.get(f"{name}/{key}")
                if array.ndim and name in survivors and old is not None:
                    array = np.where(survivors[name], array, old)
                new[f"{name}/{key}"] = array
        memory.put(part, server_round, new)


def _part(name: str) -> str:
    ending = name.rsplit(".", 1)[-1]
    return f"moments-{ending}" if ending in ("lora_A", "lora_B") else "moments-head"


def _survivors(spec: AdapterSpec, mask: AdapterMask) -> dict[str, np.ndarray]:
    """Return per parameter a boolean array that broadcasts over it: (1, n) for lora_A, (m, 1) for lora_B."""
    found = {}
    for module, kept in zip(spec.modules, mask.modules, strict=True):
        columns, rows = np.zeros((1, module.in_features), dtype=bool), np.zeros((module.out_features, 1), dtype=bool)
        columns[0, kept.columns], rows[kept.rows, 0] = True, True
        found[f"{module.name}.lora_A"], found[f"{module.name}.lora_B"] = columns, rows
    return found
