r"""Averaging of sub-adapters whose survivors differ, as a running sum: memory does not grow with the number of devices.

A device k answers with changes :math:`\delta_k` of the entries it kept, weighted by its number of examples :math:`n_k`. For a
row or column c with keepers K(c):

- ``kept``      :math:`x_c + \sum_{k\in K(c)} n_k\delta_{k,c} / \sum_{k\in K(c)} n_k`: the mean over the devices that kept it;
- ``previous``  :math:`x_c + \sum_{k\in K(c)} n_k\delta_{k,c} / \sum_k n_k`: who dropped it votes for the old value.

An entry that nobody kept stays what it was in both forms.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from adapter import AdapterMask, AdapterSpec, AdapterState

AGGREGATIONS = ("kept", "previous")

_Sum = npt.NDArray[np.float64]


class AdapterAverage:
    """Running weighted sum of changes, and the weight that stands behind every row and column.

    Parameters
    ----------
    spec : AdapterSpec
        Layout of the adapter.
    """

    def __init__(self, spec: AdapterSpec) -> None:
        self.spec = spec
        self.total_weight = 0.0
        self._sum_A: dict[str, _Sum] = {m.name: np.zeros((m.r, m.in_features)) for m in spec.modules}
        self._sum_B: dict[str, _Sum] = {m.name: np.zeros((m.out_features, m.r)) for m in spec.modules}
        self._weight_A: dict[str, _Sum] = {m.name: np.zeros(m.in_features) for m in spec.modules}
        self._weight_B: dict[str, _Sum] = {m.name: np.zeros(m.out_features) for m in spec.modules}
        self._sum_head: dict[str, _Sum] = {name: np.zeros(shape) for name, shape in spec.head}

    def add(self, changes: AdapterState, mask: AdapterMask, weight: float) -> None:
        """Add one device's changes.

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
            If ``weight`` is not positive.
        """
        if not weight > 0:
            raise ValueError(f"weight must be positive, found {weight!r}")
        for module, kept in zip(self.spec.modules, mask.modules, strict=True):
            name = module.name
            if name in changes.lora_A:
                self._sum_A[name][:, kept.columns] += weight * changes.lora_A[name]
                self._weight_A[name][kept.columns] += weight
            if name in changes.lora_B:
                self._sum_B[name][kept.rows] += weight * changes.lora_B[name]
                self._weight_B[name][kept.rows] += weight
        for name, value in changes.head.items():
            self._sum_head[name] += weight * value
        self.total_weight += weight

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
        if self.total_weight == 0:
            return state.copy()
        new = AdapterState({}, {}, {})
        for module in self.spec.modules:
            name = module.name
            step_A = self._sum_A[name] / self._divisor(self._weight_A[name], aggregation)  # (r, n) / (n,)
            step_B = self._sum_B[name] / self._divisor(self._weight_B[name], aggregation)[:, None]  # (m, r) / (m, 1)
            new.lora_A[name] = (state.lora_A[name] + step_A).astype(np.float32)
            new.lora_B[name] = (state.lora_B[name] + step_B).astype(np.float32)
        for name, total in self._sum_head.items():
            new.head[name] = (state.head[name] + total / self.total_weight).astype(np.float32)
        return new

    def _divisor(self, weight: _Sum, aggregation: str) -> _Sum:
        if aggregation == "previous":
            return np.full_like(weight, self.total_weight)
        return np.where(weight > 0, weight, 1.0)  # the sum over no device is zero: nothing moves
