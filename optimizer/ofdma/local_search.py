"""OFDMA: good ownerships by moving and swapping subcarriers.

A state is ``owner`` (M,), the device that owns each subcarrier or -1. Its value is the sum of `soft_values`, so that
the same search repairs an ownership that leaves a device short of bits and then improves it. One table per device holds
the value of its set with one member (or an empty slot) replaced by any other subcarrier (or by none); moves and swaps
are sums of two entries.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from optimizer.ofdma.model import OfdmaModel
from optimizer.ofdma.waterfilling import batches, list_members, soft_values
from optimizer.problem import BoolArray, FloatArray, IntArray
from optimizer.timing import time_is_up

SetValue = Callable[[IntArray, IntArray], FloatArray]
_LARGEST_TABLE = 20_000_000
_LARGEST_BLOCK = 20_000  # sets that are listed together
_LEAST_GAIN = 1e-13  # improvements below this, relative to the objective, are rounding


def owned_mask(owner: IntArray, num_devices: int) -> BoolArray:
    """Ownership as a mask: (M,) -> (K, M)."""
    return owner[None, :] == np.arange(num_devices)[:, None]


def owner_values(model: OfdmaModel, owner: IntArray) -> FloatArray:
    """Soft value of every device's set, (K,)."""
    device = np.arange(model.num_devices)
    return soft_values(model, device, list_members(owned_mask(owner, model.num_devices)))


@dataclass
class _Tables:
    """What replacing one subcarrier by another would change, kept up to date during the search.

    ``exchange`` (M, M + 1): change of the owner's value when subcarrier m gives way to m' (last column: to nothing);
    ``extend`` (K, M + 1): change of device k's value when m' joins its set. Infinite where that makes no sense.
    """

    exchange: FloatArray
    extend: FloatArray
    value: FloatArray


