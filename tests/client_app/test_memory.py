"""A device's memory: typed, versioned, written only when a round is complete, and nobody else's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from flwr.app import RecordDict
from torch import nn

from adapter import AdapterMask, AdapterSpec, ModuleShape
from adapter.mask import ModuleMask
from client_app.memory import DeviceMemory, MemoryLostError
from client_app.moments import load_moments, save_moments


def test_nothing_is_held_at_first() -> None:
    memory = DeviceMemory(RecordDict())
    assert memory.version("base") == 0 and memory.get("base") == {} and memory.require("base", 0) == {}
    with pytest.raises(MemoryLostError, match="expected version 3 of base in this device's memory, found none"):
        memory.require("base", 3)


def test_what_was_put_counts_after_commit_only() -> None:
    state = RecordDict()
    memory = DeviceMemory(state)
    memory.put("lora_A", 4, {"q": np.arange(6.0).reshape(2, 3)})
    assert memory.version("lora_A") == 4 and DeviceMemory(state).version("lora_A") == 0
    memory.commit()
    again = DeviceMemory(state)
    np.testing.assert_array_equal(again.require("lora_A", 4)["q"], np.arange(6).reshape(2, 3))
    assert again.get("lora_A")["q"].dtype == np.float32
    with pytest.raises(MemoryLostError, match="found version 4"):
        again.require("lora_A", 5)


def test_a_part_is_replaced_and_does_not_grow() -> None:
    state = RecordDict()
    for version in range(1, 50):
        memory = DeviceMemory(state)
        memory.put("base", version, {"q": np.full((8, 8), version, dtype=np.float32)})
        memory.commit()
    assert len(state) == 2 and DeviceMemory(state).get("base")["q"][0, 0] == 49


def test_interleaved_devices_do_not_see_each_other() -> None:
    states = [RecordDict(), RecordDict()]
    memories = [DeviceMemory(state) for state in states]
    for k, memory in enumerate(memories):
        memory.put("personal", 1 + k, {"b": np.full(3, float(k))})
    for memory in memories:
        memory.commit()
    held = [DeviceMemory(state).get("personal")["b"] for state in states]
    held[0][:] = 9  # a reader's copy
    assert [DeviceMemory(state).get("personal")["b"][0] for state in states] == [0, 1]
    assert [DeviceMemory(state).version("personal") for state in states] == [1, 2]


SPEC = AdapterSpec((ModuleShape("q", 6, 4, 2),))
MASK = AdapterMask((ModuleMask(np.array([0, 2]), np.arange(6)),))
WHOLE = AdapterMask((ModuleMask(np.arange(4), np.arange(6)),))


def _steps(weight: nn.Parameter, memory: DeviceMemory, mask: AdapterMask, count: int, kind: str) -> None:
    optimizer = (
        torch.optim.AdamW([weight], lr=0.1) if kind == "adamw" else torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    )
    kept = {f"{name}.{part}": index for part, name, index in mask.survivors(SPEC)}
    load_moments(optimizer, {"q.lora_A": weight}, kept, memory)
    for _ in range(count):
        weight.grad = torch.ones_like(weight)
        weight.grad[:, [k for k in range(4) if k not in mask.modules[0].columns]] = 0
        optimizer.step()
    save_moments(optimizer, {"q.lora_A": weight}, kept, memory, 1)


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_kept_moments_go_on_as_if_there_had_been_no_pause(kind: str) -> None:
    once, twice, memory = nn.Parameter(torch.zeros(2, 4)), nn.Parameter(torch.zeros(2, 4)), DeviceMemory(RecordDict())
    _steps(once, DeviceMemory(RecordDict()), WHOLE, 5, kind)
    _steps(twice, memory, WHOLE, 2, kind)
    _steps(twice, memory, WHOLE, 3, kind)
    torch.testing.assert_close(twice, once, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_old_momentum_does_not_move_dropped_entries(kind: str) -> None:
    weight, memory = nn.Parameter(torch.zeros(2, 4)), DeviceMemory(RecordDict())
    _steps(weight, memory, WHOLE, 3, kind)
    stored = {name: value for name, value in memory.get("moments-lora_A").items() if value.ndim}
    before = weight.detach().clone()
    with torch.no_grad():
        weight[:, [1, 3]] = 0  # dropped: zero for this round
    _steps(weight, memory, MASK, 2, kind)
    assert not weight[:, [1, 3]].any() and (weight[:, [0, 2]] != before[:, [0, 2]]).all()
    for name, value in stored.items():
        np.testing.assert_array_equal(memory.get("moments-lora_A")[name][:, [1, 3]], value[:, [1, 3]])
