r"""Averaging of sub-adapters whose survivors differ, as a running sum: memory does not grow with the devices.

A device k answers with changes :math:`\delta_k` of the entries it kept, weighted by its number of examples :math:`n_k`.
For a row or column c with keepers K(c):

- ``kept``      :math:`x_c + \sum_{k\in K(c)} n_k\delta_{k,c} / \sum_{k\in K(c)} n_k`: the mean over its keepers;
- ``previous``  :math:`x_c + \sum_{k\in K(c)} n_k\delta_{k,c} / \sum_k n_k`: who dropped it votes for the old value.

An entry that nobody kept stays what it was in both forms.

Replies arrive in any order and are added as they come, yet equal replies must give equal models to the last bit.
Floating-point sums depend on the order; sums of integers do not. So every :math:`n_k\delta_{k,c}` is rounded once, to a
multiple of a fixed quantum, and the multiples are added as 64-bit integers (pre-rounding [Demmel2013]).

References
----------
[Demmel2013] Demmel and Nguyen, Fast Reproducible Floating-Point Summation, ARITH 2013.
"""

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from adapter import AdapterSpec, AdapterState
from strategy.aggregation import Answer, Averaged

MAX_CHANGE = 1024.0  # a larger change of one weight in one round cannot be meant, and it would not fit the sum
_WEIGHT_QUANTUM = 2.0**-20  # whole numbers of examples are exact; other weights are rounded to a millionth


class KeptAverage:
    r"""Running weighted sum of changes, and the weight behind every row and column; independent of the order.

    Sums are kept in multiples of :math:`q = 2^{\lceil\log_2 W\rceil + 10 - 62}`, so that W times the largest change
    fits into 62 bits; W, ``max_total_weight``, bounds the sum of all weights that will be added. For W = 1600 examples
    a mean is exact to 1e-12 per device, a thousandth of what float32 resolves.
    """

    def __init__(self, spec: AdapterSpec, aggregation: str = "kept", max_total_weight: float = 2.0**24) -> None:
        if aggregation not in ("kept", "previous"):
            raise ValueError(f"aggregation must be one of kept, previous, found {aggregation!r}")
        self.spec, self.aggregation, self._max_weight = spec, aggregation, max_total_weight
        self._scale = 2.0 ** (62 - math.ceil(math.log2(MAX_CHANGE)) - max(0, math.ceil(math.log2(max_total_weight))))
        self._total = 0  # multiples of the weight's quantum
        self._sums = AdapterState.zeros(spec, np.int64)
        one = AdapterSpec(tuple(replace(module, r=1) for module in spec.modules))
        self._votes = AdapterState.zeros(one, np.int64)  # weight behind every column of lora_A and row of lora_B

    def add(self, answer: Answer) -> None:
        """Add one device's changes; ValueError if its weight or a change is out of bounds."""
        weight, changes = answer.weight, answer.changes.parts()
        if not weight > 0:
            raise ValueError(f"weight must be positive, found {weight!r}")
        if (sum_of := self._total * _WEIGHT_QUANTUM + weight) > self._max_weight:
            raise ValueError(f"weights must sum to at most {self._max_weight:g}, found {sum_of:g}")
        for _, name, value in answer.changes.items():
            if not (largest := np.abs(value).max(initial=0.0)) <= MAX_CHANGE:
                raise ValueError(f"{name}: expected changes of at most {MAX_CHANGE:g}, found {largest:g}")
        counted, sums = max(1, round(weight / _WEIGHT_QUANTUM)), self._sums.parts()
        for part, name, kept in answer.mask.survivors(self.spec):
            if name in changes[part]:
                axis, total = int(part == "lora_A"), sums[part][name]
                gained = np.take(total, np.asarray(kept[axis]), axis=axis)  # half the time of adding in place by index
                gained += self._multiples(changes[part][name], weight)
                total[kept] = gained
                self._votes.parts()[part][name][kept] += counted
        for name, value in changes["head"].items():
            sums["head"][name] += self._multiples(value, weight)
        self._total += counted

    def _multiples(self, change: npt.NDArray[np.floating], weight: float) -> npt.NDArray[np.int64]:
        """Round ``weight * change`` to whole multiples of the quantum."""
        scaled = change.astype(np.float64)
        scaled *= weight * self._scale
        return np.rint(scaled, out=scaled).astype(np.int64)

    def finish(self, state: AdapterState) -> Averaged:
        """Return ``state`` moved by the mean change; where no device kept an entry, or nobody answered, as it was."""
        if self._total == 0:
            return Averaged(state.copy())
        new, weight = AdapterState({}, {}), self._total * _WEIGHT_QUANTUM * self._scale  # in the unit of the sums
        for part, name, total in self._sums.items():
            behind: float | npt.NDArray[np.float64] = weight
            if part != "head" and self.aggregation == "kept":  # the weight behind every row or column
                votes = self._votes.parts()[part][name]  # the sum over no device is zero: nothing moves
                behind = np.where(votes > 0, votes * _WEIGHT_QUANTUM, 1.0) * self._scale
            new.parts()[part][name] = (state.parts()[part][name] + total / behind).astype(np.float32)
        return Averaged(new)

    def total(self, part: str, name: str) -> npt.NDArray[np.float64]:
        """Return the weighted sum of the changes of one array, 0 where nobody kept an entry."""
        return np.asarray(self._sums.parts()[part][name] / self._scale, dtype=np.float64)
