r"""Averaging of sub-adapters whose survivors differ, as a running sum: memory does not grow with the number of devices.

A device k answers with changes :math:`\delta_k` of the entries it kept, weighted by its number of examples :math:`n_k`.
For a row or column c with keepers K(c):

- ``kept``      :math:`x_c + \sum_{k\in K(c)} n_k\delta_{k,c} / \sum_{k\in K(c)} n_k`: the mean over the devices that
  kept it;
- ``previous``  :math:`x_c + \sum_{k\in K(c)} n_k\delta_{k,c} / \sum_k n_k`: who dropped it votes for the old value.

An entry that nobody kept stays what it was in both forms.

Replies arrive in any order and are added as they come, yet equal replies must give equal models to the last bit.
Floating-point sums depend on the order; sums of integers do not. So every :math:`n_k\delta_{k,c}` is rounded once, to a
multiple of a fixed quantum, and the multiples are added as 64-bit integers (the idea of reproducible summation by
pre-rounding [Demmel2013]).

References
----------
[Demmel2013] Demmel and Nguyen, Fast Reproducible Floating-Point Summation, ARITH 2013.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from adapter import AdapterMask, AdapterSpec, AdapterState

AGGREGATIONS = ("kept", "previous")

MAX_CHANGE = (
    1024.0  # a larger change of one weight in one round is refused: it cannot be meant, and it would not fit the sum
)
DEFAULT_MAX_TOTAL_WEIGHT = 2.0**24

_WEIGHT_QUANTUM = 2.0**-20  # whole numbers of examples are exact; other weights are rounded to a millionth
_Sum = npt.NDArray[np.int64]
_Real = npt.NDArray[np.float64]


class AdapterAverage:
    r"""Running weighted sum of changes, and the weight that stands behind every row and column; independent of the order.

    Sums are kept in multiples of :math:`q = 2^{\lceil\log_2 W\rceil + 10 - 62}`, so that W times the largest change
    fits into 62 bits. For W = 1600 examples a mean is exact to 1e-12 per device, a thousandth of what float32 resolves.

    Parameters
    ----------
    spec : AdapterSpec
        Layout of the adapter.
    max_total_weight : float
        W, a bound of the sum of all weights that will be added; the smaller, the finer the sum.
    """

    def __init__(self, spec: AdapterSpec, max_total_weight: float = DEFAULT_MAX_TOTAL_WEIGHT) -> None:
        self.spec = spec
        self._max_weight = max_total_weight
        self._scale = 2.0 ** (62 - math.ceil(math.log2(MAX_CHANGE)) - max(0, math.ceil(math.log2(max_total_weight))))
        self._total = 0  # multiples of the weight's quantum
        # One block for all sums: many small ones would leave gaps in the server's memory.
        cut = _cuts(np.zeros(spec.droppable_parameters + spec.head_parameters, dtype=np.int64))
        self._sum_A: dict[str, _Sum] = {m.name: cut(m.r, m.in_features) for m in spec.modules}
        self._sum_B: dict[str, _Sum] = {m.name: cut(m.out_features, m.r) for m in spec.modules}
        self._sum_head: dict[str, _Sum] = {name: cut(*shape) for name, shape in spec.head}
        self._weight_A: dict[str, _Sum] = {m.name: np.zeros(m.in_features, dtype=np.int64) for m in spec.modules}
        self._weight_B: dict[str, _Sum] = {m.name: np.zeros(m.out_features, dtype=np.int64) for m in spec.modules}

    @property
    def total_weight(self) -> float:
        """Sum of all weights so far."""
        return self._total * _WEIGHT_QUANTUM

    def add(self, changes: AdapterState, mask: AdapterMask, weight: float) -> None:
        """Add one device's changes; nothing is added when it raises.

        Parameters
        ----------
        changes : AdapterState
            Changes of shape (r, n') and (m', r); a factor that did not travel is absent.
        mask : AdapterMask
            The device's survivors.
        weight : float
            n_k, its number of training examples.

        Raises
        ------
        ValueError
            If ``weight`` is not positive or exceeds the bound in sum, or a change is larger than `MAX_CHANGE`.
        """
        if not weight > 0:
            raise ValueError(f"weight must be positive, found {weight!r}")
        if self.total_weight + weight > self._max_weight:
            raise ValueError(f"weights must sum to at most {self._max_weight:g}, found {self.total_weight + weight:g}")
        _require_bounded(changes)
        counted = max(1, round(weight / _WEIGHT_QUANTUM))
        for module, kept in zip(self.spec.modules, mask.modules, strict=True):
            name = module.name
            if name in changes.lora_A:
                self._sum_A[name][:, kept.columns] += self._multiples(changes.lora_A[name], weight)
                self._weight_A[name][kept.columns] += counted
            if name in changes.lora_B:
                self._sum_B[name][kept.rows] += self._multiples(changes.lora_B[name], weight)
                self._weight_B[name][kept.rows] += counted
        for name, value in changes.head.items():
            self._sum_head[name] += self._multiples(value, weight)
        self._total += counted

    def _multiples(self, change: npt.NDArray[np.floating], weight: float) -> _Sum:
        """Round ``weight * change`` to whole multiples of the quantum."""
        scaled = change.astype(np.float64)
        scaled *= weight * self._scale
        return np.rint(scaled, out=scaled).astype(np.int64)

    def apply(self, state: AdapterState, aggregation: str) -> AdapterState:
        """Return the new global adapter in float32; ``state`` itself is not changed.

        Parameters
        ----------
        state : AdapterState
            The global adapter of which the devices received cuts.
        aggregation : {"kept", "previous"}
            Who votes on a row that some devices dropped.

        Returns
        -------
        AdapterState
            ``state`` again where no device kept an entry, or when nobody answered.

        Raises
        ------
        ValueError
            If ``aggregation`` is unknown.
        """
        if aggregation not in AGGREGATIONS:
            raise ValueError(f"aggregation must be one of {', '.join(AGGREGATIONS)}, found {aggregation!r}")
        if self._total == 0:
            return state.copy()
        new = AdapterState({}, {}, {})
        for module in self.spec.modules:
            name = module.name
            step_A = self._sum_A[name] / self._divisor(self._weight_A[name], aggregation)  # (r, n) / (n,)
            step_B = self._sum_B[name] / self._divisor(self._weight_B[name], aggregation)[:, None]  # (m, r) / (m, 1)
            new.lora_A[name] = (state.lora_A[name] + step_A).astype(np.float32)
            new.lora_B[name] = (state.lora_B[name] + step_B).astype(np.float32)
        for name, total in self._sum_head.items():
            new.head[name] = (state.head[name] + total / (self.total_weight * self._scale)).astype(np.float32)
        return new

    def _divisor(self, weight: _Sum, aggregation: str) -> _Real:
        """Weight behind every row or column, in the unit of the sums."""
        if aggregation == "previous":
            return np.full(weight.shape, self.total_weight * self._scale)
        voted = np.where(weight > 0, weight * _WEIGHT_QUANTUM, 1.0)  # the sum over no device is zero: nothing moves
        return voted * self._scale


def _cuts(block: _Sum) -> Callable[..., _Sum]:
    """Return a function that cuts arrays of given shapes off a block, one after the other, without copying."""
    position = 0

    def cut(*shape: int) -> _Sum:
        nonlocal position
        start, position = position, position + math.prod(shape)
        return block[start:position].reshape(shape)

    return cut


def _require_bounded(changes: AdapterState) -> None:
    for part in (changes.lora_A, changes.lora_B, changes.head):
        for name, value in part.items():
            if value.size and not max(value.max(), -value.min()) <= MAX_CHANGE:
                raise ValueError(f"{name}: expected changes of at most {MAX_CHANGE:g}, found {np.abs(value).max():g}")