def _refresh(owner: IntArray, tables: _Tables, devices: IntArray, value: SetValue) -> bool:
    """Recompute the rows of ``devices``; False when time was up before all were done."""
    sets = sum((int((owner == k).sum()) + 1) * len(owner) for k in devices)
    blocks = np.array_split(devices, min(len(devices), 1 + sets // _LARGEST_BLOCK)) if len(devices) else []
    return all(_refresh_block(owner, tables, block, value, first=not n) for n, block in enumerate(blocks))


def _refresh_block(owner: IntArray, tables: _Tables, devices: IntArray, value: SetValue, *, first: bool) -> bool:
    """Recompute the rows of ``devices`` together; of the ``first`` block one batch is valued whatever the time."""
    tasks = [_neighbours(np.flatnonzero(owner == k), len(owner)) for k in devices]
    length = max(sets.shape[1] for sets, _, _ in tasks)
    lists = np.concatenate([np.pad(s, ((0, 0), (0, length - s.shape[1])), constant_values=-1) for s, _, _ in tasks])
    who = np.repeat(devices, [len(sets) for sets, _, _ in tasks])
    values = np.empty(len(who))
    for batch in batches(lists):
        if time_is_up() and not (first and batch.start == 0):
            return False
        values[batch] = value(who[batch], lists[batch])
    begin = 0
    for k, (sets, row, column) in zip(devices, tasks, strict=True):
        block = values[begin : begin + len(sets)]
        begin += len(sets)
        tables.value[k] = block[0]  # the first one is the set as it is
        table = np.full((len(owner) + 1,) * 2, np.inf)  # the last row is the empty slot, the last column nothing
        table[row, column] = block - block[0]
        members = owner == k
        tables.exchange[members], tables.extend[k] = table[:-1][members], table[-1]
    return True


def _neighbours(members: IntArray, num_subcarriers: int) -> tuple[IntArray, IntArray, IntArray]:
    """The set, then all with one member or the empty slot replaced; who leaves and who comes (M: nobody), (N,)."""
    free = np.setdiff1d(np.arange(num_subcarriers), members)
    slots = np.append(members, -1).astype(np.int32)  # the last slot is empty; these lists are long
    joins = (np.full(len(free) + 1, len(members)), np.append(-1, free))
    leaves = (np.arange(len(members)), np.full(len(members), -1))
    place, new = (np.concatenate(pair) for pair in zip(joins, leaves, strict=True))
    if len(members) * len(free) * len(slots) <= _LARGEST_TABLE:  # else only joining and leaving are looked at
        place = np.concatenate([place, np.repeat(np.arange(len(members)), len(free))])
        new = np.concatenate([new, np.tile(free, len(members))])
    sets = np.tile(slots, (len(place), 1))
    sets[np.arange(len(place)), place] = new
    leaving = np.append(members, num_subcarriers)[place]
    return sets, leaving, np.where(new >= 0, new, num_subcarriers)


def _best_moves(owner: IntArray, tables: _Tables) -> tuple[FloatArray, IntArray, IntArray]:
    """Changes of all swaps and moves: gain, subcarrier, and either the partner subcarrier or M + the new owner."""
    num_subcarriers, held = len(owner), owner >= 0
    exchange = tables.exchange[:, :num_subcarriers]
    swap = np.triu(np.where(held[:, None] & held[None, :], exchange + exchange.T, np.inf), 1)
    swap[np.tril_indices(num_subcarriers)] = np.inf
    release = np.where(held, tables.exchange[:, -1], 0.0)
    move = tables.extend[:, :num_subcarriers].T + release[:, None]  # (M, K)
    change = np.concatenate([swap, move], axis=1)  # (M, M + K)
    best = np.flatnonzero(change.ravel() < 0)
    best = best[np.argsort(change.ravel()[best], kind="stable")]
    return change.ravel()[best], best // change.shape[1], best % change.shape[1]


def _apply(owner: IntArray, tables: _Tables, least: float) -> IntArray:
    """Carry out the best changes that touch different devices; returns the devices touched."""
    gain, first, second = _best_moves(owner, tables)
    touched: set[int] = set()
    num_subcarriers = len(owner)
    for change, m, n in zip(gain, first, second, strict=True):
        if change > -least:
            break
        giver, taker = int(owner[m]), int(owner[n] if n < num_subcarriers else n - num_subcarriers)
        if giver in touched or taker in touched:
            continue
        if n < num_subcarriers:
            owner[n] = giver
        owner[m] = taker
        touched |= {giver, taker} - {-1}
    return np.array(sorted(touched), dtype=np.int64)


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
    owner = owner.copy()
    worth = value or partial(soft_values, model)
    shape = (model.num_subcarriers, model.num_subcarriers + 1)
    tables = _Tables(
        np.full(shape, np.inf), np.full((model.num_devices, shape[1]), np.inf), np.zeros(model.num_devices)
    )
    touched = np.arange(model.num_devices)
    for _ in range(max_rounds):
        tables.exchange[owner < 0] = np.inf
        if not _refresh(owner, tables, touched, worth):
            break
        touched = _apply(owner, tables, _LEAST_GAIN * float(np.abs(tables.value).sum()))
        if len(touched) == 0 or time_is_up():
            break
    device = np.arange(model.num_devices)
    return owner, worth(device, list_members(owned_mask(owner, model.num_devices)))


def round_shares(model: OfdmaModel, share: FloatArray, box_allowed: BoolArray | None = None) -> IntArray:
    """Give every subcarrier to the device with the largest share (K, M), never to a device that may not own it."""
    score = share if box_allowed is None else np.where(box_allowed, share, -np.inf)
    owner = np.argmax(score, axis=0).astype(np.int64)
    return np.where(np.isfinite(score.max(axis=0)), owner, -1)


def perturb(owner: IntArray, strength: int, rng: np.random.Generator) -> IntArray:
    """Exchange the owners of ``strength`` random pairs of subcarriers."""
    changed = owner.copy()
    for _ in range(strength):
        pair = rng.choice(len(owner), size=min(2, len(owner)), replace=False)
        changed[pair] = changed[pair[::-1]]
    return changed


def restart(
    model: OfdmaModel,
    owner: IntArray,
    rng: np.random.Generator,
    restarts: int,
    *,
    good_enough: float = -np.inf,
    shuffle: bool = False,
) -> tuple[IntArray, float]:
    """Perturb the best ownership, first ``owner`` (M,), and search again; keep what is better, until ``good_enough``.

    With ``shuffle`` every other restart begins at a random ownership instead, which finds what no exchange of a few
    pairs reaches. Returns the best ownership and its value.
    """
    best, value = owner, float(owner_values(model, owner).sum())
    for number in range(restarts):
        if value <= good_enough or time_is_up():
            break
        anew = shuffle and number % 2 == 1
        begin = rng.integers(0, model.num_devices, len(best)) if anew else perturb(best, 3, rng)
        trial, values = local_search(model, begin)
        if values.sum() < value:
            best, value = trial, float(values.sum())
    return best, value
