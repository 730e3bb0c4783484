r"""What a device does to its changes before they leave it: clip their norm, add Gaussian noise.

With all changed tensors seen as one vector :math:`\delta`, clipping norm C and noise multiplier z the device sends

.. math:: \tilde\delta = \delta\,\min(1, C/\|\delta\|_2) + \mathcal N(0, z^2 C^2 I).

The server sees every answer by itself, so the guarantee is the local one: two data sets of a device give clipped
changes at most 2C apart. `server_app.privacy_account` turns the number of answers into (epsilon, delta).
"""

from dataclasses import dataclass

import numpy as np

from adapter.state import AdapterState, FloatArray


@dataclass(frozen=True)
class PrivacySettings:
    """Clipping norm C (None: neither clipping nor noise), noise multiplier z, and the seed of the noise.

    ``noise_seed`` None draws from the operating system. A seed makes a simulation repeatable and voids the guarantee:
    who knows it can take the noise off again.
    """

    clip_norm: float | None = None
    noise_multiplier: float = 0.0
    noise_seed: int | None = None


def change_norm(changes: AdapterState) -> float:
    """Return the Euclidean norm of all changes together, in float64."""
    return float(np.sqrt(sum(float(np.sum(np.square(value, dtype=np.float64))) for _, _, value in changes.items())))


def clip_and_noise(
    changes: AdapterState, clip_norm: float, noise_multiplier: float, rng: np.random.Generator
) -> AdapterState:
    """Return changes clipped to a norm, plus noise of deviation ``noise_multiplier * clip_norm`` on every entry."""
    if not clip_norm > 0 or not noise_multiplier >= 0:
        raise ValueError(
            f"expected clip_norm > 0 and noise_multiplier >= 0, found {clip_norm!r} and {noise_multiplier!r}"
        )
    norm = change_norm(changes)
    scale = min(1.0, clip_norm / norm) if norm > 0 else 1.0

    def private(value: FloatArray) -> FloatArray:
        noise = rng.standard_normal(value.shape) * (noise_multiplier * clip_norm)
        return np.asarray(value * scale + noise, dtype=np.float32)

    parts = (changes.lora_A, changes.lora_B, changes.head)
    return AdapterState(*({name: private(part[name]) for name in sorted(part)} for part in parts))
