"""The devices as the server knows them: budgets, work per round and the channel of a round, as one resource problem."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from optimizer.problem import BoundConstants, ResourceProblem

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Fleet:
    """Everything of the resource problem that does not change from round to round, and the channel that does.

    Parameters
    ----------
    template : ResourceProblem
        The problem over all K devices; its channel is replaced every round.
    device_class : tuple of str
        Class of every device, for reports.
    channel : callable
        Round number to channel gains, shape (K,) under FDMA, (K, M) under OFDMA; a pure function of the round.
    """

    template: ResourceProblem
    device_class: tuple[str, ...]
    channel: Callable[[int], FloatArray]

    @property
    def bound(self) -> BoundConstants:
        """Constants of the objective."""
        return self.template.bound

    def problem(self, server_round: int, devices: IntArray, max_dropout_rate: float | None = None) -> ResourceProblem:
        """Return the resource problem of one round over some of the devices.

        Parameters
        ----------
        server_round : int
            Round, from 1.
        devices : ndarray
            (participants,) device indices.
        max_dropout_rate : float or None
            Replaces the budget's limit (0 for a method without dropout).

        Returns
        -------
        ResourceProblem
            With this round's channel.
        """
        rate = self.template.max_dropout_rate if max_dropout_rate is None else max_dropout_rate
        everyone = replace(self.template, max_dropout_rate=rate, channel_gain=self.channel(server_round))
        return everyone.subset(devices)
