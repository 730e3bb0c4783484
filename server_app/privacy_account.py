r"""The privacy account: what a device's answers so far reveal about its data, as (epsilon, delta).

A device that answered t times with noise multiplier z has run t Gaussian mechanisms of sensitivity 2C and standard
deviation zC (`adapter.privacy`). Together they are one Gaussian mechanism with the noise of :math:`z/\sqrt t`, whose
exact privacy loss comes from Google's dp-accounting; a numerical composition would need gigabytes of memory where the
noise is small.
"""

import functools
from collections import Counter
from collections.abc import Iterable, Mapping
from math import log
from typing import Any

from scipy.optimize import brentq

from conf.compose import ConfigError
from conf.schema import PrivacyConfig

_INSTALL = "pip install dp-accounting, or install the project with its privacy extra: pip install -e .[privacy]"


@functools.lru_cache(maxsize=4096)
def epsilon(answers: int, noise_multiplier: float, delta: float) -> float:
    """Return the smallest epsilon for which t answers of a device are (epsilon, delta)-private against the server.

    ``noise_multiplier`` is z, the noise's deviation over the clipping norm; two data sets are 2C apart, so z/2 is
    accounted. 0 without answers, infinity without noise; ConfigError without the library.
    """
    if answers == 0:
        return 0.0
    if noise_multiplier == 0:
        return float("inf")
    try:
        from dp_accounting.pld.privacy_loss_mechanism import GaussianPrivacyLoss
    except ImportError as error:
        raise ConfigError(
            f"privacy.noise_multiplier needs the package dp-accounting, found none; {_INSTALL}"
        ) from error
    signal = 2 * answers**0.5 / noise_multiplier  # sensitivity over standard deviation, all answers together
    loss = GaussianPrivacyLoss(1 / signal)
    if loss.get_delta_for_epsilon(0.0) <= delta:
        return 0.0
    enough = signal**2 / 2 + signal * (2 * log(1 / delta)) ** 0.5  # the tail bound of a Gaussian privacy loss
    return float(brentq(lambda value: loss.get_delta_for_epsilon(value) - delta, 0.0, enough))


class PrivacyAccount:
    """Counts how often every device was asked, answered in time or not, in all the run's rounds, and what that cost."""

    def __init__(self, settings: PrivacyConfig, rounds: Iterable[Mapping[str, Any]] = ()) -> None:
        self.settings = settings
        self._asked: Counter[str] = Counter()
        for record in rounds:
            self._count(record)

    def add(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Count a round; return its epsilon by device, None for unbounded, for the record; nothing without clipping."""
        self._count(record)
        s = self.settings
        if s.clip_norm is None:
            return {}
        spent = {device: epsilon(count, s.noise_multiplier, s.delta) for device, count in sorted(self._asked.items())}
        finite = {device: value if value != float("inf") else None for device, value in spent.items()}
        if s.noise_multiplier == 0:
            guarantee = "none: clipping without noise"
        elif s.noise_seed is not None:
            guarantee = "none in truth: the noise comes from privacy.noise_seed, which the server knows"
        else:
            guarantee = "local: each device against the server, replacing all of its data"
        settings = {"clip_norm": s.clip_norm, "noise_multiplier": s.noise_multiplier, "delta": s.delta}
        return {"privacy": {**settings, "guarantee": guarantee, "epsilon": finite}}

    def _count(self, record: Mapping[str, Any]) -> None:
        self._asked.update(device["id"] for device in record["devices"] if device["scheduled"])
