"""OFDMA: listing the ownership sets of one device that could cost less than a ceiling.

For prices (lambda, eta) of the device, psi and D_m as in `dual_bound`, a set A costs

    V(A) + mu(A) >= psi + sum_{m in A} c_m,     c_m = mu_m - D_m.

Among sets of a fixed size n the cheapest by this estimate takes the n smallest c_m, so the estimate can be made tight
for every size by its own choice of prices, and sets are listed size by size: members are picked in the order of c_m,
and a partial choice is dropped when even its cheapest completion is above the ceiling. No more partial choices are kept
than sets listed.

References
----------
[Barnhart1998] Barnhart et al., Branch-and-Price, Operations Research 46(3), 1998 (pricing in general).
"""

from __future__ import annotations

import numpy as np

from optimizer.problem import FloatArray, IntArray
from optimizer.solver_interface import Limits
from optimizer.timing import time_is_up

_HALVINGS = 40
_LARGEST_TABLE = 20_000_000  # entries of a list of sets: longer sets allow fewer of them


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


def _list_up_to(
    psi: FloatArray, cost: FloatArray, order: IntArray, best: IntArray, floor: FloatArray, top: float, cap: int
) -> list[IntArray] | None:
    """Lists of all sizes whose floor is at most ``top``, as original positions; None if over ``cap`` together."""
    lists: list[IntArray] = []
    for size in np.flatnonzero(floor <= top):
        cut = best[size]
        picks = choose_members(cost[cut], int(size), top - float(psi[cut]), cap)
        if picks is None:
            return None
        cap -= len(picks)
        lists.append(order[cut][picks])
    return lists


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
    tops = [(ceiling + slack, 8 * limits.keep), (ceiling + slack / 8, 8 * limits.keep), (ceiling, limits.list_length)]
    tops += [(least + (ceiling - least) * 0.75**step, limits.list_length) for step in range(1, _HALVINGS)]
    for top, cap in tops:
        if time_is_up():
            break
        lists = _list_up_to(psi, cost, order, best, floor, top, cap)
        if lists is not None:
            width = max([1, *(picks.shape[1] for picks in lists)])
            padded = [np.pad(picks, ((0, 0), (0, width - picks.shape[1])), constant_values=-1) for picks in lists]
            return np.concatenate(padded) if padded else np.empty((0, 1), dtype=np.int32), top
    return np.empty((0, 1), dtype=np.int32), min(least, ceiling)
