"""FedAvgM, FedAdam and FedYogi against their formulas, entry by entry."""

from __future__ import annotations

import numpy as np
import pytest

from adapter import AdapterState
from strategy.aggregation.server_optimizer import ServerOptimizer, ServerSettings
from tests.support.adapters import random_state, small_spec

SPEC = small_spec()
S = ServerSettings(lr=0.3, beta1=0.8, beta2=0.95, tau=1e-2)
TRAINED = np.random.default_rng(1).random((4, 24)) < 0.5  # of lora_A of q; the others are dropped by everybody


def _means(old: AdapterState, server_round: int) -> AdapterState:
    """What plain averaging would give: half of one factor trains in odd rounds, none of lora_B in even ones."""
    mean = random_state(SPEC, 10 + server_round)
    kept = TRAINED if server_round % 2 else ~TRAINED
    mean.lora_A["q"] = np.where(kept, mean.lora_A["q"], old.lora_A["q"])
    if server_round % 2 == 0:
        mean.lora_B = dict(old.lora_B)
    return mean


def _literal(kind: str, x: float, deltas: list[float]) -> float:
    m = v = 0.0
    for delta in deltas:
        if delta == 0:
            continue
        if kind == "fedavgm":
            m = S.beta1 * m + delta
            x += S.lr * m
            continue
        m = S.beta1 * m + (1 - S.beta1) * delta
        if kind == "fedadam":
            v = S.beta2 * v + (1 - S.beta2) * delta**2
        else:
            v = v - (1 - S.beta2) * delta**2 * np.sign(v - delta**2)
        x += S.lr * m / (np.sqrt(v) + S.tau)
    return x


@pytest.mark.parametrize("kind", ["fedavgm", "fedadam", "fedyogi"])
def test_five_rounds_equal_the_formulas_and_who_did_not_train_waits(kind: str) -> None:
    server = ServerOptimizer(ServerSettings(kind, S.lr, S.beta1, S.beta2, S.tau))
    start = state = random_state(SPEC)
    deltas = []
    for server_round in range(1, 6):
        mean = _means(state, server_round)
        deltas.append(mean.zip(state, lambda new, old: new.astype(np.float64) - old))
        before, state = state, server.step(state, mean)
        if server_round % 2 == 0:
            assert all(np.array_equal(state.lora_B[name], before.lora_B[name]) for name in state.lora_B)
        else:
            assert np.array_equal(state.lora_A["q"][~TRAINED], before.lora_A["q"][~TRAINED])
    for part, name in (("lora_A", "q"), ("lora_B", "v"), ("head", "head.bias")):
        first, last = start.parts()[part][name], state.parts()[part][name]
        for index in np.ndindex(*first.shape):
            expected = _literal(kind, float(first[index]), [float(d.parts()[part][name][index]) for d in deltas])
            assert last[index] == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_momentum_of_zero_and_rate_one_is_plain_averaging() -> None:
    old, mean = random_state(SPEC), random_state(SPEC, 1)
    for server in (ServerOptimizer(ServerSettings("fedavgm", 1.0, 0.0)), ServerOptimizer(ServerSettings())):
        new = server.step(old, mean)
        assert all(np.allclose(value, mean.parts()[part][name], atol=1e-6) for part, name, value in new.items())


def test_the_memory_comes_back_to_the_last_bit() -> None:
    one, other = (ServerOptimizer(ServerSettings("fedyogi", 0.1)) for _ in range(2))
    old, mean = random_state(SPEC), random_state(SPEC, 1)
    one.step(old, mean)
    other.restore(one.to_tensors() | {"update/0/L/q": np.zeros(1)})
    again = [server.step(mean, old).to_tensors() for server in (one, other)]
    assert all(np.array_equal(value, again[1][key]) for key, value in again[0].items())
