r"""Averages that a few bad answers cannot carry away: norms held to the median, and trimmed or median votes per entry.

**Norms.** An answer whose changes have norm :math:`\nu_k > c\,\tilde\nu` is scaled by :math:`c\,\tilde\nu/\nu_k`, where
:math:`\tilde\nu` is the lower median of the round's own norms. It is known when the last answer is in; until then the
answers wait in an unnamed temporary file. One or two answers have no majority: there the median of the last round of
three or more that trained the same factors holds, if there was one.

**Votes.** For every row of lora_B and column of lora_A, over the devices that kept it: the coordinate-wise median, or
the mean without the b smallest and the b largest values [Yin2018]. b is the number of hostile devices that the round is
to stand; an entry with fewer than 2b + 1 votes does not move, for there b votes could decide. Weights are not used: a
device names them itself.

References
----------
[Yin2018] Yin et al., Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates, ICML 2018.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from adapter import AdapterMask, AdapterSpec, AdapterState, ModuleMask
from adapter.privacy import change_norm
from strategy.averages.average import Answer, Averaged

ROBUST = ("mean", "trimmed_mean", "median")
_MAJORITY = 3  # answers of which the median cannot be one hostile device's

_Real = npt.NDArray[np.float64]
_Given = tuple[Any, AdapterState, AdapterMask]  # what an answer is known by, its changes, what its device kept


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
        with tempfile.TemporaryFile() as file:
            for item, changes, mask in answers:
                waiting.append((item, change_norm(changes)))
                _write(file, changes, mask)
                del changes
            threshold = self.factor * self._median([norm for _, norm in waiting], factors)
            file.seek(0)
            for item, norm in waiting:
                changes, mask = _read(file)
                if norm > threshold > 0:
                    self.clipped.append((item, norm, threshold))
                    for _, _, value in changes.items():
                        value *= np.float32(threshold / norm)
                yield item, changes, mask
                del changes

    def _median(self, norms: list[float], factors: str) -> float:
        own = lower_median(norms) if norms else 0.0
        if len(norms) < _MAJORITY:
            return self.medians.get(factors, own)
        if own:  # a round of zeros says nothing about what is usual
            self.medians[factors] = own
        return own


def _write(file: IO[bytes], changes: AdapterState, mask: AdapterMask) -> None:
    """Append an answer to a file: names, types and shapes in a line of JSON, then the plain numbers."""
    tensors = changes.to_tensors()
    arrays = [*tensors.values(), *(index for kept in mask.modules for index in (kept.columns, kept.rows))]
    header = {"names": list(tensors), "arrays": [(array.dtype.str, array.shape) for array in arrays]}
    file.write(json.dumps(header).encode() + b"\n")
    for array in arrays:
        file.write(np.ascontiguousarray(array).data)


def _read(file: IO[bytes]) -> tuple[AdapterState, AdapterMask]:
    """Take the next answer out of a file."""
    header = json.loads(file.readline())
    arrays = [np.empty(shape, kind) for kind, shape in header["arrays"]]
    for array in arrays:
        file.readinto(array.data)  # type: ignore[attr-defined]
    changes = AdapterState.from_tensors(dict(zip(header["names"], arrays, strict=False)))
    indices = arrays[len(header["names"]) :]
    return changes, AdapterMask(tuple(ModuleMask(*pair) for pair in zip(indices[::2], indices[1::2], strict=True)))


class RobustAverage:
    """Coordinate-wise median or trimmed mean (``kind``); the answers are held until the end.

    It stands b = ``stands`` hostile devices among those asked: as many values are cut off at each end, and an entry
    needs 2b + 1 votes. With ``aggregation="kept"`` devices that dropped an entry have no vote on it; otherwise they
    vote for no change.
    """

    def __init__(self, spec: AdapterSpec, kind: str, stands: int = 0, aggregation: str = "kept") -> None:
        if kind not in ROBUST[1:] or stands < 0:
            raise ValueError(
                f"expected trimmed_mean or median and at least 0 hostile devices, found {kind!r} and {stands!r}"
            )
        self.spec, self.kind, self.stands = spec, kind, stands
        self._absent = np.nan if aggregation == "kept" else 0.0
        self._entries = self._unmoved = 0  # entries of the adapter, and those that had too few votes to move
        self._answers: list[tuple[AdapterState, dict[tuple[str, str], Any]]] = []  # changes, survivors by part and name

    def add(self, answer: Answer) -> None:
        """Hold one device's changes; its weight is not used."""
        survivors = {(part, name): kept for part, name, kept in answer.mask.survivors(self.spec)}
        self._answers.append((answer.changes, survivors))

    def finish(self, state: AdapterState) -> Averaged:
        """Return ``state`` moved by the votes, and the share of the entries that had too few of them to move."""
        new = state.copy()
        for part, name, old in state.items():
            votes = []
            for changes, survivors in self._answers:
                if name in changes.parts()[part]:
                    votes.append(np.full(old.shape, self._absent))
                    votes[-1][survivors.get((part, name), ...)] = changes.parts()[part][name]
            if votes:
                new.parts()[part][name] = (old + self._summed_up(np.array(votes))).astype(np.float32)
        unmoved = self._unmoved / max(self._entries, 1)
        return Averaged(new, account={"kind": self.kind, "stands": self.stands, "unmoved": unmoved})

    def _summed_up(self, votes: _Real) -> _Real:
        """Median or trimmed mean along the first axis over what is not NaN; 0 where too few are."""
        ordered = np.sort(votes, axis=0)  # NaN last
        count = np.count_nonzero(~np.isnan(votes), axis=0)  # (*shape,)
        enough = count > 2 * self.stands
        self._entries, self._unmoved = self._entries + count.size, self._unmoved + int(np.count_nonzero(~enough))
        cut = (count - 1) // 2 if self.kind == "median" else np.full_like(count, self.stands)
        rank = np.arange(votes.shape[0]).reshape(-1, *(1,) * count.ndim)
        used = enough & (rank >= cut) & (rank < count - cut)
        total = np.where(used, ordered, 0.0).sum(axis=0)
        return np.asarray(total / np.maximum(used.sum(axis=0), 1), dtype=np.float64)


def hostile_devices(trim: float, asked: int) -> int:
    """Return b, the hostile devices that a round of ``asked`` devices is to stand, from their share."""
    return int(trim * asked + 1e-9)  # 0.29 * 100 is 28.999999999999996
