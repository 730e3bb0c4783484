r"""Aggregation of products B A rather than of factors: for methods that change the base or decompose the mean product.

Whole factors of every device are needed at once, so memory grows with the number of devices, r (m + n) numbers each.
Sums run over the devices in ascending order whatever order they answered in: equal answers give equal bits.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from adapter import AdapterSpec, AdapterState
from adapter.base_update import Update
from adapter.state import FloatArray
from strategy.aggregation import Answer, Averaged

Real = npt.NDArray[np.float64]
Pair = tuple[Real, Real]  # B (m, r_k), A (r_k, n)


class WholeAnswers:
    """Whole factors of every device after training, what it dropped unchanged, for ``combine`` to make one of."""

    def __init__(self, spec: AdapterSpec, combine: "Callable[[WholeAnswers], Averaged]") -> None:
        self.spec, self._combine = spec, combine
        self._by_device: dict[int, tuple[AdapterState, float]] = {}

    def add(self, answer: Answer) -> None:
        """Add a device's changes to what it was sent, at the rank that the changes have."""
        changes = answer.changes.parts()
        state = answer.received().cut_rank(answer.changes.rank).map(lambda value: value.copy())
        for part, name, kept in answer.mask.survivors(self.spec):
            state.parts()[part][name][kept] += changes[part][name]
        for name, value in answer.changes.head.items():
            state.head[name] += value
        self._by_device[answer.device] = state, answer.weight

    def finish(self, state: AdapterState) -> Averaged:
        """Return what ``combine`` makes of the answers."""
        return self._combine(self)

    @property
    def states(self) -> list[AdapterState]:
        """Whole factors and head of every answer, ascending by device."""
        return [state for _, (state, _) in sorted(self._by_device.items())]

    def shares(self) -> Real:
        """p_k = n_k / sum n over the answers."""
        weights = np.array([weight for _, (_, weight) in sorted(self._by_device.items())])
        return weights / weights.sum()

    def pairs(self, name: str) -> list[Pair]:
        """Factors (B, A) of one module, device by device, float64."""
        return [(s.lora_B[name].astype(np.float64), s.lora_A[name].astype(np.float64)) for s in self.states]

    def mean_head(self) -> dict[str, FloatArray]:
        """Weighted mean of the heads, float32."""
        return weighted_sum(self.states, self.shares(), "head")


def weighted_sum(states: Sequence[AdapterState], weights: Real, part: str) -> dict[str, FloatArray]:
    """Return sum w_k x_k of every array of a part, float32."""
    return {
        name: np.sum([w * s.parts()[part][name] for w, s in zip(weights, states, strict=True)], axis=0).astype("f4")
        for name in states[0].parts()[part]
    }


def mean_factors(pairs: Sequence[Pair], shares: Real) -> Pair:
    """Return (sum p_k B_k, sum p_k A_k) for equal ranks."""
    mean_B = np.einsum("k,kmr->mr", shares, np.stack([B for B, _ in pairs]))
    return mean_B, np.einsum("k,krn->rn", shares, np.stack([A for _, A in pairs]))


def residual(pairs: Sequence[Pair], shares: Real, mean_B: Real, scaling: float) -> Pair:
    r"""Return factors of :math:`s(\sum_k p_k B_k A_k - \bar B\bar A)`, of rank (K-1) r.

    The difference equals :math:`\sum_k p_k (B_k-\bar B)(A_k-\bar A)`; as the :math:`p_k(B_k-\bar B)` sum to zero, any
    matrix may be taken from every :math:`A_k`, and the last device's own makes its term vanish. The pairs are (B_k
    (m, r), A_k (r, n)), the shares p_k (K,) sum to 1; the result is left (m, (K-1) r) and right ((K-1) r, n).
    """
    last = pairs[-1][1]
    left = [scaling * p * (B - mean_B) for p, (B, _) in zip(shares[:-1], pairs[:-1], strict=True)]
    return np.hstack(left), np.vstack([A - last for _, A in pairs[:-1]])


def exact_mean(answers: WholeAnswers, scaling: float) -> Averaged:
    """Return the mean factors, and what the base takes up so that no part of the mean product is lost.

    ``aggregation=exact``: with dropout the target is sum p_k B_k A_k over whole factors, where what a device dropped
    counts as unchanged. Where one factor alone trains the residual is zero, and the mean of ``previous`` is exact.
    """
    shares, new, factors = answers.shares(), AdapterState({}, {}, answers.mean_head()), {}
    for module in answers.spec.modules:
        pairs = answers.pairs(module.name)
        mean_B, mean_A = mean_factors(pairs, shares)
        new.lora_A[module.name], new.lora_B[module.name] = mean_A.astype("f4"), mean_B.astype("f4")
        if len(pairs) > 1:
            factors[module.name] = residual(pairs, shares, mean_B, scaling)
    return Averaged(new, as_update(factors))


def measured_mean(answers: WholeAnswers) -> Averaged:
    r"""Return the mean factors, and :math:`\Vert\sum_k p_k B_k A_k-\bar B\bar A\Vert / \Vert\sum_k p_k B_k A_k\Vert`.

    ``aggregation=measured``: with dropout the mean of ``previous``. The norm is Frobenius' over all modules; the error
    is 0 where one factor is common to all, or the mean product is zero.
    """
    shares, lost, whole = answers.shares(), 0.0, 0.0
    for module in answers.spec.modules:
        pairs = answers.pairs(module.name)
        product = np.sum([p * B @ A for p, (B, A) in zip(shares, pairs, strict=True)], axis=0)
        mean_B, mean_A = mean_factors(pairs, shares)
        whole += float(np.sum(product**2))
        lost += float(np.sum((product - mean_B @ mean_A) ** 2))
    error = float(np.sqrt(lost / whole)) if whole else 0.0
    return Averaged(exact_mean(answers, 0.0).state, averaging_error=error)


def stack(pairs: Sequence[Pair], shares: Real, scalings: Sequence[float]) -> Pair:
    r"""Return factors of :math:`\sum_k p_k s_k B_k A_k`: [B_1 .. B_K] and [p_1 s_1 A_1; ..]; ranks may differ.

    The share stands on one factor only: on both, every product would be weighted by its square.
    """
    scaled = [p * s * A for p, s, (_, A) in zip(shares, scalings, pairs, strict=True)]
    return np.hstack([B for B, _ in pairs]), np.vstack(scaled)


def truncated(left: Real, right: Real, rank: int) -> tuple[Real, Real, Real]:
    r"""Return the best approximation of a given rank to ``left @ right`` as (U, S, Vt), without forming the product.

    With :math:`L = Q_1R_1` and :math:`R^T = Q_2R_2` the product is :math:`Q_1(R_1R_2^T)Q_2^T`, and only the small
    matrix in the middle is decomposed. Signs are fixed: the largest entry of every column of U is positive. Where
    L (m, R) and R (R, n) give fewer components than ``rank``, the rest is zero.
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
    if not factors or not all(left.shape[1] for left, _ in factors.values()):
        return None
    return {name: (left.astype(np.float32), right.astype(np.float32)) for name, (left, right) in factors.items()}
