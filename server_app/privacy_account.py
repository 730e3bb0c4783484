r"""The privacy account: what answers so far reveal about a device's data, as (epsilon, delta).

*Local.* A device that answered t times with noise multiplier z has run t Gaussian mechanisms of sensitivity 2C and
standard deviation zC (`adapter.privacy`). Together they are one Gaussian mechanism with the noise of :math:`z/\sqrt t`,
whose exact privacy loss comes from Google's dp-accounting; a numerical composition would need gigabytes of memory where
the noise is small.

*Central.* t rounds are t Gaussian mechanisms of sensitivity C and deviation zC, each on a Poisson sample of rate q
(`strategy.aggregation.noisy`): two data sets differ in that a device answers nothing. The privacy loss is composed on a
grid, rounded upwards [Doroshenko2022].

References
----------
[Doroshenko2022] Doroshenko et al., Connect the Dots: Tighter Discrete Approximations of Privacy Loss Distributions,
    PoPETs 2022, arXiv 2207.04380.
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
_MISSING = f"privacy.noise_multiplier needs the package dp-accounting, found none; {_INSTALL}"
_GRID = 1e-3  # of privacy losses, coarser for little noise, whose losses are large


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
        raise ConfigError(_MISSING) from error
    signal = 2 * answers**0.5 / noise_multiplier  # sensitivity over standard deviation, all answers together
    loss = GaussianPrivacyLoss(1 / signal)
    if loss.get_delta_for_epsilon(0.0) <= delta:
        return 0.0
    enough = signal**2 / 2 + signal * (2 * log(1 / delta)) ** 0.5  # the tail bound of a Gaussian privacy loss
    return float(brentq(lambda value: loss.get_delta_for_epsilon(value) - delta, 0.0, enough))


@functools.lru_cache(maxsize=4096)
def central_epsilon(rounds: int, noise_multiplier: float, sampling_rate: float, delta: float) -> float:
    """Return an epsilon for which the models of t rounds with central noise are (epsilon, delta)-private.

    ``noise_multiplier`` is z, ``sampling_rate`` is q. 0 without rounds, infinity without noise; ConfigError without the
    library.
    """
    if sampling_rate == 1 or rounds == 0 or noise_multiplier == 0:
        return epsilon(rounds, 2 * noise_multiplier, delta)  # of sensitivity C, not 2C
    try:
        from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism
    except ImportError as error:
        raise ConfigError(_MISSING) from error
    grid = _GRID / min(1.0, noise_multiplier) ** 2
    one = from_gaussian_mechanism(noise_multiplier, sampling_prob=sampling_rate, value_discretization_interval=grid)
    return float(one.self_compose(rounds).get_epsilon_for_delta(delta))


class PrivacyAccount:
    """Counts how often every device was asked, answered in time or not, in all the run's rounds, and what that cost."""

    def __init__(
        self, settings: PrivacyConfig, sampling_rate: float = 1.0, rounds: Iterable[Mapping[str, Any]] = ()
    ) -> None:
        self.settings, self.sampling_rate = settings, sampling_rate
        self._asked: Counter[str] = Counter()
        self._rounds = 0
        for record in rounds:
            self._count(record)

    def add(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Count a round; return its epsilon, None for unbounded, for the record; nothing without clipping.

        With local noise epsilon is one by device, with central noise one for all.
        """
        self._count(record)
        s = self.settings
        if s.clip_norm is None:
            return {}
        if s.noise_multiplier == 0:
            guarantee = "none: clipping without noise"
        elif s.noise_seed is not None:
            guarantee = "none in truth: the noise comes from privacy.noise_seed, which the server knows"
        elif s.model == "central":
            guarantee = (
                "central: the models of all rounds against who sees them, one device taking part or not; not this "
                "file, which names who was drawn: who publishes it leaves epsilon_if_draw_is_known"
            )
        else:
            guarantee = "local: each device against the server, replacing all of its data"
        settings = {"clip_norm": s.clip_norm, "noise_multiplier": s.noise_multiplier, "delta": s.delta}
        return {"privacy": {**settings, "guarantee": guarantee, **self._spent()}}

    def _spent(self) -> dict[str, Any]:
        s = self.settings
        if s.model == "local":
            spent = {device: epsilon(n, s.noise_multiplier, s.delta) for device, n in sorted(self._asked.items())}
            return {"epsilon": {device: _finite(value) for device, value in spent.items()}}
        secret = central_epsilon(self._rounds, s.noise_multiplier, self.sampling_rate, s.delta)
        known = central_epsilon(max(self._asked.values(), default=0), s.noise_multiplier, 1.0, s.delta)
        spent = {"epsilon": secret, "epsilon_if_draw_is_known": known}
        return {"model": "central", "sampling_rate": self.sampling_rate} | {k: _finite(v) for k, v in spent.items()}

    def _count(self, record: Mapping[str, Any]) -> None:
        self._rounds += 1
        self._asked.update(device["id"] for device in record["devices"] if device["downlink_bytes"])


def _finite(value: float) -> float | None:
    return value if value != float("inf") else None
