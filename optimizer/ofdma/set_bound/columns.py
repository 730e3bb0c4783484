"""OFDMA: a sharper lower bound, with a price per subcarrier and whole ownership sets.

For prices mu >= 0 (one per subcarrier) every assignment obeys

    objective >= sum_k L_k(mu) - sum_m mu_m,      L_k(mu) = min_A V_k(A) + mu(A),

because each device pays for what it owns. The minimum runs over whole sets, nothing is fractional, which is why this
bound is sharper than the one of `dual_bound`. L_k is found by listing every set that could cost less than the cheapest
one known (`listing`) and valuing those exactly, after price pairs (lambda, eta) have cut off most of them: the own
multipliers of the cheapest set of every size, by the cuts made so far, in a few rounds. Where the list would become too
long the ceiling is lowered, and then stands in for L_k: the bound stays valid, only weaker.

References
----------
[Barnhart1998] Barnhart et al., Branch-and-Price, Operations Research 46(3), 1998 (columns, pricing and branching in
general).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from optimizer.ofdma.dual_bound import OwnershipBox, device_minima, start_prices, stationary_prices
from optimizer.ofdma.model import LN2, OfdmaModel, power_budget
from optimizer.ofdma.set_bound.listing import list_sets, size_floors
from optimizer.ofdma.waterfilling import list_members, serves_at, set_rates, sort_members
from optimizer.problem import BoolArray, FloatArray, IntArray
from optimizer.solver_interface import Limits
from optimizer.timing import time_is_up

_CUT_ROUNDS, _SIZES = 4, 6  # rounds of cuts, and sizes of sets that are given one in each
_GRID = 512  # points at which phi is inverted when sets are sifted
_FIELDS, _CUT_FIELDS = ("device", "owned", "gamma", "value"), ("device", "lam", "eta", "minima", "reduced")


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
    """P price pairs of ``device`` (P,): each of its sets A costs minima + sum of ``reduced`` (P, M) over A at least.

    ``lam`` and ``eta`` (P,) are the prices, ``minima`` (P,) is psi_k, ``reduced`` mu less D_km, the worth.
    """

    device: IntArray
    lam: FloatArray
    eta: FloatArray
    minima: FloatArray
    reduced: FloatArray

    def of(self, k: int, items: IntArray) -> tuple[FloatArray, FloatArray]:
        """Minima and reduced costs of one device, for the subcarriers it may own."""
        mine = self.device == k
        return self.minima[mine], self.reduced[np.ix_(mine, items)]


def make_cuts(
    model: OfdmaModel, box: OwnershipBox, price: FloatArray, device: IntArray, lam: FloatArray, eta: FloatArray
) -> Cuts:
    """What price pairs (lambda, eta) of ``device``, all (P,), say at subcarrier prices ``price`` (M,)."""
    lam, eta = np.maximum(lam, 1e-60), np.maximum(eta, 1e-60)
    minima = device_minima(model, box, lam, eta, device)[0]
    inverse = model.inv_snr[device]
    over = np.maximum((lam / (eta * LN2))[:, None] - inverse, 0.0)
    worth = lam[:, None] * (np.log1p(over / inverse) / LN2) - eta[:, None] * over
    return Cuts(device, lam, eta, minima, price - np.maximum(worth, 0.0))


def own_prices(
    model: OfdmaModel, box: OwnershipBox, price: FloatArray, device: IntArray, members: IntArray, highest: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """The own multipliers (lambda, eta) of sets (N, L), lists padded with -1, and what each set costs; (N,) each.

    The multipliers are those at the lowest rate that the set serves, or at ``highest`` (N,) where that is lower yet not
    nothing.
    """
    reached = np.maximum(set_rates(model, device, members), box.low[device])
    cost = np.where(reached <= box.high[device], model.value(reached, device) + _paid(price, members), np.inf)
    gamma = np.where(highest > box.low[device], np.minimum(reached, highest), reached)
    gamma = np.minimum(gamma, box.high[device])
    sets = sort_members(model, device, members)
    level = sets.best * (1.0 + sets.level(power_budget(model, gamma, device))[1])
    lam, eta = stationary_prices(model, gamma, level, device)
    return np.where(np.isfinite(lam), lam, 0.0), np.where(np.isfinite(eta), eta, 0.0), cost


def sharpen(
    model: OfdmaModel, box: OwnershipBox, price: FloatArray, cuts: Cuts, ceiling: FloatArray
) -> tuple[Cuts, FloatArray]:
    """Add cuts where sets of some size may cost less than ``ceiling`` (K,): own multipliers of the cheapest such set.

    Cheapest by the best cut of its size; where that set's own cut is known, the prices half way from the best cut's to
    its own, since a cut's strength is concave in them. Returns the cuts and the ceilings, lowered to what sets cost.
    """
    ceiling, tried = ceiling.copy(), set()
    for _ in range(_CUT_ROUNDS):
        device, members, base, highest = [], [], [], []
        for k in range(model.num_devices):
            items = np.flatnonzero(box.allowed[k])
            minima, reduced = cuts.of(k, items)
            order = np.argsort(reduced, axis=1, kind="stable")
            least = size_floors(minima, np.take_along_axis(reduced, order, axis=1))
            sizes = np.flatnonzero(least.max(axis=0) < ceiling[k])
            sizes = sizes[np.unique(np.linspace(0, max(len(sizes) - 1, 0), _SIZES).astype(int))[: len(sizes)]]
            best = least[:, sizes].argmax(axis=0)
            sets = [items[np.sort(order[cut, :size])] for cut, size in zip(best, sizes, strict=True)]
            device += [k] * len(sets)
            members += sets
            base += np.flatnonzero(cuts.device == k)[best].tolist()
            highest.append(_rate_for(model, box, k, ceiling[k] - np.array([price[own].sum() for own in sets])))
        if not device or time_is_up():
            break
        who, lists = np.array(device), np.full((len(members), max(1, *map(len, members))), -1)
        for row, own in zip(lists, members, strict=True):
            row[: len(own)] = own
        *pair, cost = own_prices(model, box, price, who, lists, np.concatenate(highest))
        np.minimum.at(ceiling, who, cost)
        keys = [(k, own.tobytes()) for k, own in zip(device, members, strict=True)]
        share = np.where([key in tried for key in keys], 0.5, 0.0)
        tried.update(keys)
        lam, eta = (own + share * (have[base] - own) for own, have in zip(pair, (cuts.lam, cuts.eta), strict=True))
        new = make_cuts(model, box, price, who, lam, eta)
        cuts = Cuts(*(np.concatenate([getattr(part, name) for part in (cuts, new)]) for name in _CUT_FIELDS))
    return cuts, ceiling


@dataclass(frozen=True)
class Pricing:
    """Outcome of pricing: lower bounds L_k (K,) and the cheapest sets listed."""

    least: FloatArray
    found: Columns


def price_sets(
    model: OfdmaModel,
    box: OwnershipBox,
    price: FloatArray,
    ceiling: FloatArray,
    slack: float,
    limits: Limits,
) -> Pricing:
    """L_k(mu) for every device at prices mu (M,), up to ``ceiling`` (K,): min(ceiling used, cheapest listed set).

    ``slack`` and ``limits`` as in `list_sets`.
    """
    parts, device = [], np.arange(model.num_devices)
    cuts, ceiling = sharpen(model, box, price, make_cuts(model, box, price, device, *start_prices(model, box)), ceiling)
    used = ceiling.copy()
    for k in range(model.num_devices):
        items = np.flatnonzero(box.allowed[k])
        picks, used[k] = list_sets(*cuts.of(k, items), float(ceiling[k]), slack, limits)
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
