r"""Average with central differential privacy: clipped answers over a fixed number, noise once [McMahan2018].

With clipping norm C, noise multiplier z, N devices of which each is drawn with probability q, and the drawn and used
answers :math:`\delta_k`, one vector of all that they trained and kept, zero where they dropped:

.. math:: x + \frac{1}{qN}\Big(\sum_k \delta_k\min(1, C/\|\delta_k\|_2) + \mathcal N(0, z^2 C^2 I)\Big).

The server clips, for a device is not trusted. Nothing but the sum depends on a device's data: every answer counts the
same, the divisor is no count of answers, every entry that trains gets noise, whoever kept it, and so does a round in
which nobody answers. A device moves the sum by C at most; `server_app.privacy_account` makes (epsilon, delta) of it.

References
----------
[McMahan2018] McMahan et al., Learning Differentially Private Recurrent Language Models, ICLR 2018, arXiv 1710.06963.
"""

from dataclasses import replace

import numpy as np

from adapter import AdapterSpec, AdapterState
from adapter.mask import Factors
from adapter.privacy import PrivacySettings, clip_and_noise
from strategy.aggregation import Answer, Averaged
from strategy.aggregation.kept import KeptAverage

_MOST_DEVICES = 2.0**17  # in a sum
_STREAMS = {"draw": 0x73656372, "noise": 0x63656E74}  # names the random streams where they are seeded


def secret_generator(noise_seed: int | None, purpose: str, server_round: int) -> np.random.Generator:
    """Return what a round of central privacy draws from: the operating system, or a seed, which voids the guarantee."""
    return np.random.default_rng(None if noise_seed is None else [_STREAMS[purpose], noise_seed, server_round])


class NoisyAverage:
    """Sum of clipped changes over ``divisor`` = q N, with noise on the factors that train and on the head."""

    def __init__(
        self, spec: AdapterSpec, factors: Factors, privacy: PrivacySettings, divisor: float, rng: np.random.Generator
    ) -> None:
        assert privacy.clip_norm is not None
        self._clip_norm, self._deviation = privacy.clip_norm, privacy.noise_multiplier * privacy.clip_norm / divisor
        self._sum, self._divisor, self._rng = KeptAverage(spec, "previous", _MOST_DEVICES), divisor, rng
        self._trained = {f"lora_{factor}" for factor in factors} | {"head"}

    def add(self, answer: Answer) -> None:
        """Clip one device's changes and add them; its number of examples is not used."""
        clipped = clip_and_noise(answer.changes, self._clip_norm, 0.0, self._rng)
        self._sum.add(replace(answer, changes=clipped, weight=1.0))

    def finish(self, state: AdapterState) -> Averaged:
        """Return ``state`` moved by the sum over the divisor and by the noise."""
        new = AdapterState({}, {}, {}, state.base)
        for part, name, old in state.items():
            if part != "base":
                move = self._sum.total(part, name) / self._divisor
                if part in self._trained:
                    move = move + self._deviation * self._rng.standard_normal(old.shape)
                new.parts()[part][name] = (old + move).astype(np.float32)
        return Averaged(new)
