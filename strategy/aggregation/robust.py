r"""Averages that a few bad answers cannot carry away: norms held to the median, and trimmed or median votes per entry.

**Norms.** An answer whose changes have norm :math:`\nu_k > c\,\tilde\nu` is scaled by :math:`c\,\tilde\nu/\nu_k`, where
:math:`\tilde\nu` is the lower median of the round's own norms. It is known when the last answer is in; until then the
answers wait in an unnamed temporary file. One or two answers have no majority: there the median of the last round of
three or more that trained the same factors holds, if there was one.

**Votes.** Over the devices that kept an entry, one vote each (weights are not used: a device names them itself). b is
the number of hostile devices that the round is to stand.

- ``median``, ``trimmed_mean``: per entry the median, or the mean without the b smallest and the b largest [Yin2018].
- ``geometric_median``: the point z of least :math:`\sum_k\|x_k-z\|` [Pillutla2022], each norm over what device k kept,
  by Weiszfeld's iteration. Bounded: let z go to infinity along a unit vector u. An honest device pulls back with
  :math:`\|u_k\|\ge\|u_k\|^2` (u on what it kept), all of them together with :math:`\sum_c u_c^2h_c\ge b+1`, as every
  entry has :math:`h_c\ge b+1` honest votes; b hostile ones pull with b at most.
- ``multi_krum``: the mean over the n - b devices of the least score, the sum of a device's n - b - 2 smallest distances
  to others [Blanchard2017], a distance being the mean square over what both kept. Bounded: honest scores hold n - b - 2
  honest distances at most, so whoever is chosen scores no more. The b + 1 distances left out of a score cannot hide
  an entry that at least b + 2 honest devices kept: one of them is counted, and holds the chosen value close to its own.

An entry that fewer than 2b + 1 devices kept (2b + 3 for ``multi_krum``, to leave b + 2 honest ones beside b hostile)
does not move: there b votes could decide.

References
----------
[Blanchard2017] Blanchard et al., Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent, NeurIPS 2017.
[Pillutla2022] Pillutla, Kakade and Harchaoui, Robust Aggregation for Federated Learning, IEEE TSP 2022.
[Yin2018] Yin et al., Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates, ICML 2018.
"""

import functools
import json
import math
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from adapter import AdapterSpec, AdapterState
from adapter.privacy import change_norm
from strategy.aggregation import Answer, Averaged

_STEPS, _CLOSE, _NEAR = 200, 1e-10, 1e-9  # of Weiszfeld's iteration: most steps, relative end, least distance
ROBUST = ("trimmed_mean", "median", "multi_krum", "geometric_median")
_MAJORITY = 3  # answers of which the median cannot be one hostile device's

_Real = npt.NDArray[np.float64]
_Given = tuple[Any, AdapterState]  # what an answer is known by, and its changes


