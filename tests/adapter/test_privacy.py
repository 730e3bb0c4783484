"""Clipping and noise of a device's changes."""

from __future__ import annotations

import numpy as np
import pytest

from adapter import AdapterState
from adapter.privacy import change_norm, clip_and_noise
from tests.support.adapters import random_state, small_spec

CHANGES = random_state(small_spec())


def _flat(state: AdapterState) -> np.ndarray:
    parts = (state.lora_A, state.lora_B, state.head)
    return np.concatenate([part[name].reshape(-1) for part in parts for name in sorted(part)]).astype(np.float64)


def test_the_norm_is_that_of_all_tensors_together() -> None:
    assert change_norm(CHANGES) == pytest.approx(np.linalg.norm(_flat(CHANGES)), rel=1e-12)


def test_clipping_shortens_long_changes_and_leaves_short_ones() -> None:
    norm, rng = change_norm(CHANGES), np.random.default_rng(0)
    assert change_norm(clip_and_noise(CHANGES, norm / 7, 0.0, rng)) == pytest.approx(norm / 7, rel=1e-6)
    np.testing.assert_array_equal(_flat(clip_and_noise(CHANGES, norm * 1.01, 0.0, rng)), _flat(CHANGES))


def test_the_noise_has_the_stated_size_and_no_bias() -> None:
    clip, z = change_norm(CHANGES) * 2, 0.3
    draws = np.stack([_flat(clip_and_noise(CHANGES, clip, z, np.random.default_rng(seed))) for seed in range(200)])
    noise = draws - _flat(CHANGES)
    assert noise.std() == pytest.approx(z * clip, rel=0.01)
    assert abs(noise.mean()) < 4 * z * clip / np.sqrt(noise.size)


def test_zero_changes_stay_finite() -> None:
    zero = AdapterState({"q": np.zeros((2, 3), np.float32)}, {})
    assert np.isfinite(clip_and_noise(zero, 1.0, 1.0, np.random.default_rng(0)).lora_A["q"]).all()


@pytest.mark.parametrize(
    ("clip", "z"), [(0.0, 1.0), (-1.0, 1.0), (float("nan"), 1.0), (1.0, -0.1), (1.0, float("nan"))]
)
def test_senseless_settings_are_refused(clip: float, z: float) -> None:
    with pytest.raises(ValueError, match="clip_norm > 0 and noise_multiplier >= 0"):
        clip_and_noise(CHANGES, clip, z, np.random.default_rng(0))
