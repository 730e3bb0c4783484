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
from optimizer.ofdma.local_search import local_search, owned_mask
from optimizer.ofdma.model import OfdmaModel
from optimizer.ofdma.waterfilling import list_members, set_rates, shortage, soft_values
from optimizer.problem import BoolArray, FloatArray, IntArray
from optimizer.timing import time_is_up

_SMALL = 8  # subcarriers up to which the heaviest set is found exactly
_TRIALS = 60  # searches for an ownership that the repair may spend


@dataclass(frozen=True)
class Fit:
    """Devices that fit together, (K,) of the full model, and an ownership of the restricted model that serves them."""

    admission: Admission
    model: OfdmaModel
    owner: IntArray


def greedy_owner(model: OfdmaModel, *, in_time: bool = False) -> IntArray:
    """Let the neediest device take its best free subcarrier until none is left (M,) or time is up.

    Then all must be served already, so that they are admitted, unless ``in_time`` says that nothing depends on it.
    """
    best_first = np.argsort(model.rank[:, :-1], axis=1, kind="stable")  # (K, M) subcarriers by channel
    owner = np.full(model.num_subcarriers, -1)
    members = np.full((model.num_devices, model.num_subcarriers), -1)
    count, place = np.zeros(model.num_devices, dtype=np.int64), np.zeros(model.num_devices, dtype=np.int64)
    need = soft_values(model, np.arange(model.num_devices), members[:, :1])
    most = model.value(np.full(model.num_devices, model.rate_high))  # of a set that serves; all others are above it
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
    device = np.arange(model.num_devices)
    ranked = model.rank[:, :-1]
    low, high = np.full(model.num_devices, -1), np.full(model.num_devices, model.num_subcarriers + 1)
    while np.any(high - low > 1):
        middle = (low + high) // 2
        serves = np.isfinite(set_rates(model, device, ranked < middle[:, None]))
        low, high = np.where(serves, low, middle), np.where(serves, middle, high)
    return high


def _find_owner(model: OfdmaModel, in_time: bool) -> IntArray | None:
    """Ownership that serves every device of ``model``, None when the search finds none."""
    device, missing = np.arange(model.num_devices), partial(shortage, model)
    owner = greedy_owner(model, in_time=in_time)
    if missing(device, list_members(owned_mask(owner, model.num_devices))).max() > 0:
        owner, left = local_search(model, owner, value=missing)
        if left.max() > 0:
            return None
    return owner


class _Packing:
    """Grows and exchanges a set of devices while an ownership for it is found; counts its trials."""

    def __init__(self, model: OfdmaModel, need: IntArray) -> None:
        self.model, self.need, self.trials = model, need, 0
        self.chosen = np.zeros(model.num_devices, dtype=bool)
        self.owner: IntArray | None = None

    def take(self, chosen: BoolArray) -> bool:
        """Adopt ``chosen`` when an ownership for it is found."""
        if not chosen.any() or self.need[chosen].sum() > self.model.num_subcarriers:
            return False
        self.trials += 1
        owner = _find_owner(self.model.subset(chosen), in_time=self.owner is not None)
        if owner is None:
            return False
        self.chosen, self.owner = chosen, owner
        return True

    def add(self, order: IntArray) -> None:
        """Add devices in the given order while they fit."""
        for k in order:
            if not self.chosen[k] and self.trials < _TRIALS and not time_is_up():
                self.take(self.chosen | (np.arange(len(self.chosen)) == k))

    def exchange(self, weight: FloatArray, candidates: IntArray) -> None:
        """Replace a scheduled device by a heavier one that sits out, heaviest first."""
        for k in candidates:
            lighter = np.flatnonzero(self.chosen & (weight < weight[k]))
            for j in lighter[np.argsort(weight[lighter], kind="stable")]:
                if self.chosen[k] or self.trials >= _TRIALS or time_is_up():
                    break
                trial = self.chosen.copy()
                trial[[j, k]] = False, True
                self.take(trial)


def _pack(model: OfdmaModel, able: BoolArray) -> _Packing:
    """Devices of ``able`` (K,) that are found to fit together."""
    need = fewest_subcarriers(model)
    weight = model.problem.num_examples[model.index]
    packing = _Packing(model, need)
    if packing.take(able):
        return packing
    density = np.where(able, weight / np.maximum(need, 1), -np.inf)
    order = np.argsort(-density, kind="stable")[: int(able.sum())]
    fits = order[np.cumsum(need[order]) <= model.num_subcarriers]
    low, high = 0, len(fits) + 1  # the longest prefix that fits, by halving
    while high - low > 1 and not (low > 0 and time_is_up()):
        middle = (low + high) // 2
        prefix = np.isin(np.arange(model.num_devices), fits[:middle])
        low, high = (middle, high) if packing.take(prefix) else (low, middle)
    heavy = np.flatnonzero(able)[np.argsort(-weight[able], kind="stable")]
    packing.add(heavy)
    packing.exchange(weight, heavy)
    packing.add(heavy)
    return packing


def _pack_exactly(model: OfdmaModel, able: BoolArray) -> tuple[BoolArray, IntArray]:
    """Heaviest devices that fit together and an ownership for them, by dynamic programming over sets of subcarriers.

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
            owner[(code >> np.arange(width)) & 1 == 1] = k
    place = np.cumsum(taken) - 1
    return taken, np.where(owner >= 0, place[owner], -1)


def admit_ofdma(model: OfdmaModel, owner: IntArray | None = None) -> Fit:
    """Choose who takes part; an earlier ``owner`` (M,) is kept when it serves everyone who can be served.

    ``admission.exact`` says that nobody who could be served alone sits out.
    """
    able = np.isfinite(set_rates(model, np.arange(model.num_devices), np.ones(model.inv_snr.shape, dtype=bool)))
    chosen, found = able, None
    if owner is not None and able.any():
        place = np.full(model.num_devices + 1, -1)
        place[np.flatnonzero(able)] = np.arange(int(able.sum()))
        given = place[owner]
        part = model.subset(able)
        served = set_rates(part, np.arange(part.num_devices), owned_mask(given, part.num_devices))
        found = given if np.all(np.isfinite(served)) else None
    if found is None and able.any():
        packing = _pack(model, able)
        chosen, found = packing.chosen, packing.owner
        if not np.array_equal(chosen, able) and model.num_subcarriers <= _SMALL:
            chosen, found = _pack_exactly(model, able)
    reasons = _reasons(model, able, chosen)
    nobody = np.full(model.num_subcarriers, -1)
    admission = Admission(chosen, reasons, bool(np.all(chosen == able)))
    return Fit(admission, model.subset(chosen), nobody if found is None else found)


def _reasons(model: OfdmaModel, able: BoolArray, chosen: BoolArray) -> tuple[str, ...]:
    """Why each device sits out, "" for those that take part."""
    if chosen.all():
        return ("",) * model.num_devices
    at, size = f"at dropout {model.rate_high:.3g}", model.num_subcarriers
    alone = individual_reasons(model.problem, np.full(model.num_devices, model.rate_high))
    need = fewest_subcarriers(model)

    def reason(k: int) -> str:
        if chosen[k]:
            return ""
        if not able[k]:
            return alone[k] or f"all {size} subcarriers together carry too little for it {at}"
        return f"does not fit beside the others: needs at least {need[k]} of {size} subcarriers {at}"

    return tuple(map(reason, range(model.num_devices)))
