"""OFDMA: a sharper lower bound, with a price per subcarrier and whole ownership sets.

For prices mu >= 0 (one per subcarrier) every assignment obeys

    objective >= sum_k L_k(mu) - sum_m mu_m,      L_k(mu) = min_A V_k(A) + mu(A),

because each device pays for what it owns. The minimum runs over whole sets, nothing is fractional, which is why this bound is
sharper than the one of `ofdma_dual`. L_k is found by listing every set that could beat a ceiling: for any rate and power prices
(lambda, eta) of device k, with D_m and psi as in `ofdma_dual`,

    V_k(A) + mu(A) >= psi_k - sum_m [D_m - mu_m]^+ + sum_{m in A} [mu_m - D_m]^+ + sum_{m not in A} [D_m - mu_m]^+,

so a partial choice that already exceeds the ceiling under any of several price pairs cannot be completed. Where the list would
become too long the ceiling is lowered, and then stands in for L_k: the bound stays valid, only weaker.

References
----------
[Barnhart1998] Barnhart et al., Branch-and-Price, Operations Research 46(3), 1998 (columns, pricing and branching in general).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from optimizer.ofdma import list_members, set_rates
from optimizer.ofdma_dual import OwnershipBox, carrier_values, device_minima
from optimizer.ofdma_model import OfdmaModel
from optimizer.problem import BoolArray, FloatArray, IntArray

# Multiples of the prices (lambda, eta) that prune: away from 1 they catch sets with far too much or too little rate.
_SPREAD = (0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0)


@dataclass(frozen=True)
class Columns:
    """N ownership sets with their devices (N,), members (N, M) bool, dropout rates (N,) and values V (N,)."""

    device: IntArray
    owned: BoolArray
    gamma: FloatArray
    value: FloatArray

    def take(self, keep: BoolArray | IntArray) -> Columns:
        """Return the chosen sets."""
        return Columns(self.device[keep], self.owned[keep], self.gamma[keep], self.value[keep])

    def inside(self, box: OwnershipBox) -> BoolArray:
        """Which sets respect a box, (N,)."""
        foreign = np.any(self.owned & ~box.allowed[self.device], axis=1)
        return ~foreign & (self.gamma <= box.high[self.device])


def make_columns(model: OfdmaModel, device: IntArray, owned: BoolArray) -> Columns:
    """Value N sets; those that do not serve their device are left out."""
    gamma = set_rates(model, device, list_members(owned))
    good = np.isfinite(gamma)
    return Columns(device[good], owned[good], gamma[good], model.value(gamma[good], device[good]))


def merge_columns(first: Columns, second: Columns) -> Columns:
    """Union without duplicates, in a fixed order."""
    device = np.concatenate([first.device, second.device])
    owned = np.concatenate([first.owned, second.owned])
    number = device[:, None].astype(">u4").view(np.uint8).reshape(len(device), 4)
    key = np.concatenate([number, np.packbits(owned, axis=1)], axis=1)
    _, at = np.unique(np.ascontiguousarray(key).view([("", np.void, key.shape[1])])[:, 0], return_index=True)
    both = Columns(
        device, owned, np.concatenate([first.gamma, second.gamma]), np.concatenate([first.value, second.value])
    )
    return both.take(at)


@dataclass(frozen=True)
class Limits:
    """Limits of column generation.

    Linear programs solved; sets listed per device, at first and at most (lists grow where cutting them short costs bound);
    sets kept per device and pricing; `time.perf_counter` to stop at.
    """

    rounds: int = 40
    list_length: int = 40000
    longest_list: int = 640000
    keep: int = 100
    stop_at: float = np.inf


@dataclass(frozen=True)
class Cuts:
    """C price pairs around (lambda, eta) = (``rate_price``, ``power_price``), each (K,), with what they say about every device.

    ``worth`` (C, K, M) is D_km, ``minima`` (C, K) is psi_k.
    """

    rate_price: FloatArray
    power_price: FloatArray
    worth: FloatArray
    minima: FloatArray


def make_cuts(model: OfdmaModel, box: OwnershipBox, rate_price: FloatArray, power_price: FloatArray) -> Cuts:
    """Price pairs around (lambda, eta) for all devices."""
    pairs = [(rate_price * s, power_price * s) for s in _SPREAD]
    minima = [device_minima(model, box, *pair)[0] for pair in pairs]
    worth = [carrier_values(model, *pair)[0] for pair in pairs]
    return Cuts(rate_price, power_price, np.array(worth), np.array(minima))


def list_sets(
    base: FloatArray, join: FloatArray, leave: FloatArray, ceiling: float, slack: float, limits: Limits
) -> tuple[BoolArray, float]:
    """List every subset whose penalties stay below a ceiling under all cuts.

    Parameters
    ----------
    base : ndarray
        (C,) start of each cut's sum.
    join, leave : ndarray
        (C, M) what subcarrier m adds to the sum when it is in, or out of, the set; >= 0.
    ceiling : float
        Largest sum of interest.
    slack : float
        What may be listed above the ceiling while the list is shorter than ``8 limits.keep``.
    limits : Limits
        ``list_length``: beyond it the ceiling itself is lowered.

    Returns
    -------
    tuple
        Subsets (N, M) bool and the ceiling used: a subset that is missing exceeds it under some cut.
    """
    num_items, top = join.shape[1], ceiling + slack
    strength = np.minimum(join.max(axis=0), leave.max(axis=0))
    only = np.any(base[:, None] + join > ceiling, axis=0) | np.any(base[:, None] + leave > ceiling, axis=0)
    order = np.lexsort((np.arange(num_items), -strength, ~only))  # forced items first, then strong ones: short lists early
    # (C, N) sums and (words, N) bit sets: the partial choices lie along the last axis
    sums, picks = base[:, None], np.zeros((num_items // 64 + 1, 1), dtype=np.uint64)
    for m in order:
        keep_with = (sums + join[:, m, None]).max(axis=0) <= top
        keep_without = (sums + leave[:, m, None]).max(axis=0) <= top
        taken = picks[:, keep_with]
        taken[m // 64] |= np.uint64(1) << np.uint64(m % 64)
        sums = np.concatenate([sums[:, keep_without] + leave[:, m, None], sums[:, keep_with] + join[:, m, None]], axis=1)
        picks = np.concatenate([picks[:, keep_without], taken], axis=1)
        if sums.shape[1] > (limits.list_length if top <= ceiling else 8 * limits.keep):
            sums, picks, top = _shorten(sums, picks, top, ceiling)
        if sums.shape[1] == 0:
            break
    bits = picks[np.arange(num_items) // 64].T >> (np.arange(num_items, dtype=np.uint64) % np.uint64(64))
    return (bits & np.uint64(1)).astype(bool), top


def _shorten(
    sums: FloatArray, picks: npt.NDArray[np.uint64], top: float, ceiling: float
) -> tuple[FloatArray, npt.NDArray[np.uint64], float]:
    """Lower ``top`` to the median sum and drop what exceeds it, but give up all slack before cutting below the ceiling."""
    worst = sums.max(axis=0)
    middle = float(np.partition(worst, len(worst) // 2)[len(worst) // 2])
    top = max(middle, ceiling) if top > ceiling else middle
    keep = worst <= top if top >= ceiling else worst < top
    return sums[:, keep], picks[:, keep], top


@dataclass(frozen=True)
class Pricing:
    """Outcome of pricing: lower bounds L_k (K,), the sets listed on the way, and whether some list had to be cut short."""

    least: FloatArray
    found: Columns
    cut_short: bool


def price_sets(
    model: OfdmaModel, box: OwnershipBox, price: FloatArray, cuts: Cuts, ceiling: FloatArray, slack: float, limits: Limits
) -> Pricing:
    """L_k(mu) for every device, up to ``ceiling`` (K,): min(ceiling used, cheapest listed set).

    Parameters
    ----------
    model : OfdmaModel
        The problem.
    box : OwnershipBox
        Which sets count.
    price : ndarray
        (M,) mu >= 0.
    cuts : Cuts
        Price pairs that prune.
    ceiling : ndarray
        (K,) values of V + mu(A) that are of interest.
    slack, limits
        As in `list_sets`.
    """
    reduced = cuts.worth - price  # (C, K, M)
    join, leave = np.maximum(-reduced, 0.0), np.maximum(reduced, 0.0)
    base = cuts.minima - np.where(box.allowed, leave, 0.0).sum(axis=2)  # (C, K)
    used, who, sets = ceiling.copy(), [], []
    for k in range(model.num_devices):
        items = np.flatnonzero(box.allowed[k])
        penalties = base[:, k], join[:, k, items], leave[:, k, items]
        picks, used[k] = list_sets(*penalties, float(ceiling[k]), slack, limits)
        owned = np.zeros((len(picks), model.num_subcarriers), dtype=bool)
        owned[:, items] = picks
        who.append(np.full(len(picks), k))
        sets.append(owned)
    found = make_columns(model, np.concatenate(who), np.concatenate(sets))
    found = found.take(found.inside(box))
    least = used.copy()
    np.minimum.at(least, found.device, set_costs(model, box, found, price))
    return Pricing(least, found, bool(np.any(used < ceiling)))


def set_costs(model: OfdmaModel, box: OwnershipBox, columns: Columns, price: FloatArray) -> FloatArray:
    """V + mu(A) of every column, V taken at the box's lowest rate where the set reaches less."""
    lowest = box.low[columns.device]
    value = np.where(columns.gamma < lowest, model.value(lowest, columns.device), columns.value)
    return value + columns.owned @ price