def lower_median(values: Iterable[float]) -> float:
    """Return the middle value, the smaller of the two for an even count: half of the answers cannot raise it."""
    ordered = sorted(values)
    return ordered[(len(ordered) - 1) // 2]


@dataclass
class NormGuard:
    """Scales down answers that are far longer than usual."""

    factor: float | None  # c, None: every norm is admitted
    medians: dict[str, float] = field(default_factory=dict)  # of the last round of three answers, by its factors
    clipped: list[tuple[Any, float, float]] = field(default_factory=list)

    def pass_on(self, answers: Iterable[_Given], factors: str = "AB") -> Iterator[_Given]:
        """Take all answers, then yield each, too long ones scaled; ``clipped`` lists (item, norm, threshold)."""
        self.clipped = []
        if self.factor is None:
            yield from answers
            return
        waiting: list[tuple[Any, float]] = []
        with tempfile.TemporaryFile() as file:  # shapes in a line of JSON, then plain numbers: nothing is copied whole
            for item, changes in answers:
                waiting.append((item, change_norm(changes)))
                tensors = changes.to_tensors()
                file.write(json.dumps({name: value.shape for name, value in tensors.items()}).encode() + b"\n")
                file.writelines(value.data for value in tensors.values())
                del changes, tensors
            usual = lower_median(norm for _, norm in waiting) if waiting else 0.0
            if len(waiting) < _MAJORITY:
                usual = self.medians.get(factors, usual)
            elif usual:  # a round of zeros says nothing about what is usual
                self.medians[factors] = usual
            threshold = self.factor * usual
            file.seek(0)
            for item, norm in waiting:
                shapes = json.loads(file.readline())
                read = (
                    (k, np.frombuffer(file.read(4 * math.prod(v)), np.float32).reshape(v)) for k, v in shapes.items()
                )
                changes = AdapterState.from_tensors(dict(read))
                if norm > threshold > 0:
                    self.clipped.append((item, norm, threshold))
                    changes = changes.map(functools.partial(np.multiply, np.float32(threshold / norm)))
                yield item, changes
                del changes


class RobustAverage:
    """Votes of one ``kind``, held until the end; it stands b = ``stands`` hostile devices among those asked.

    With ``aggregation="kept"`` who dropped an entry has no vote on it; otherwise it votes for no change.
    """

    def __init__(self, spec: AdapterSpec, kind: str, stands: int = 0, aggregation: str = "kept") -> None:
        if kind not in ROBUST or stands < 0:
            raise ValueError(
                f"expected {' or '.join(ROBUST)} and at least 0 hostile devices, found {kind!r} and {stands!r}"
            )
        self.spec, self.kind, self.stands = spec, kind, stands
        self.needs = 2 * stands + (3 if kind == "multi_krum" else 1)  # votes without which an entry does not move
        self._absent = np.nan if aggregation == "kept" else 0.0
        self._answers: list[tuple[int, AdapterState, dict[tuple[str, str], Any]]] = []  # device, changes, survivors

    def add(self, answer: Answer) -> None:
        """Hold one device's changes; its weight is not used."""
        survivors = {(part, name): kept for part, name, kept in answer.mask.survivors(self.spec)}
        self._answers.append((answer.device, answer.changes, survivors))
        self._answers.sort(key=lambda held: held[0])  # sums do not depend on who answered first

    def finish(self, state: AdapterState) -> Averaged:
        """Return ``state`` moved by the votes, and the share of the entries that had too few of them to move."""
        new, weights, entries, moved = state.copy(), self._weights(state), 0, 0
        for part, name, old in state.items():
            votes = self._votes(part, name, old.shape)
            if len(votes):
                enough = self._enough(votes)
                step = np.where(enough, self._ordered(votes) if weights is None else _mean(votes, weights), 0.0)
                new.parts()[part][name] = (old + step).astype(np.float32)
                entries, moved = entries + enough.size, moved + int(np.count_nonzero(enough))
        unmoved = 1 - moved / entries if entries else 0.0
        account = {"kind": self.kind, "stands": self.stands, "needs": self.needs, "unmoved": unmoved}
        return Averaged(new, account=account)

    def _votes(self, part: str, name: str, shape: tuple[int, ...]) -> _Real:
        """One row per device (devices, *shape), empty where nobody trained the tensor."""
        given = [held for held in self._answers if name in held[1].parts()[part]]
        votes = np.full((len(given), *shape), self._absent)
        for row, (_, changes, survivors) in zip(votes, given, strict=True):
            row[survivors.get((part, name), ...)] = changes.parts()[part][name]
        return votes

    def _enough(self, votes: _Real) -> npt.NDArray[np.bool_]:
        return np.asarray(np.count_nonzero(~np.isnan(votes), axis=0) >= self.needs)

    def _ordered(self, votes: _Real) -> _Real:
        """Median or trimmed mean along the first axis over what is not NaN."""
        ordered = np.sort(votes, axis=0)  # NaN last
        count = np.count_nonzero(~np.isnan(votes), axis=0)  # (*shape,)
        cut = (count - 1) // 2 if self.kind == "median" else self.stands
        rank = np.arange(votes.shape[0]).reshape(-1, *(1,) * count.ndim)
        used = (rank >= cut) & (rank < count - cut)
        return np.asarray(np.where(used, ordered, 0.0).sum(axis=0) / np.maximum(used.sum(axis=0), 1))

    def _weights(self, state: AdapterState) -> _Real | None:
        """Weight of every device, from all entries with enough votes; None for votes entry by entry."""
        if self.kind in ("median", "trimmed_mean") or not self._answers:
            return None
        votes = (self._votes(part, name, old.shape) for part, name, old in state.items())
        table = np.concatenate([rows.reshape(len(rows), -1) for rows in votes if len(rows)], axis=1)
        table = table[:, self._enough(table)]  # (devices, entries)
        return krum_weights(table, self.stands) if self.kind == "multi_krum" else weiszfeld_weights(table)


def krum_weights(votes: _Real, stands: int) -> _Real:
    """Return 1 for the n - b devices of the least score and 0 for the others; votes (n, entries), NaN where dropped."""
    present, values = (~np.isnan(votes)).astype(np.float64), np.nan_to_num(votes)
    squares, shared = np.square(values) @ present.T, present @ present.T
    distances = np.maximum(squares + squares.T - 2 * values @ values.T, 0.0) / np.maximum(shared, 1.0)
    distances[(shared == 0) | np.eye(len(votes), dtype=bool)] = np.inf  # nobody vouches for himself
    scores = np.sort(distances, axis=1)[:, : max(len(votes) - stands - 2, 1)].sum(axis=1)
    weights = np.zeros(len(votes))
    weights[np.argsort(scores, kind="stable")[: len(votes) - stands]] = 1.0
    return weights


def weiszfeld_weights(votes: _Real) -> _Real:
    """Return 1/||x_k - z|| at the geometric median z; votes (n, entries), NaN where dropped."""
    weights, point = np.ones(len(votes)), np.zeros(votes.shape[1])
    if votes.size:
        point = np.nanmedian(votes, axis=0)
    for _ in range(_STEPS):
        weights = 1 / np.maximum(np.sqrt(np.nansum(np.square(votes - point), axis=1)), _NEAR)
        before, point = point, _mean(votes, weights)
        if np.linalg.norm(point - before) <= _CLOSE * (1 + np.linalg.norm(point)):
            break
    return weights


def _mean(votes: _Real, weights: _Real) -> _Real:
    """Weighted mean along the first axis over what is not NaN, 0 where all who voted have weight 0."""
    weight = np.where(np.isnan(votes), 0.0, weights.reshape(-1, *(1,) * (votes.ndim - 1)))
    total = weight.sum(axis=0)
    return np.asarray((weight * np.nan_to_num(votes)).sum(axis=0) / np.where(total > 0, total, 1.0))


def hostile_devices(trim: float, asked: int) -> int:
    """Return b, the hostile devices that a round of ``asked`` devices is to stand, from their share."""
    return int(trim * asked + 1e-9)  # 0.29 * 100 is 28.999999999999996
