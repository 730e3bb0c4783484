r"""Aggregation of products B A rather than of factors: for methods that change the base or decompose the mean product.

Whole factors of every device are needed at once, so memory grows with the number of devices, r (m + n) numbers each.
Sums run over the devices in ascending order whatever order they answered in: equal answers give equal bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from adapter import AdapterMask, AdapterSpec, AdapterState
from adapter.base_update import Update
from adapter.state import FloatArray

Real = npt.NDArray[np.float64]
Pair = tuple[Real, Real]  # B (m, r_k), A (r_k, n)


@dataclass(frozen=True)
class Answer:
    """One device's whole factors after training (what it dropped is unchanged) and its number of examples."""

    state: AdapterState
    weight: float


class Answers:
    """Collects the answers of a round.

    Parameters
    ----------
    spec : AdapterSpec
        Layout at full rank.
    """

    def __init__(self, spec: AdapterSpec) -> None:
        self.spec = spec
        self._by_device: dict[int, Answer] = {}

    def add(self, device: int, received: AdapterState, changes: AdapterState, mask: AdapterMask, weight: float) -> None:
        """Add a device's changes to what it was sent.

        Parameters
        ----------
        device : int
            Index, fixes the order of the sums.
        received : AdapterState
            Whole factors (r', n), (m, r') and head as the device saw them, at the rank of the changes.
        changes : AdapterState
            Changes of the survivors.
        mask : AdapterMask
            The survivors.
        weight : float
            n_k.
        """
        state = received.copy()
        for module, kept in zip(self.spec.modules, mask.modules, strict=True):
            state.lora_A[module.name][:, kept.columns] += changes.lora_A[module.name]
            state.lora_B[module.name][kept.rows] += changes.lora_B[module.name]
        for name, value in changes.head.items():
            state.head[name] = state.head[name] + value
        self._by_device[device] = Answer(state, weight)

    def __iter__(self) -> Iterator[Answer]:
        """Answers, ascending by device."""
        return (self._by_device[device] for device in sorted(self._by_device))

    def shares(self) -> Real:
        """p_k = n_k / sum n over the answers."""
        weights = np.array([answer.weight for answer in self])
        return weights / weights.sum()

    def pairs(self, name: str) -> list[Pair]:
        """Factors (B, A) of one module, device by device, float64."""
        return [
            (answer.state.lora_B[name].astype(np.float64), answer.state.lora_A[name].astype(np.float64))
            for answer in self
        ]

    def mean_head(self) -> dict[str, FloatArray]:
        """Weighted mean of the heads, float32."""
        shares, answers = self.shares(), list(self)
        return {
            name: np.sum(
                [p * answer.state.head[name] for p, answer in zip(shares, answers, strict=True)], axis=0
            ).astype("f4")
            for name, _ in self.spec.head
        }


def mean_factors(pairs: Sequence[Pair], shares: Real) -> Pair:
    """Return (sum p_k B_k, sum p_k A_k) for equal ranks."""
    mean_B = np.einsum("k,kmr->mr", shares, np.stack([B for B, _ in pairs]))
    return mean_B, np.einsum("k,krn->rn", shares, np.stack([A for _, A in pairs]))


def residual(pairs: Sequence[Pair], shares: Real, mean_B: Real, scaling: float) -> Pair:
    r"""Return factors of :math:`s(\sum_k p_k B_k A_k - \bar B\bar A)`, of rank (K-1) r.

    The difference equals :math:`\sum_k p_k (B_k-\bar B)(A_k-\bar A)`; as the :math:`p_k(B_k-\bar B)` sum to zero, any
    matrix may be taken from every :math:`A_k`, and the last device's own makes its term vanish.

    Parameters
    ----------
    pairs : sequence
        (B_k (m, r), A_k (r, n)) of the K devices.
    shares : ndarray
        (K,), p_k, summing to 1.
    mean_B : ndarray
        (m, r), the mean.
    scaling : float
        s.

    Returns
    -------
    tuple of ndarray
        Left (m, (K-1) r) and right ((K-1) r, n).
    """
    last = pairs[-1][1]
    left = [scaling * p * (B - mean_B) for p, (B, _) in zip(shares[:-1], pairs[:-1], strict=True)]
    return np.hstack(left), np.vstack([A - last for _, A in pairs[:-1]])


def stack(pairs: Sequence[Pair], shares: Real, scalings: Sequence[float]) -> Pair:
    r"""Return factors of :math:`\sum_k p_k s_k B_k A_k`: [B_1 .. B_K] and [p_1 s_1 A_1; ..]; ranks may differ.

    The share stands on one factor only: on both, every product would be weighted by its square.
    """
    scaled = [p * s * A for p, s, (_, A) in zip(shares, scalings, pairs, strict=True)]
    return np.hstack([B for B, _ in pairs]), np.vstack(scaled)


def truncated(left: Real, right: Real, rank: int) -> tuple[Real, Real, Real]:
    r"""Return the best approximation of a given rank to ``left @ right`` as (U, S, Vt), without forming the product.

    With :math:`L = Q_1R_1` and :math:`R^T = Q_2R_2` the product is :math:`Q_1(R_1R_2^T)Q_2^T`, and only the small
    matrix in the middle is decomposed. Signs are fixed: the largest entry of every column of U is positive.

    Parameters
    ----------
    left, right : ndarray
        (m, R) and (R, n).
    rank : int
        Components to keep; fewer there are, the rest is zero.
    """
    q_left, r_left = np.linalg.qr(left)
    q_right, r_right = np.linalg.qr(right.T)
    u, s, vt = np.linalg.svd(r_left @ r_right.T)
    count = min(rank, s.size)
    U, S, Vt = np.zeros((left.shape[0], rank)), np.zeros(rank), np.zeros((rank, right.shape[1]))
    U[:, :count], S[:count], Vt[:count] = q_left @ u[:, :count], s[:count], vt[:count] @ q_right.T
    sign = np.where(U[np.abs(U).argmax(axis=0), np.arange(rank)] < 0, -1.0, 1.0)
    return U * sign, S, Vt * sign[:, None]


def as_update(factors: dict[str, Pair]) -> Update | None:
    """Return an update of the base in float32, None when it has no rank (one device answered)."""
    if not all(left.shape[1] for left, _ in factors.values()):
        return None
    return {name: (left.astype(np.float32), right.astype(np.float32)) for name, (left, right) in factors.items()}
