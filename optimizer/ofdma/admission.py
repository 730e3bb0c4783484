"""OFDMA: who takes part when not everyone can be served, and a first ownership that serves them.

A device needs least at gamma_max, so a set of devices fits when some ownership leaves nobody short of bits there. That
is itself a hard packing problem; the rule here is greedy plus repair: the devices with the most examples per subcarrier
needed come in first, then others are added and exchanged for lighter ones as long as the search finds an ownership for
all. With at most eight subcarriers, where that rule was seen to miss 7 % of the weight, the heaviest set is found
exactly instead.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np

from optimizer.fdma.admission import Admission, individual_reasons
from optimizer.ofdma.local_search import local_search
from optimizer.ofdma.model import OfdmaModel
from optimizer.ofdma.waterfilling import fleet_rates, list_members, owned_mask, set_rates, shortage, soft_values
from optimizer.problem import BoolArray, IntArray
from optimizer.timing import time_is_up

_SMALL = 8  # subcarriers up to which the heaviest set is found exactly
_TRIALS = 60  # searches for an ownership that the repair may spend


@dataclass(frozen=True)
class Fit:
    """Devices that fit together, (K,) of the full model, and an ownership of the restricted model that serves them."""

    admission: Admission
    model: OfdmaModel
    owner: IntArray


def served_alone(model: OfdmaModel) -> BoolArray:
    """Whether each device could be served with all subcarriers to itself, (K,)."""
    return np.isfinite(set_rates(model, model.devices, np.ones(model.inv_snr.shape, dtype=bool)))


def greedy_owner(model: OfdmaModel, *, in_time: bool = False) -> IntArray:
    """Let the neediest device take its best free subcarrier until none is left (M,) or time is up.

    Then all must be served already, so that they are admitted, unless ``in_time`` says that nothing depends on it.
    """
    best_first = np.argsort(model.rank[:, :-1], axis=1, kind="stable")  # (K, M) subcarriers by channel
    owner = np.full(model.num_subcarriers, -1)
    members = np.full((model.num_devices, model.num_subcarriers), -1)
    count, place = np.zeros(model.num_devices, dtype=np.int64), np.zeros(model.num_devices, dtype=np.int64)
    need = soft_values(model, model.devices, members[:, :1])
    most = model.value(model.rate_high)  # of a set that serves; all others are above it
    for _ in range(model.num_subcarriers):
        if time_is_up() and (in_time or np.all(need <= most)):
            break
        k = int(np.argmax(need))
        while owner[best_first[k, place[k]]] >= 0:
            place[k] += 1
        m = best_first[k, place[k]]
        owner[m], members[k, count[k]] = k, m
        count[k] += 1
        need[k] = soft_values(model, np.array([k]), members[k : k + 1, : count[k]])[0]
    return owner


def fewest_subcarriers(model: OfdmaModel) -> IntArray:
    """Smallest number of its own best subcarriers that serves each device at gamma_max; M + 1 where all are too few."""
    low, high = np.full(model.num_devices, -1), np.full(model.num_devices, model.num_subcarriers + 1)
    while np.any(high - low > 1):
        middle = (low + high) // 2
        serves = np.isfinite(set_rates(model, model.devices, model.rank[:, :-1] < middle[:, None]))
        low, high = np.where(serves, low, middle), np.where(serves, middle, high)
    return high


def _pack(model: OfdmaModel, able: BoolArray) -> tuple[BoolArray, IntArray]:
    """Devices of ``able`` (K,) that are found to fit together, and who of them owns what."""
    weight, need, device = model.problem.num_examples[model.index], fewest_subcarriers(model), model.devices
    chosen, found, trials = np.zeros_like(able), np.full(model.num_subcarriers, -1), 0

    def enough() -> bool:
        return bool(chosen.any()) and (trials >= _TRIALS or time_is_up())

    def take(wanted: BoolArray) -> bool:
        """Choose ``wanted`` when that brings somebody in and an ownership is found, in time and trials."""
        nonlocal chosen, found, trials
        if enough() or not (wanted & ~chosen).any() or need[wanted].sum() > model.num_subcarriers:
            return False
        trials += 1
        part = model.subset(wanted)
        missing, owner = partial(shortage, part), greedy_owner(part, in_time=bool(chosen.any()))
        if missing(part.devices, list_members(owned_mask(owner, part.num_devices))).max() > 0:
            owner, left = local_search(part, owner, value=missing)
            if left.max() > 0:
                return False
        chosen, found = wanted, owner
        return True

    if take(able):
        return chosen, found
    density = np.where(able, weight / np.maximum(need, 1), -np.inf)
    order = np.argsort(-density, kind="stable")[: int(able.sum())]
    fits = order[np.cumsum(need[order]) <= model.num_subcarriers]
    low, high = 0, len(fits) + 1  # the longest prefix that fits, by halving
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if take(np.isin(device, fits[:middle])) else (low, middle)
    heavy = np.flatnonzero(able)[np.argsort(-weight[able], kind="stable")]
    for k in heavy:
        take(chosen | (device == k))
    for k in heavy:  # in place of a lighter one
        lighter = np.flatnonzero(chosen & (weight < weight[k]))
        for j in lighter[np.argsort(weight[lighter], kind="stable")]:
            if chosen[k] or enough():
                break
            take((chosen | (device == k)) & (device != j))
    for k in heavy:
        take(chosen | (device == k))
    return chosen, found


def _pack_exactly(model: OfdmaModel, able: BoolArray) -> tuple[BoolArray, IntArray]:
    """Heaviest devices that fit together and who of all owns what, by dynamic programming over sets of subcarriers.

    best[S] is the most weight that the subcarriers S can serve; device k is left out, or takes a set A of S that serves
    it: best_k[S] = max(best_(k-1)[S], n_k + max_A best_(k-1)[S - A]).
    """
    width = model.num_subcarriers
    codes = np.arange(1 << width)
    sets = (codes[:, None] >> np.arange(width)) & 1 == 1  # (2^M, M)
    weight = model.problem.num_examples[model.index]
    best, chosen = np.zeros(len(codes)), np.zeros((model.num_devices, len(codes)), dtype=np.int64)
    for k in np.flatnonzero(able).tolist():
        serves = np.flatnonzero(np.isfinite(set_rates(model, np.full(len(codes), k), sets)))
        before = best.copy()
        for code in serves.tolist():
            free = codes[(codes & code) == 0]
            gain = before[free] + weight[k]
            better = gain > best[free | code]
            best[(free | code)[better]], chosen[k, (free | code)[better]] = gain[better], code
    taken, left, owner = np.zeros(model.num_devices, dtype=bool), len(codes) - 1, np.full(width, -1)
    for k in reversed(range(model.num_devices)):
        code = int(chosen[k, left])
        if code or (able[k] and np.isfinite(set_rates(model, [k], [[-1]]))[0]):  # or it has nothing to send
            taken[k], left = True, left & ~code
            owner[sets[code]] = k
    return taken, owner


def admit_ofdma(model: OfdmaModel, owner: IntArray | None = None) -> Fit:
    """Choose who takes part; an earlier ``owner`` (M,) is kept when it serves everyone who can be served.

    ``admission.exact`` says that nobody who could be served alone sits out.
    """
    able = served_alone(model)
    chosen, found = able, np.full(model.num_subcarriers, -1)
    if owner is not None and able.any() and np.isfinite(fleet_rates(model, owner)[able]).all():
        found = _renumbered(owner, able)
    elif able.any():
        chosen, found = _pack(model, able)
        if not np.array_equal(chosen, able) and model.num_subcarriers <= _SMALL:
            chosen, owner = _pack_exactly(model, able)
            found = _renumbered(owner, chosen)
    admission = Admission(chosen, _reasons(model, able, chosen), np.array_equal(chosen, able))
    return Fit(admission, model.subset(chosen), found)


def _renumbered(owner: IntArray, chosen: BoolArray) -> IntArray:
    """An ownership in the numbers of the chosen devices, without what others own."""
    return np.where((owner >= 0) & chosen[owner], (np.cumsum(chosen) - 1)[owner], -1)


def _reasons(model: OfdmaModel, able: BoolArray, chosen: BoolArray) -> tuple[str, ...]:
    if chosen.all():
        return ("",) * model.num_devices
    at, size = f"at dropout {model.problem.max_dropout_rate:.3g}", model.num_subcarriers
    alone, need = individual_reasons(model.problem, model.rate_high), fewest_subcarriers(model)

    def reason(k: int) -> str:
        if chosen[k]:
            return ""
        if not able[k]:
            return alone[k] or f"all {size} subcarriers together carry too little for it {at}"
        return f"does not fit beside the others: needs at least {need[k]} of {size} subcarriers {at}"

    return tuple(map(reason, range(model.num_devices)))
