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
import importlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from conf.compose import ConfigError
from conf.schema import Config

_GRID = 1e-3  # of privacy losses, coarser for little noise, whose losses are large


def _accountant(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        why = "privacy.noise_multiplier needs the package dp-accounting, found none"
        raise ConfigError(f"{why}; pip install dp-accounting, or pip install -e .[privacy]") from error


@functools.lru_cache(maxsize=4096)
def epsilon(answers: int, noise_multiplier: float, delta: float) -> float:
    """Return the smallest epsilon for which t answers of a device are (epsilon, delta)-private against the server.

    ``noise_multiplier`` is z, the noise's deviation over the clipping norm; two data sets are 2C apart, so z/2 is
    accounted. 0 without answers, infinity without noise; ConfigError without the library.
    """
    if answers == 0 or noise_multiplier == 0:
        return np.inf if answers else 0.0
    with np.errstate(divide="ignore"):  # it takes the logarithm of a delta of 0
        deviation = noise_multiplier / (2 * answers**0.5)  # of all answers together, over their sensitivity
        return float(_accountant("dp_accounting").get_epsilon_gaussian(deviation, delta))


@functools.lru_cache(maxsize=4096)
def central_epsilon(rounds: int, noise_multiplier: float, sampling_rate: float, delta: float) -> float:
    """Return an epsilon for which the models of t rounds with central noise are (epsilon, delta)-private.

    ``noise_multiplier`` is z, ``sampling_rate`` is q. 0 without rounds, infinity without noise; ConfigError without the
    library.
    """
    if sampling_rate == 1 or rounds == 0 or noise_multiplier == 0:
        return epsilon(rounds, 2 * noise_multiplier, delta)  # of sensitivity C, not 2C
    losses, grid = _accountant("dp_accounting.pld.privacy_loss_distribution"), _GRID / min(1.0, noise_multiplier) ** 2
    sampled = {"sampling_prob": sampling_rate, "value_discretization_interval": grid}
    one = losses.from_gaussian_mechanism(noise_multiplier, **sampled)
    return float(one.self_compose(rounds).get_epsilon_for_delta(delta))


def privacy_spent(config: Config, rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what rounds with clipped answers cost together.

    Epsilon, None for unbounded, is one by device with local noise, by how often each was asked, answered or not; with
    central noise it is one for all.
    """
    p, rate = config.privacy, config.strategy.fraction
    if p.noise_multiplier == 0:
        guarantee = "none: clipping without noise"
    elif p.noise_seed is not None:
        guarantee = "none in truth: the noise comes from privacy.noise_seed, which the server knows"
    elif p.model == "central":
        guarantee = (
            "central: the models of all rounds against who sees them, one device taking part or not; not this "
            "file, which names who was drawn: who publishes it leaves epsilon_if_draw_is_known"
        )
    else:
        guarantee = "local: each device against the server, replacing all of its data"
    told = {"clip_norm": p.clip_norm, "noise_multiplier": p.noise_multiplier, "delta": p.delta, "guarantee": guarantee}
    asked = Counter(device["id"] for record in rounds for device in record["devices"] if device["downlink_bytes"])
    if p.model == "local":
        each = {device: _finite(epsilon(n, p.noise_multiplier, p.delta)) for device, n in sorted(asked.items())}
        return told | {"epsilon": each}
    secret = central_epsilon(len(rounds), p.noise_multiplier, rate, p.delta)
    known = central_epsilon(max(asked.values(), default=0), p.noise_multiplier, 1.0, p.delta)
    spent = {"epsilon": _finite(secret), "epsilon_if_draw_is_known": _finite(known)}
    return told | {"model": "central", "sampling_rate": rate} | spent


def _finite(value: float) -> float | None:
    return value if value != np.inf else None
