"""OFDMA: what a set of subcarriers is worth to a device, by water-filling.

Device k owns the set A. With payload S, time left tau and energy left eps, all affine in the dropout rate gamma, and
R_A(q) the best sum of log2(1 + p_m / inv_m) over A under total power q, A serves the device at gamma exactly when

    h_A(gamma) = tau R_A(q) - S/Delta >= 0,      q(gamma) = min(P, eps/tau).

h_A is concave and increasing (docs/ofdma.md), so the feasible rates are an interval [gamma_A, gamma_max], which Newton
steps from the left reach without ever passing gamma_A; where phi is convex with minimiser gamma0 the set's value is
V_k(A) = phi_k(max(gamma0_k, gamma_A)). Water-filling over subcarriers as in [Yu2006], see docs/ofdma.md.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from optimizer.ofdma.model import LN2, NO_CHANNEL, OfdmaModel, power_budget, uplink_time
from optimizer.problem import BoolArray, FloatArray, IntArray

_NEWTON_STEPS = 60
_BATCH = 200_000  # subcarriers in a batch of sets


@dataclass(frozen=True)
class SortedSets:
    """N sets of ``device`` (N,) prepared for water-filling: columns run from a set's best subcarrier to its worst.

    Everything is relative to ``best`` (N,), the best subcarrier's inv [W], so that thin rates keep their digits. With
    d = inv/best - 1: ``threshold`` (N, L) is the total power at which subcarrier j joins, sum_{i<=j} (d_j - d_i),
    infinite beyond the set's end; ``excess_sum`` and ``log_sum`` (N, L) are running sums of d and ln(1 + d).
    """

    device: IntArray
    best: FloatArray
    threshold: FloatArray
    excess_sum: FloatArray
    log_sum: FloatArray

    def level(self, power: FloatArray) -> tuple[IntArray, FloatArray, FloatArray]:
        """Subcarriers in use under a total power (N,) [W], their water level l, and sum ln(1 + d) over them."""
        relative = power / self.best
        used = np.maximum(np.sum(self.threshold < relative[:, None], axis=1), 1)
        return used, (relative + _at(self.excess_sum, used)) / used, _at(self.log_sum, used)


def _at(sums: FloatArray, used: IntArray) -> FloatArray:
    return np.asarray(np.take_along_axis(sums, used[:, None] - 1, axis=1)[:, 0])


def sort_members(model: OfdmaModel, device: IntArray, members: IntArray) -> SortedSets:
    """Prepare N sets of ``device`` (N,) given as ``members`` (N, L): subcarriers in any order, padded with -1."""
    rank = np.sort(model.rank[device[:, None], members], axis=1)  # -1 reads the last column: "no subcarrier"
    inverse = model.sorted_inv_snr[device[:, None], rank]  # (N, L)
    best = inverse[:, 0]
    excess = (inverse - best[:, None]) / best[:, None]
    excess_sum = np.cumsum(excess, axis=1)
    count = np.arange(1, inverse.shape[1] + 1)
    threshold = np.where(inverse < NO_CHANNEL, np.maximum(count * excess - excess_sum, 0.0), np.inf)
    return SortedSets(device, best, threshold, excess_sum, np.cumsum(np.log1p(excess), axis=1))


def owned_mask(owner: IntArray, num_devices: int) -> BoolArray:
    """Ownership as a mask: (M,) -> (K, M)."""
    return owner[None, :] == np.arange(num_devices)[:, None]


def list_members(owned: BoolArray) -> IntArray:
    """Rows of a mask (N, M) as lists of column numbers (N, L), L >= 1, padded with -1."""
    length = max(int(owned.sum(axis=1).max(initial=0)), 1)
    columns = np.argsort(~owned, axis=1, kind="stable")[:, :length]
    return np.where(np.take_along_axis(owned, columns, axis=1), columns, -1)


def waterfill_rate(sets: SortedSets, power: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Largest rate (N,) [bit/s/Hz] under a total ``power`` (N,) [W], and its derivative [bit/s/Hz/W].

    With j subcarriers in use and the water level best (1 + l), R ln 2 = j ln(1 + l) - sum ln(1 + d) and
    R' ln 2 = 1/(best (1 + l)). Zero for sets without a usable subcarrier.
    """
    used, level, log_sum = sets.level(power)
    usable = np.isfinite(sets.threshold[:, 0])
    rate = np.where(usable, np.maximum(used * np.log1p(level) - log_sum, 0.0) / LN2, 0.0)
    return rate, np.where(usable, 1.0 / (sets.best * (1.0 + level) * LN2), 0.0)


def waterfill_power(sets: SortedSets, rate: FloatArray) -> FloatArray:
    """Smallest total power [W] that carries ``rate`` (N,) [bit/s/Hz]; infinite where no finite power does."""
    count, finite, nats = np.arange(1, sets.threshold.shape[1] + 1), np.isfinite(sets.threshold), rate * LN2
    reached = np.divide(sets.threshold + sets.excess_sum, count, out=np.zeros_like(sets.threshold), where=finite)
    joins = np.where(finite, count * np.log1p(reached) - sets.log_sum, np.inf)  # nats at which subcarrier j joins
    used = np.maximum(np.sum(joins < nats[:, None], axis=1), 1)
    with np.errstate(over="ignore"):
        level = np.expm1((nats + _at(sets.log_sum, used)) / used)
        needed = sets.best * np.maximum(used * level - _at(sets.excess_sum, used), 0.0)
    return np.where(rate <= 0, 0.0, np.where(finite[:, 0], needed, np.inf))


