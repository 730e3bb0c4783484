"""OFDMA: a sharper lower bound, with a price per subcarrier and whole ownership sets.

For prices mu >= 0 (one per subcarrier) every assignment obeys

    objective >= sum_k L_k(mu) - sum_m mu_m,      L_k(mu) = min_A V_k(A) + mu(A),

because each device pays for what it owns. The minimum runs over whole sets, nothing is fractional, which is why this
bound is sharper than the one of `dual_bound`. L_k is found by listing every set that could cost less than the cheapest
one known (`listing`) and valuing those exactly. Where the list would become too long the ceiling is lowered, and then
stands in for L_k: the bound stays valid, only weaker.

References
----------
[Barnhart1998] Barnhart et al., Branch-and-Price, Operations Research 46(3), 1998 (columns, pricing and branching in
general).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from optimizer.method import Limits
from optimizer.ofdma.dual_bound import OwnershipBox, device_minima
from optimizer.ofdma.model import LN2, OfdmaModel
from optimizer.ofdma.set_bound.listing import list_sets
from optimizer.ofdma.waterfilling import list_members, serves_at, set_rates
from optimizer.problem import BoolArray, FloatArray, IntArray

# Multiples of the rate price lambda and of the water level: away from 1 they suit sets larger or smaller than the
# usual.
_SPREAD = ((0.5, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0), (0.6, 0.8, 1.0, 1.25, 1.6))
_GRID = 512  # points at which phi is inverted when sets are sifted
_FIELDS = ("device", "owned", "gamma", "value")


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

    def membership(self) -> csr_array:
        """Members as a sparse matrix (N, M) of ones."""
        row, column = np.nonzero(self.owned)
        return csr_array((np.ones(len(row)), (row, column)), shape=self.owned.shape)

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
class Cuts:
    """C price pairs around (lambda, eta) = (``rate_price``, ``power_price``), (K,) each, and what they say.

    ``worth`` (C, K, M) is D_km, ``minima`` (C, K) is psi_k.
    """

    rate_price: FloatArray
    power_price: FloatArray
    worth: FloatArray
    minima: FloatArray


def make_cuts(model: OfdmaModel, box: OwnershipBox, rate_price: FloatArray, power_price: FloatArray) -> Cuts:
    """Price pairs around (lambda, eta) for all devices: every rate price with every water level of `_SPREAD`."""
    grid = np.array([(s, s / v) for s in _SPREAD[0] for v in _SPREAD[1]])  # (C, 2)
    rate, power = grid[:, :1] * rate_price, grid[:, 1:] * power_price  # (C, K)
    device = np.tile(np.arange(model.num_devices), len(grid))  # (C, K) -> (C K,)
    minima = device_minima(model, box, rate.ravel(), power.ravel(), device)[0].reshape(rate.shape)
    level = (rate / (power * LN2))[:, :, None]  # (C, K, 1)
    over = np.maximum(level - model.inv_snr, 0.0)
    worth = rate[:, :, None] * (np.log1p(over / model.inv_snr) / LN2) - power[:, :, None] * over
    return Cuts(rate_price, power_price, np.maximum(worth, 0.0), minima)


@dataclass(frozen=True)
class Pricing:
    """Outcome of pricing: lower bounds L_k (K,) and the cheapest sets listed."""

    least: FloatArray
    found: Columns


def price_sets(
    model: OfdmaModel,
    box: OwnershipBox,
    price: FloatArray,
    cuts: Cuts,
    ceiling: FloatArray,
    slack: float,
    limits: Limits,
) -> Pricing:
    """L_k(mu) for every device at prices mu (M,), up to ``ceiling`` (K,): min(ceiling used, cheapest listed set).

    ``cuts`` prune; ``slack`` and ``limits`` as in `list_sets`.
    """
    used, parts = ceiling.copy(), []
    for k in range(model.num_devices):
        items = np.flatnonzero(box.allowed[k])
        reduced = price[items] - cuts.worth[:, k, items]  # (C, items)
        picks, used[k] = list_sets(cuts.minima[:, k], reduced, float(ceiling[k]), slack, limits)
        members = np.append(items, -1).astype(np.int32)[picks]  # -1 stays -1
        highest = _rate_for(model, box, k, used[k] + slack - _paid(price, members))
        promising = serves_at(model, np.full(len(members), k), members, highest)
        parts.append(_cheapest(model, box, k, members[promising], price, limits.keep))
    found = Columns(*(np.concatenate([getattr(part, name) for part in parts]) for name in _FIELDS))
    least = used.copy()
    np.minimum.at(least, found.device, set_costs(model, box, found, price))
    return Pricing(least, found)


def _paid(price: FloatArray, members: IntArray) -> FloatArray:
    """What sets (N, L) pay for their members, one column at a time."""
    each, paid = np.append(price, 0.0), np.zeros(len(members))
    for column in members.T:
        paid += each[column]
    return paid


def _rate_for(model: OfdmaModel, box: OwnershipBox, k: int, value: FloatArray) -> FloatArray:
    """Dropout rates in the box above which phi_k exceeds ``value`` (N,) for certain; -inf where it always does.

    phi_k is convex and rising, so the tangent at the last grid point below ``value`` meets it no earlier than phi_k
    does. A piecewise linear stand-in is inverted between its own knots.
    """
    grid = np.linspace(box.low[k], box.high[k], _GRID)
    if model.table is not None:
        knots = model.table.rate[model.index[k]]
        grid = np.concatenate([grid[:1], knots[(knots > grid[0]) & (knots < grid[-1])], grid[-1:]])
    who = np.full(len(grid), k)
    height, slope = model.value(grid, who), model.slope(grid, who)
    at = np.searchsorted(height, value, side="right") - 1
    rise = np.divide(value - height[at], slope[at], out=np.full(len(value), np.inf), where=slope[at] > 0)
    rate = np.minimum(grid[at] + rise * (1 + 1e-9) + 1e-12, box.high[k])
    return np.where(at >= 0, rate, -np.inf)


def _cheapest(model: OfdmaModel, box: OwnershipBox, k: int, members: IntArray, price: FloatArray, keep: int) -> Columns:
    """Value the sets (N, L) of device k exactly and keep the cheapest ones that respect the box."""
    who = np.full(len(members), k)
    gamma = set_rates(model, who, members)
    value = model.value(gamma, who)
    at_least = np.maximum(gamma, box.low[k])
    cost = model.value(at_least, who) + _paid(price, members)
    cost = np.where(gamma <= box.high[k], cost, np.inf)
    first = np.argsort(cost, kind="stable")[:keep]
    first = first[np.isfinite(cost[first])]
    owned = np.zeros((len(first), model.num_subcarriers + 1), dtype=bool)
    owned[np.arange(len(first))[:, None], members[first]] = True
    return Columns(who[first], owned[:, :-1], gamma[first], value[first])


def set_costs(model: OfdmaModel, box: OwnershipBox, columns: Columns, price: FloatArray) -> FloatArray:
    """V + mu(A) of every column, V taken at the box's lowest rate where the set reaches less."""
    lowest = box.low[columns.device]
    value = np.where(columns.gamma < lowest, model.value(lowest, columns.device), columns.value)
    return value + columns.membership() @ price
