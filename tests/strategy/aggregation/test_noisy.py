"""Central privacy's average, against literal NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from adapter import AdapterMask, AdapterState, gather, sample_mask
from adapter.privacy import PrivacySettings
from strategy.aggregation import Answer
from strategy.aggregation.noisy import NoisyAverage
from tests.support.adapters import random_state, small_spec

SPEC = small_spec()
STATE = random_state(SPEC)
ANSWERS = [(random_state(SPEC, 10 + k), sample_mask(SPEC, k, 0.5)) for k in range(5)]
_PART = {"lora_A": "A", "lora_B": "B"}


def _average(
    z: float,
    factors: tuple[str, ...] = ("A", "B"),
    clip: float = 3.0,
    answers: int = 5,
    divisor: float = 4.5,
    seed: int = 0,
) -> AdapterState:
    average = NoisyAverage(SPEC, factors, PrivacySettings(clip, z), divisor, np.random.default_rng(seed))
    for changes, mask in ANSWERS[:answers]:
        kept = gather(SPEC, changes, mask, factors)
        average.add(Answer(kept, mask, weight=1e6))  # what a device says of its examples does not count
    return average.finish(STATE).state


def _flat(state: AdapterState, factors: tuple[str, ...] = ("A", "B")) -> np.ndarray:
    chosen = [value for part, _, value in state.items() if _PART.get(part, factors[0]) in factors]
    return np.concatenate([value.reshape(-1) for value in chosen]).astype(np.float64)


def _literal(factors: tuple[str, ...], clip: float, divisor: float) -> np.ndarray:
    total = np.zeros_like(_flat(STATE, factors))
    for changes, mask in ANSWERS:
        dense = AdapterState.zeros(SPEC, np.float64)
        for part, name, kept in mask.survivors(SPEC, factors):
            dense.parts()[part][name][kept] = changes.parts()[part][name][kept]
        dense.head.update(changes.head)
        vector = _flat(dense, factors)  # a dropped entry is zero
        total += vector * min(1.0, clip / np.linalg.norm(vector))
    return _flat(STATE, factors) + total / divisor


@pytest.mark.parametrize("factors", [("A", "B"), ("B",), ("A",)])
@pytest.mark.parametrize("clip", [0.5, 3.0, 1e3])
def test_the_mean_is_that_of_numpy(factors: tuple[str, ...], clip: float) -> None:
    found = _average(0.0, factors, clip)
    np.testing.assert_allclose(_flat(found, factors), _literal(factors, clip, 4.5), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("answers", [0, 5])
@pytest.mark.parametrize("factors", [("A", "B"), ("B",)])
def test_noise_stands_on_every_trained_entry_and_on_no_other_whoever_answers(
    factors: tuple[str, ...], answers: int
) -> None:
    clip, z, divisor = 2.0, 1.5, 4.5
    plain = _average(0.0, factors, clip, answers, divisor)
    draws = [_average(z, factors, clip, answers, divisor, seed) for seed in range(200)]
    noise = np.stack([_flat(draw, factors) - _flat(plain, factors) for draw in draws])
    assert noise.std() == pytest.approx(z * clip / divisor, rel=0.02)
    assert (noise.std(axis=0) > 0.7 * z * clip / divisor).all()
    assert abs(noise.mean()) < 4 * z * clip / divisor / np.sqrt(noise.size)
    if factors == ("B",):
        for name, value in STATE.lora_A.items():
            np.testing.assert_array_equal(draws[0].lora_A[name], value)


def test_one_device_moves_the_sum_by_the_clipping_norm_at_most() -> None:
    with_all, without = _average(0.0, clip=0.25), _average(0.0, clip=0.25, answers=4)
    assert np.linalg.norm(_flat(with_all) - _flat(without)) == pytest.approx(0.25 / 4.5, rel=1e-5)


def test_equal_answers_give_equal_bits_in_any_order() -> None:
    found = []
    for order in (ANSWERS, ANSWERS[::-1]):
        average = NoisyAverage(SPEC, ("A", "B"), PrivacySettings(1.0, 1.0), 3.0, np.random.default_rng(7))
        for changes, _ in order:
            average.add(Answer(changes, AdapterMask.full(SPEC), 1.0))
        found.append(_flat(average.finish(STATE).state))
    np.testing.assert_array_equal(*found)