def surplus_of(model: OfdmaModel, sets: SortedSets, gamma: FloatArray) -> tuple[FloatArray, FloatArray]:
    """h_A = tau R_A(q) - S/Delta and one of its supergradients in gamma, both (N,)."""
    device = sets.device
    tau = uplink_time(model, gamma, device)
    power = power_budget(model, gamma, device)
    rate, per_watt = waterfill_rate(sets, power)
    capped = power >= model.power[device]  # the power cap binds, not the energy
    by_energy = per_watt * np.where(capped, 0.0, model.joule1[device] - power * model.tau1[device])
    surplus = tau * rate - (model.bits0[device] - model.bits1[device] * gamma)
    return surplus, model.tau1[device] * rate + by_energy + model.bits1[device]


def _at_most(model: OfdmaModel, sets: SortedSets) -> tuple[BoolArray, FloatArray]:
    """Whether each set serves its device at gamma_max, and what share of the payload it cannot carry there; (N,)."""
    high, bits = model.rate_high[sets.device], model.bits0[sets.device]
    surplus = surplus_of(model, sets, high)[0]
    served = (model.rate_low[sets.device] <= high) & (surplus >= -1e-12 * bits)
    return served, np.where(served, 0.0, np.maximum(-surplus, 0.0) / np.maximum(bits, 1e-300))


def batches(members: IntArray) -> Iterator[slice]:
    """Parts of N sets (N, L) whose numbers fit the cache."""
    step = max(_BATCH // max(members.shape[1], 1), 1)
    return (slice(begin, begin + step) for begin in range(0, len(members), step))


def _prepared(model: OfdmaModel, device: IntArray, members: IntArray) -> Iterator[tuple[slice, SortedSets]]:
    return ((part, sort_members(model, device[part], members[part])) for part in batches(members))


def serves_at(model: OfdmaModel, device: IntArray, members: IntArray, gamma: FloatArray) -> BoolArray:
    """Whether N sets (lists, as in `set_rates`) serve their devices at ``gamma`` (N,); much cheaper than `set_rates`.

    Rounding is resolved in favour of yes.
    """
    answer = gamma >= model.rate_low[device]
    for part, sets in _prepared(model, device, members):
        rate = np.clip(gamma[part], model.rate_low[sets.device], model.rate_high[sets.device])
        answer[part] &= surplus_of(model, sets, rate)[0] >= -1e-9 * model.bits0[sets.device]
    return answer


def _smallest_rates(model: OfdmaModel, sets: SortedSets) -> FloatArray:
    """Smallest rate (N,) in the range at which each set serves, infinite if none; Newton on h_A from the left end."""
    never, high = ~_at_most(model, sets)[0], model.rate_high[sets.device]
    gamma = np.minimum(model.rate_low[sets.device], high)
    for _ in range(_NEWTON_STEPS):
        surplus, slope = surplus_of(model, sets, gamma)
        step = np.divide(-surplus, slope, out=np.zeros_like(gamma), where=(surplus < 0) & (slope > 0))
        moved = np.minimum(gamma + step, high)
        if np.all((moved - gamma <= 1e-15) | never):
            break
        gamma = moved
    return np.where(never, np.inf, gamma)


def set_rates(model: OfdmaModel, device: npt.ArrayLike, members: npt.ArrayLike) -> FloatArray:
    """Dropout rate max(gamma0, gamma_A) of N sets of ``device`` (N,), infinite where the set does not serve it.

    ``members`` is a mask (N, M) or subcarrier numbers (N, L) padded with -1.
    """
    who, sets = np.asarray(device, dtype=np.int64), np.asarray(members)
    lists = list_members(sets) if sets.dtype == np.bool_ else sets
    return np.concatenate([np.empty(0), *(_smallest_rates(model, part) for _, part in _prepared(model, who, lists))])


def fleet_rates(model: OfdmaModel, owner: IntArray) -> FloatArray:
    """Dropout rates (K,) that the devices reach with what they own (M,), infinite where that does not serve them."""
    return set_rates(model, model.devices, owned_mask(owner, model.num_devices))


def set_values(model: OfdmaModel, device: npt.ArrayLike, members: npt.ArrayLike) -> FloatArray:
    """V_k(A) of N sets: phi_k at the rate of `set_rates`, infinite where the set does not serve the device."""
    return model.value(set_rates(model, device, members), np.asarray(device, dtype=np.int64))


def shortage(model: OfdmaModel, device: IntArray, members: IntArray) -> FloatArray:
    """Share of the payload that N sets (lists, as in `set_rates`) cannot carry at gamma_max; 0 for sets that serve."""
    return np.concatenate([np.empty(0), *(_at_most(model, sets)[1] for _, sets in _prepared(model, device, members))])


def soft_values(model: OfdmaModel, device: IntArray, members: IntArray) -> FloatArray:
    """V_k(A) of N sets (lists, as in `set_rates`), continued to sets that do not serve: finite and above all that do.

    Those cost phi_k(gamma_max) plus a large price on the missing bits.
    """
    values = set_values(model, device, members)
    short = ~np.isfinite(values)
    if short.any():
        most = model.value(model.rate_high)
        price = 1.0 + 10.0 * float(np.abs(most).sum())
        values[short] = most[device[short]] + price * (1.0 + shortage(model, device[short], members[short]))
    return values
