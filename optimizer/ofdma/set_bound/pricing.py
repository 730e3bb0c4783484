"""OFDMA: a sharper lower bound, with a price per subcarrier and whole ownership sets.

For prices mu >= 0 (one per subcarrier) every assignment obeys

    objective >= sum_k L_k(mu) - sum_m mu_m,      L_k(mu) = min_A V_k(A) + mu(A),

because each device pays for what it owns. The minimum runs over whole sets, nothing is fractional, which is why this
bound is sharper than the one of `dual_bound`. L_k is found by listing every set that could cost less than the cheapest
one known and valuing those exactly, after price pairs (lambda, eta) have cut off most of them: with psi and D_m as in
`dual_bound`, a set A costs

    V(A) + mu(A) >= psi + sum_{m in A} c_m,     c_m = mu_m - D_m.

Among sets of a fixed size the cheapest by this estimate takes the smallest c_m. So the estimate is made tight for every
size by its own choice of prices, the own multipliers of the cheapest set of that size by the cuts made so far, in a few
rounds; and sets are listed size by size: members are picked in the order of c_m, and a partial choice is dropped when
even its cheapest completion is above the ceiling. No more partial choices are kept than sets listed. Where the list
would become too long the ceiling is lowered, and then stands in for L_k: the bound stays valid, only weaker.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array

from optimizer.ofdma.dual_bound import OwnershipBox, carrier_values, device_minima, start_prices, stationary_prices
from optimizer.ofdma.model import OfdmaModel, power_budget
from optimizer.ofdma.waterfilling import list_members, serves_at, set_rates, sort_members
from optimizer.problem import BoolArray, FloatArray, IntArray
from optimizer.solver_interface import Limits
from optimizer.timing import time_is_up

_CUT_ROUNDS, _SIZES = 4, 6  # rounds of cuts, and sizes of sets that are given one in each
_GRID = 512  # points at which phi is inverted when sets are sifted
_HALVINGS = 40  # of the ceiling
_NOTHING = np.empty((0, 1), dtype=np.int32)
_LARGEST_TABLE = 20_000_000  # entries of a list of sets: longer sets allow fewer of them


class Columns(NamedTuple):
    """N ownership sets with their devices (N,), members (N, M) bool, dropout rates (N,) and values V (N,)."""

    device: IntArray
    owned: BoolArray
    gamma: FloatArray
    value: FloatArray

    def take(self, keep: BoolArray | IntArray) -> "Columns":
        """Return the chosen sets."""
        return Columns._make(part[keep] for part in self)

    def membership(self) -> csr_array:
        """Members as a sparse matrix (N, M) of ones."""
        row, column = np.nonzero(self.owned)
        return csr_array((np.ones(len(row)), (row, column)), shape=self.owned.shape)


def make_columns(model: OfdmaModel, owned: BoolArray) -> Columns:
    """Value one set per device, the rows of a mask (K, M); those that do not serve their device are left out."""
    gamma = set_rates(model, model.devices, owned)
    return Columns(model.devices, owned, gamma, model.value(gamma)).take(np.isfinite(gamma))


def merge_columns(first: Columns, second: Columns) -> Columns:
    """Union without duplicates, in a fixed order."""
    both = Columns._make(np.concatenate(pair) for pair in zip(first, second, strict=True))
    number = both.device[:, None].astype(">u4").view(np.uint8).reshape(-1, 4)
    key = np.ascontiguousarray(np.concatenate([number, np.packbits(both.owned, axis=1)], axis=1))
    _, at = np.unique(key.view([("", np.void, key.shape[1])])[:, 0], return_index=True)
    return both.take(at)


class Cuts(NamedTuple):
    """P price pairs of ``device`` (P,): each of its sets A costs minima + sum of ``reduced`` (P, M) over A at least.

    ``prices`` (P, 2) are lambda and eta, ``minima`` (P,) is psi_k, ``reduced`` mu less D_km, the worth.
    """

    device: IntArray
    prices: FloatArray
    minima: FloatArray
    reduced: FloatArray

    def of(self, k: int, items: IntArray) -> tuple[FloatArray, FloatArray]:
        """Minima and reduced costs of one device, for the subcarriers it may own."""
        mine = self.device == k
        return self.minima[mine], self.reduced[np.ix_(mine, items)]


@dataclass(frozen=True)
class Pricing:
    """What the sets of a box cost at prices mu (M,) per subcarrier."""

    model: OfdmaModel
    box: OwnershipBox
    price: FloatArray

    def cheapest_sets(self, ceiling: FloatArray, slack: float, limits: Limits) -> tuple[FloatArray, Columns]:
        """L_k(mu) (K,) up to ``ceiling`` (K,), min(ceiling used, cheapest set), and the cheapest sets.

        ``slack`` and ``limits`` as in `list_sets`.
        """
        model, parts = self.model, []
        cuts, ceiling = self.sharpen(self.make_cuts(model.devices, start_prices(model, self.box)), ceiling)
        least = ceiling.copy()
        for k in range(model.num_devices):
            items = np.flatnonzero(self.box.allowed[k])
            picks, least[k] = list_sets(*cuts.of(k, items), float(ceiling[k]), slack, limits)
            members = np.append(items, -1).astype(np.int32)[picks]  # -1 stays -1
            highest = self._rate_for(k, least[k] + slack - self._paid(members))
            promising = serves_at(model, np.full(len(members), k), members, highest)
            parts.append(self._cheapest(k, members[promising], limits.keep))
        found = Columns._make(np.concatenate(part) for part in zip(*parts, strict=True))
        np.minimum.at(least, found.device, self.costs(found))
        return least, found

    def costs(self, columns: Columns) -> FloatArray:
        """V + mu(A) of every column, V taken at the box's lowest rate where the set reaches less."""
        lowest = self.box.low[columns.device]
        value = np.where(columns.gamma < lowest, self.model.value(lowest, columns.device), columns.value)
        return value + columns.membership() @ self.price

    def make_cuts(self, device: IntArray, prices: FloatArray) -> Cuts:
        """What pairs (lambda, eta), (2, P), of ``device`` (P,) say."""
        prices = np.maximum(prices, 1e-60)
        minima = device_minima(self.model, self.box, prices, device)[0]
        return Cuts(device, prices.T, minima, self.price - carrier_values(self.model, prices, device)[0])

    def sharpen(self, cuts: Cuts, ceiling: FloatArray) -> tuple[Cuts, FloatArray]:
        """Add cuts where sets of a size may cost less than ``ceiling`` (K,): the cheapest such set's own multipliers.

        Cheapest by the best cut of its size; where its own is known, prices half way from the best cut's to its own,
        since a cut's strength is concave in them. Also returns the ceilings, lowered to what sets cost.
        """
        ceiling, tried = ceiling.copy(), set()
        for _ in range(_CUT_ROUNDS):
            found = [self._cheapest_by_cuts(cuts, k, ceiling[k]) for k in range(self.model.num_devices)]
            device, owned, base, highest = (np.concatenate(parts) for parts in zip(*found, strict=True))
            if not len(device) or time_is_up():
                break
            own, cost = self._own_prices(device, list_members(owned), highest)
            np.minimum.at(ceiling, device, cost)
            keys = [(k, row.tobytes()) for k, row in zip(device.tolist(), owned, strict=True)]
            share = np.where([key in tried for key in keys], 0.5, 0.0)
            tried.update(keys)
            new = self.make_cuts(device, own + share * (cuts.prices[base].T - own))
            cuts = Cuts._make(np.concatenate(pair) for pair in zip(cuts, new, strict=True))
        return cuts, ceiling

    def _cheapest_by_cuts(self, cuts: Cuts, k: int, ceiling: float) -> tuple[IntArray, BoolArray, IntArray, FloatArray]:
        """Sets of device k, the cheapest of some sizes that may stay below ``ceiling``: device, members, cut, rate."""
        items = np.flatnonzero(self.box.allowed[k])
        minima, reduced = cuts.of(k, items)
        order = np.argsort(reduced, axis=1, kind="stable")
        least = size_floors(minima, np.take_along_axis(reduced, order, axis=1))
        sizes = np.flatnonzero(least.max(axis=0) < ceiling)
        sizes = sizes[np.unique(np.linspace(0, max(len(sizes) - 1, 0), _SIZES).astype(int))[: len(sizes)]]
        best = least[:, sizes].argmax(axis=0)
        owned = np.zeros((len(sizes), self.model.num_subcarriers), dtype=bool)
        for row, cut, size in zip(owned, best, sizes, strict=True):
            row[items[order[cut, :size]]] = True
        highest = self._rate_for(k, ceiling - np.array([self.price[row].sum() for row in owned]))
        return np.full(len(sizes), k), owned, np.flatnonzero(cuts.device == k)[best], highest

    def _own_prices(self, device: IntArray, members: IntArray, highest: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Own multipliers (2, N) of sets (N, L), at the lowest rate served or a lower ``highest``; their costs (N,)."""
        low, high = self.box.low[device], self.box.high[device]
        reached = np.maximum(set_rates(self.model, device, members), low)
        cost = np.where(reached <= high, self.model.value(reached, device) + self._paid(members), np.inf)
        gamma = np.minimum(np.where(highest > low, np.minimum(reached, highest), reached), high)
        sets = sort_members(self.model, device, members)
        level = sets.best * (1.0 + sets.level(power_budget(self.model, gamma, device))[1])
        pairs = stationary_prices(self.model, gamma, level, device)
        return np.where(np.isfinite(pairs), pairs, 0.0), cost

    def _paid(self, members: IntArray) -> FloatArray:
        """What sets (N, L) pay for their members, one column at a time."""
        each, paid = np.append(self.price, 0.0), np.zeros(len(members))
        for column in members.T:
            paid += each[column]
        return paid

    def _rate_for(self, k: int, value: FloatArray) -> FloatArray:
        """Dropout rates in the box above which phi_k exceeds ``value`` (N,) for certain; -inf where it always does.

        phi_k is convex and rising, so the tangent at the last grid point below ``value`` meets it no earlier than phi_k
        does. A piecewise linear stand-in is inverted between its own knots.
        """
        grid = np.linspace(self.box.low[k], self.box.high[k], _GRID)
        if self.model.table is not None:
            knots = self.model.table.rate[self.model.index[k]]
            grid = np.concatenate([grid[:1], knots[(knots > grid[0]) & (knots < grid[-1])], grid[-1:]])
        who = np.full(len(grid), k)
        height, slope = self.model.value(grid, who), self.model.slope(grid, who)
        at = np.searchsorted(height, value, side="right") - 1
        rise = np.divide(value - height[at], slope[at], out=np.full(len(value), np.inf), where=slope[at] > 0)
        rate = np.minimum(grid[at] + rise * (1 + 1e-9) + 1e-12, self.box.high[k])
        return np.where(at >= 0, rate, -np.inf)

    def _cheapest(self, k: int, members: IntArray, keep: int) -> Columns:
        """Value the sets (N, L) of device k exactly and keep the cheapest ones that respect the box."""
        who = np.full(len(members), k)
        gamma = set_rates(self.model, who, members)
        cost = self.model.value(np.maximum(gamma, self.box.low[k]), who) + self._paid(members)
        cost = np.where(gamma <= self.box.high[k], cost, np.inf)
        first = np.argsort(cost, kind="stable")[:keep]
        first = first[np.isfinite(cost[first])]
        owned = np.zeros((len(first), self.model.num_subcarriers + 1), dtype=bool)
        owned[np.arange(len(first))[:, None], members[first]] = True
        return Columns(who[first], owned[:, :-1], gamma[first], self.model.value(gamma[first], who[first]))


def choose_members(cost: FloatArray, size: int, limit: float, cap: int) -> IntArray | None:
    """All choices (N, size) of positions of the ascending ``cost`` (M,) summing to ``limit``; None if over ``cap``."""
    cap = min(cap, _LARGEST_TABLE // max(size, 1))
    running = np.concatenate([[0.0], np.cumsum(cost)])
    # Lists are long, hence 32 bits.
    picks, total, last = np.empty((1, 0), dtype=np.int32), np.zeros(1), np.full(1, -1)
    for place in range(size):
        rest = size - place - 1
        # Position j completed by the `rest` positions after it: the cheapest way to go on; ascending in j.
        first = np.arange(len(cost) - rest)
        ahead = cost[first] + running[first + 1 + rest] - running[first + 1]
        count = np.maximum(np.searchsorted(ahead, limit - total, side="right") - (last + 1), 0)
        number = int(count.sum())
        if number > cap:
            return None
        parent = np.repeat(np.arange(len(count)), count)
        begin = np.repeat(np.cumsum(count) - count, count)
        last = last[parent] + 1 + (np.arange(number) - begin)
        total = total[parent] + cost[last]
        picks = np.concatenate([picks[parent], last[:, None].astype(np.int32)], axis=1)
    return picks


def size_floors(psi: FloatArray, cost: FloatArray) -> FloatArray:
    """What sets of 0 to M members cost at least, (C, M + 1), by ascending reduced costs (C, M)."""
    return psi[:, None] + np.pad(np.cumsum(cost, axis=1), ((0, 0), (1, 0)))


def list_sets(
    psi: FloatArray, reduced: FloatArray, ceiling: float, slack: float, limits: Limits
) -> tuple[IntArray, float]:
    """List every set whose estimated cost, psi (C,) plus reduced costs (C, M) for C price pairs, is at most a ceiling.

    ``slack`` is what may be listed above the ceiling while that costs no more than ``8 limits.keep`` sets; when the
    list would be longer than ``limits.list_length`` the ceiling itself is lowered. Returns sets (N, L) as positions
    padded with -1, and the ceiling used: sets that are missing cost at least that.
    """
    order = np.argsort(reduced, axis=1, kind="stable")
    cost = np.take_along_axis(reduced, order, axis=1)
    floors = size_floors(psi, cost)
    best, floor = floors.argmax(axis=0), floors.max(axis=0)
    least = float(floor.min())

    def list_up_to(top: float, cap: int) -> IntArray | None:
        """All sets whose floor is at most ``top``, size by size; None if over ``cap`` together."""
        lists = []
        for size in np.flatnonzero(floor <= top):
            cut = best[size]
            picks = choose_members(cost[cut], int(size), top - float(psi[cut]), cap)
            if picks is None:
                return None
            cap -= len(picks)
            lists.append(order[cut][picks])
        width = max([1, *(sets.shape[1] for sets in lists)])
        padded = [np.pad(sets, ((0, 0), (0, width - sets.shape[1])), constant_values=-1) for sets in lists]
        return np.concatenate(padded) if lists else _NOTHING

    tops = [(ceiling + slack, 8 * limits.keep), (ceiling + slack / 8, 8 * limits.keep), (ceiling, limits.list_length)]
    tops += [(least + (ceiling - least) * 0.75**step, limits.list_length) for step in range(1, _HALVINGS)]
    for top, cap in tops:
        if time_is_up():
            break
        sets = list_up_to(top, cap)
        if sets is not None:
            return sets, top
    return _NOTHING, min(least, ceiling)
