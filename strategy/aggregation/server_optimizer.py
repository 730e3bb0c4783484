r"""Server optimizers: the mean change of a round as the gradient of an optimizer with a memory [Reddi2021] [Hsu2019].

With Delta the mean change of an entry in this round, m and v its moments (0 at the start) and eta the server's rate:

    fedavgm   m <- beta_1 m + Delta                      x <- x + eta m
    fedadam   m <- beta_1 m + (1 - beta_1) Delta         x <- x + eta m / (sqrt(v) + tau)
              v <- beta_2 v + (1 - beta_2) Delta^2
    fedyogi   as fedadam, but  v <- v - (1 - beta_2) Delta^2 sign(v - Delta^2)

An entry that nobody trained this round (dropped by all devices, or in a frozen factor) has Delta = 0 to the last bit:
it stays, and its moments wait for the round in which it trains again.

Departure from [Reddi2021]: v starts at 0 and not at tau^2 or more; there is no bias correction, as there.

References
----------
[Reddi2021] Reddi et al., Adaptive Federated Optimization, ICLR 2021, arXiv 2003.00295.
[Hsu2019] Hsu, Qi and Brown, Measuring the Effects of Non-Identical Data Distribution, arXiv 1909.06335.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from adapter import AdapterState
from adapter.state import FloatArray

_PREFIX = "server/"


@dataclass(frozen=True)
class ServerSettings:
    """Kind of the server's optimizer ("none" or one of the above), rate eta, decays beta_1 and beta_2, and tau."""

    kind: str = "none"
    lr: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3


class ServerOptimizer:
    """Moves the adapter by the mean change of a round and by what it remembers of earlier ones, in float64."""

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self._moments: dict[str, FloatArray] = {}  # server/<m or v>/<part>/<name>

    def step(self, old: AdapterState, mean: AdapterState) -> AdapterState:
        """Return the adapter that follows ``old`` where plain averaging would give ``mean``."""
        if self.settings.kind == "none":
            return mean
        new = AdapterState({}, {}, {}, mean.base)
        for part, name, value in mean.items():
            if part != "base":
                change = value.astype(np.float64) - old.parts()[part][name]
                moved = old.parts()[part][name] + self._move(f"{part}/{name}", change)
                new.parts()[part][name] = moved.astype(np.float32)
        return new

    def _move(self, key: str, change: FloatArray) -> FloatArray:
        s, trained, none = self.settings, change != 0, np.zeros_like(change)
        m, v = (self._moments.get(f"{_PREFIX}{moment}/{key}", none) for moment in "mv")
        m = np.where(trained, s.beta1 * m + (1.0 if s.kind == "fedavgm" else 1 - s.beta1) * change, m)
        self._moments[f"{_PREFIX}m/{key}"] = m
        if s.kind == "fedavgm":
            return np.where(trained, s.lr * m, 0.0)
        square = np.square(change)
        second = s.beta2 * v + (1 - s.beta2) * square
        if s.kind == "fedyogi":
            second = v - (1 - s.beta2) * square * np.sign(v - square)
        self._moments[f"{_PREFIX}v/{key}"] = v = np.where(trained, second, v)
        return np.where(trained, s.lr * m / (np.sqrt(v) + s.tau), 0.0)

    def to_tensors(self) -> dict[str, FloatArray]:
        """Return the moments for a checkpoint."""
        return dict(self._moments)

    def restore(self, tensors: Mapping[str, FloatArray]) -> None:
        """Go on from `to_tensors`; other arrays are left alone."""
        self._moments = {key: np.asarray(value) for key, value in tensors.items() if key.startswith(_PREFIX)}
