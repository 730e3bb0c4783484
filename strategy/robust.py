r"""Averages that a few bad answers cannot carry away: norms held to the median, and trimmed or median votes per entry.

**Norms.** An answer whose changes have norm :math:`\nu_k > c\,\tilde\nu` is scaled by :math:`c\,\tilde\nu/\nu_k`, where
:math:`\tilde\nu` is the lower median of the norms of the last round that trained the same factors. The first such round holds
its answers until all are in and uses its own median; later ones need no memory.

**Votes.** For every row of lora_B and column of lora_A, over the devices that kept it: the coordinate-wise median, or the mean
without the ``trim`` share of smallest and of largest values [Yin2018]. Weights are not used: a device names them itself.

References
----------
[Yin2018] Yin et al., Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates, ICML 2018.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from adapter import AdapterMask, AdapterSpec, AdapterState
from adapter.privacy import change_norm

ROBUST = ("mean", "trimmed_mean", "median")

_Real = npt.NDArray[np.float64]
_Item = TypeVar("_Item")


def lower_median(values: Iterable[float]) -> float:
    """Return the middle value, the smaller of the two for an even count: half of the answers cannot raise it."""
    ordered = sorted(values)
    return ordered[(len(ordered) - 1) // 2]


@dataclass
class NormGuard:
    """Scales down answers that are far longer than usual.

    Parameters
    ----------
    factor : float or None
        c, None: every norm is admitted.
    medians : dict of str to float
        Lower median of the last round that had answers, by the factors that trained.
    """

    factor: float | None
    medians: dict[str, float] = field(default_factory=dict)
    clipped: list[tuple[Any, float, float]] = field(default_factory=list)
    _norms: list[float] = field(default_factory=list)

    def pass_on(
        self, answers: Iterable[tuple[_Item, AdapterState]], factors: str = "AB"
    ) -> Iterator[tuple[_Item, AdapterState]]:
        """Yield every answer, scaled where it was too long; afterwards ``clipped`` lists (item, norm, threshold).

        The median of the round replaces the old one when the last answer has been taken.
        """
        self.clipped, self._norms = [], []
        if self.factor is None:
            yield from answers
            return
        held, last = [], self.medians.get(factors)
        for item, changes in answers:
            norm = change_norm(changes)
            self._norms.append(norm)
            if last is None:
                held.append((item, changes, norm))
            else:
                yield item, self._scaled(item, changes, norm, last)
            del changes  # nothing of an answer stays while the next one is fetched
        own = lower_median(self._norms) if self._norms else 0.0
        for item, changes, norm in held:
            yield item, self._scaled(item, changes, norm, own)
        if own:  # a round of nobody or of zeros says nothing about what is usual
            self.medians[factors] = own

    def _scaled(self, item: _Item, changes: AdapterState, norm: float, median: float) -> AdapterState:
        assert self.factor is not None
        threshold = self.factor * median
        if norm <= threshold or threshold == 0:
            return changes
        self.clipped.append((item, norm, threshold))
        scale = np.float32(threshold / norm)
        parts = (changes.lora_A, changes.lora_B, changes.head)
        return AdapterState(*({name: value * scale for name, value in part.items()} for part in parts))


class RobustAverage:
    """Coordinate-wise median or trimmed mean over the devices that kept an entry; the answers are held until the end.

    Parameters
    ----------
    spec : AdapterSpec
        Layout of the adapter.
    kind : {"trimmed_mean", "median"}
        How the values of an entry are summed up.
    trim : float
        Share cut off at each end, in [0, 0.5); the number cut is rounded down.

    Raises
    ------
    ValueError
        If ``kind`` is unknown or ``trim`` is outside [0, 0.5).
    """

    def __init__(self, spec: AdapterSpec, kind: str, trim: float = 0.1) -> None:
        if kind not in ROBUST[1:] or not 0 <= trim < 0.5:
            raise ValueError(f"expected trimmed_mean or median and trim in [0, 0.5), found {kind!r} and {trim!r}")
        self.spec, self.kind, self.trim = spec, kind, trim
        self._answers: list[tuple[AdapterState, AdapterMask]] = []

    def add(self, changes: AdapterState, mask: AdapterMask, weight: float) -> None:
        """Hold one device's changes; ``weight`` is not used."""
        self._answers.append((changes, mask))

    def apply(self, state: AdapterState, aggregation: str) -> AdapterState:
        """Return the new global adapter in float32.

        Parameters
        ----------
        state : AdapterState
            The global adapter of which the devices received cuts.
        aggregation : {"kept", "previous"}
            ``kept``: devices that dropped an entry have no vote on it; ``previous``: they vote for no change.
        """
        absent = np.nan if aggregation == "kept" else 0.0
        new = state.copy()
        for index, module in enumerate(self.spec.modules):
            name = module.name
            for part, axis in (("lora_A", 1), ("lora_B", 0)):
                old = getattr(state, part)[name]
                votes = self._votes(part, name, index, axis, old.shape, absent)
                if votes.shape[0]:
                    getattr(new, part)[name] = (old + self._summed_up(votes)).astype(np.float32)
        for name, _ in self.spec.head:
            votes = np.array([changes.head[name] for changes, _ in self._answers if name in changes.head], dtype=np.float64)
            if votes.shape[0]:
                new.head[name] = (state.head[name] + self._summed_up(votes)).astype(np.float32)
        return new

    def _votes(self, part: str, name: str, index: int, axis: int, shape: tuple[int, ...], absent: float) -> _Real:
        """Changes of one factor by all devices, shape (devices, *shape), ``absent`` where a device dropped the entry."""
        present = [(getattr(changes, part)[name], mask.modules[index]) for changes, mask in self._answers
                   if name in getattr(changes, part)]  # fmt: skip
        votes = np.full((len(present), *shape), absent)
        for vote, (value, kept) in zip(votes, present, strict=True):
            np.moveaxis(vote, axis, 0)[kept.columns if axis else kept.rows] = np.moveaxis(value, axis, 0)
        return votes

    def _summed_up(self, votes: _Real) -> _Real:
        """Median or trimmed mean along the first axis over what is not NaN; 0 where nothing is."""
        ordered = np.sort(votes, axis=0)  # NaN last
        count = np.count_nonzero(~np.isnan(votes), axis=0)  # (*shape,)
        cut = (count - 1) // 2 if self.kind == "median" else (self.trim * count).astype(np.int64)
        rank = np.arange(votes.shape[0]).reshape(-1, *(1,) * count.ndim)
        used = (rank >= cut) & (rank < count - cut)
        total = np.where(used, ordered, 0.0).sum(axis=0)
        return np.asarray(total / np.maximum(used.sum(axis=0), 1), dtype=np.float64)
