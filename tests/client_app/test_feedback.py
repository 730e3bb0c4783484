"""Error feedback: nothing is lost, entries wait while they are dropped."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import RecordDict

from adapter import AdapterSpec, AdapterState, ModuleShape, gather, rounding_rng, sample_mask, unpack
from client_app.feedback import pack_with_feedback
from client_app.memory import DeviceMemory
from tests.support.adapters import random_state, small_spec

SPEC = small_spec()


def _total(state: AdapterState) -> dict[str, np.ndarray]:
    return {
        **{f"lora_A/{n}": v for n, v in state.lora_A.items()},
        **{f"lora_B/{n}": v for n, v in state.lora_B.items()},
        **{f"head/{n}": v for n, v in state.head.items()},
    }


@pytest.mark.parametrize("dtype", ["int4", "int8", "fp16"])
def test_sent_plus_residual_is_what_was_meant(dtype: str) -> None:
    state = RecordDict()
    meant, arrived = ({key: np.zeros_like(v) for key, v in _total(random_state(SPEC)).items()} for _ in range(2))
    for server_round in range(1, 7):
        mask = sample_mask(SPEC, server_round, 0.4)
        memory, changes = DeviceMemory(state), gather(SPEC, random_state(SPEC, server_round), mask)
        for total, sub in ((meant, changes), (arrived, None)):
            if sub is None:
                flat = pack_with_feedback(
                    SPEC, changes, mask, dtype, ("A", "B"), rounding_rng(5, server_round), memory, server_round
                )
                sub = unpack(SPEC, flat.tobytes(), mask, dtype)
            for module, kept in zip(SPEC.modules, mask.modules, strict=True):
                total[f"lora_A/{module.name}"][:, kept.columns] += sub.lora_A[module.name]
                total[f"lora_B/{module.name}"][kept.rows] += sub.lora_B[module.name]
            for name, value in sub.head.items():
                total[f"head/{name}"] += value
        memory.commit()
    residual = DeviceMemory(state).get("residual")
    for key, value in meant.items():
        np.testing.assert_allclose(arrived[key] + residual[key], value, atol=1e-4)
    assert DeviceMemory(state).version("residual") == 6


def test_a_residual_of_another_rank_is_dropped() -> None:
    memory = DeviceMemory(RecordDict())
    for rank in (4, 2):
        spec = AdapterSpec((ModuleShape("q", 6, 5, rank),))
        mask = sample_mask(spec, 0, 0.0)
        pack_with_feedback(spec, random_state(spec), mask, "int4", ("A", "B"), rounding_rng(1, rank), memory, 1)
        assert memory.get("residual")["lora_A/q"].shape == (rank, 5)


def test_without_feedback_the_error_of_four_bits_is_larger() -> None:
    spec, wanted = AdapterSpec((ModuleShape("q", 8, 8, 2),)), random_state(AdapterSpec((ModuleShape("q", 8, 8, 2),)))
    mask, errors = sample_mask(spec, 0, 0.0), {}
    for feedback in (False, True):
        memory, arrived = DeviceMemory(RecordDict()), np.zeros((2, 8))
        for server_round in range(1, 41):
            used = memory if feedback else DeviceMemory(RecordDict())
            flat = pack_with_feedback(
                spec, wanted.copy(), mask, "int4", ("A", "B"), rounding_rng(3, server_round), used, server_round
            )
            arrived += unpack(spec, flat.tobytes(), mask, "int4").lora_A["q"]
        errors[feedback] = np.abs(arrived / 40 - wanted.lora_A["q"]).max()
    assert errors[True] < 0.3 * errors[False]
