"""OFDMA: good ownerships by moving and swapping subcarriers.

A state is ``owner`` (M,), the device that owns each subcarrier or -1. Its value is the sum of `soft_values`, so that
the same search repairs an ownership that leaves a device short of bits and then improves it. One table per device holds
the value of its set with one member (or an empty slot) replaced by any other subcarrier (or by none); moves and swaps
are sums of two entries.
"""

from collections.abc import Callable
from functools import partial

import numpy as np

from optimizer.ofdma.model import OfdmaModel
from optimizer.ofdma.waterfilling import batches, list_members, owned_mask, soft_values
from optimizer.problem import FloatArray, IntArray
from optimizer.timing import time_is_up

SetValue = Callable[[IntArray, IntArray], FloatArray]
_LARGEST_TABLE = 20_000_000
_LARGEST_BLOCK = 20_000  # sets that are listed together
_LEAST_GAIN = 1e-13  # improvements below this, relative to the objective, are rounding
_SWAPS = 3  # random ones that a restart begins with


def owner_values(model: OfdmaModel, owner: IntArray) -> FloatArray:
    """Soft value of every device's set, (K,)."""
    return soft_values(model, model.devices, list_members(owned_mask(owner, model.num_devices)))


class _Search:
    """An ownership, and what replacing one subcarrier by another would change, kept up to date.

    ``exchange`` (M, M + 1): change of the owner's value when subcarrier m gives way to m' (last column: to nothing);
    ``extend`` (K, M + 1): change of device k's value when m' joins its set. Infinite where that makes no sense.
    ``total`` (K,) are the values.
    """

    def __init__(self, model: OfdmaModel, owner: IntArray, value: SetValue) -> None:
        self.owner, self.value = owner.copy(), value
        self.exchange = np.full((len(owner), len(owner) + 1), np.inf)
        self.extend = np.full((model.num_devices, len(owner) + 1), np.inf)
        self.total = np.zeros(model.num_devices)

    def refresh(self, devices: IntArray) -> bool:
        """Recompute the rows of ``devices``; False when time was up before all were done."""
        if not len(devices):
            return True
        owner = self.owner
        self.exchange[owner < 0] = np.inf
        sets = sum((int((owner == k).sum()) + 1) * len(owner) for k in devices)
        for number, block in enumerate(np.array_split(devices, min(len(devices), 1 + sets // _LARGEST_BLOCK))):
            tasks = [_neighbours(np.flatnonzero(owner == k), len(owner)) for k in block]
            width = max(sets.shape[1] for sets, _, _ in tasks)
            padded = [np.pad(sets, ((0, 0), (0, width - sets.shape[1])), constant_values=-1) for sets, _, _ in tasks]
            lists, who = np.concatenate(padded), np.repeat(block, [len(sets) for sets in padded])
            values = np.empty(len(who))
            for batch in batches(lists):
                if time_is_up() and (number or batch.start):  # the first batch is valued whatever the time
                    return False
                values[batch] = self.value(who[batch], lists[batch])
            ends = np.cumsum([len(sets) for sets in padded])[:-1]
            for k, (_, row, column), own in zip(block, tasks, np.split(values, ends), strict=True):
                self.total[k] = own[0]  # the first one is the set as it is
                table = np.full((len(owner) + 1,) * 2, np.inf)  # last row: the empty slot, last column: nothing
                table[row, column] = own - own[0]
                members = owner == k
                self.exchange[members], self.extend[k] = table[:-1][members], table[-1]
        return True

    def improve(self) -> IntArray:
        """Carry out the best changes that touch different devices; returns the devices touched."""
        touched: set[int] = set()
        for m, n in self._gains():
            giver, taker = int(self.owner[m]), int(self.owner[n] if n < len(self.owner) else n - len(self.owner))
            if giver in touched or taker in touched:
                continue
            if n < len(self.owner):
                self.owner[n] = giver
            self.owner[m] = taker
            touched |= {giver, taker} - {-1}
        return np.array(sorted(touched), dtype=np.int64)

    def _gains(self) -> list[tuple[int, int]]:
        """Swaps and moves that help, the best first: a subcarrier, and its partner or M + the new owner."""
        size, held = len(self.owner), self.owner >= 0
        exchange = self.exchange[:, :size]
        swap = np.where(np.triu(held[:, None] & held, 1), exchange + exchange.T, np.inf)
        move = self.extend[:, :size].T + np.where(held, self.exchange[:, -1], 0.0)[:, None]  # (M, K)
        change = np.concatenate([swap, move], axis=1).ravel()
        best = np.flatnonzero((change < 0) & (change <= -_LEAST_GAIN * float(np.abs(self.total).sum())))
        best = best[np.argsort(change[best], kind="stable")]
        return list(zip(*(part.tolist() for part in divmod(best, size + len(self.total))), strict=True))


def _neighbours(members: IntArray, num_subcarriers: int) -> tuple[IntArray, IntArray, IntArray]:
    """The set, then all with one member or the empty slot replaced; who leaves and who comes (M: nobody), (N,)."""
    free = np.setdiff1d(np.arange(num_subcarriers), members)
    slots = np.append(members, -1).astype(np.int32)  # the last slot is empty; these lists are long
    place = np.concatenate([np.full(len(free) + 1, len(members)), np.arange(len(members))])  # who joins, who leaves
    new = np.concatenate([[-1], free, np.full(len(members), -1)])
    if len(members) * len(free) * len(slots) <= _LARGEST_TABLE:  # else only joining and leaving are looked at
        place = np.concatenate([place, np.repeat(np.arange(len(members)), len(free))])
        new = np.concatenate([new, np.tile(free, len(members))])
    sets = np.tile(slots, (len(place), 1))
    sets[np.arange(len(place)), place] = new
    return sets, np.append(members, num_subcarriers)[place], np.where(new >= 0, new, num_subcarriers)


def local_search(
    model: OfdmaModel, owner: IntArray, *, value: SetValue | None = None, max_rounds: int = 500
) -> tuple[IntArray, FloatArray]:
    """Improve ``owner`` (M,), -1 for nobody, until no move and no swap of two subcarriers helps.

    ``value`` (device (N,), members (N, L)) says what N sets are worth, `soft_values` when left out, and then nothing is
    begun when time is up; a round carries out changes of different devices at once. Returns the ownership and the
    devices' values (K,).
    """
    if value is None and time_is_up():
        return owner, owner_values(model, owner)
    worth = value or partial(soft_values, model)
    search, touched = _Search(model, owner, worth), model.devices
    for _ in range(max_rounds):
        if not search.refresh(touched):
            break
        touched = search.improve()
        if len(touched) == 0 or time_is_up():
            break
    return search.owner, worth(model.devices, list_members(owned_mask(search.owner, model.num_devices)))


def round_shares(share: FloatArray) -> IntArray:
    """Give every subcarrier to the device with the largest share (K, M); -inf where a device may not own it."""
    return np.where(np.isfinite(share.max(axis=0)), np.argmax(share, axis=0), -1)


def _perturbed(owner: IntArray, rng: np.random.Generator) -> IntArray:
    changed = owner.copy()
    for _ in range(_SWAPS):
        pair = rng.choice(len(owner), size=min(2, len(owner)), replace=False)
        changed[pair] = changed[pair[::-1]]
    return changed


def restart(
    model: OfdmaModel, owner: IntArray, rng: np.random.Generator, times: int, good_enough: float, shuffle: bool = False
) -> tuple[IntArray, float]:
    """Perturb the best ownership, first ``owner`` (M,), and search again; keep what is better, until ``good_enough``.

    With ``shuffle`` every other restart begins at a random ownership instead, which finds what no exchange of a few
    pairs reaches. Returns the best ownership and its value.
    """
    best, value = owner, float(owner_values(model, owner).sum())
    for number in range(times):
        if value <= good_enough or time_is_up():
            break
        anew = shuffle and number % 2 == 1
        begin = rng.integers(0, model.num_devices, len(best)) if anew else _perturbed(best, rng)
        trial, values = local_search(model, begin)
        if values.sum() < value:
            best, value = trial, float(values.sum())
    return best, value
