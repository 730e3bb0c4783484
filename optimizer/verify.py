"""Prove what a solution claims from the two files alone: none of the solver's code, every number an enclosure.

    python -m optimizer verify PROBLEM.json SOLUTION.json        exit status: 0 proven, 1 refused, 2 unusable input

Quantities are balls of Arb (python-flint), rounded outward. Bounds rest on two inequalities that hold for any
parameters (docs/certificates.md proves them); these come from the certificate or are guessed here, and a bad guess only
proves less:

    FDMA    X (ln(1+y) - y/(1+y)) >= S ln2 - (g/N0) eps/(1+y)    bandwidth-time X, payload S, energy eps, any y > 0
    OFDMA   phi_k >= psi(lambda, eta) - sum over its subcarriers of D_m(lambda, eta)    any lambda, eta >= 0

Both leave phi + (a S - b eps)/tau, a function of one dropout rate, which a tangent bounds from below.
"""

from __future__ import annotations

import bisect as search
import itertools
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from flint import arb, ctx

from optimizer.verify_input import INFINITE, ONE, ZERO, Device, Refused, Unusable, bisect, low, number, numbers, read

PROVEN, REFUSED, UNUSABLE = 0, 1, 2
TOLERANCE = 1e-9  # relative excess of a resource, and of a claimed bound, that counts as rounding
REPORTED = 1e-6  # relative difference between a reported figure and the enclosed one
_BITS, _MOST_STEPS = 128, 200_000
# Multiples of the price on rate and of the water level, and how many sets may be left: a few, then many.
_STAR = ([(1.0, 1.0), (1.0, 0.8), (1.0, 1.25), (0.8, 0.8), (1.25, 1.25)], 3000)
_GRID = ([(s, s / v) for s in (0.5, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0) for v in (0.6, 0.8, 1.0, 1.25, 1.6)], 400_000)
with ctx.workprec(_BITS):
    _LN2 = arb.const_log2()
Json = Mapping[str, Any]
Ends = Sequence[Any]


class Proof(NamedTuple):
    """Objective and lower bound for the same devices, constraints that hold and their smallest margin, who sits out."""

    objective: float
    lower_bound: float
    rows: int
    margin: float
    admission: str


def rows(problem: Json, solution: Json, fleet: list[Device]) -> Iterator[tuple[str, arb, arb]]:
    """Yield every constraint, value <= limit, and every reported figure as another; ownership is refused on the way."""
    count, width, ofdma = len(fleet), len(fleet[0].snr), problem["access"] == "ofdma"
    held: list[list[int]] = [[] if ofdma else [0] for _ in fleet]
    if ofdma and len(solution["subcarrier_owner"]) != width:
        raise Unusable(f"subcarrier_owner must have {width} entries")
    for m, owner in enumerate(solution["subcarrier_owner"] if ofdma else []):
        if owner is not None and not 0 <= number([owner], 0, kind=int) < count:
            raise Refused(f"subcarrier {m} is owned by {owner}, which is no device")
        held[owner or 0] += [m] if owner is not None else []
    hertz = [float(fleet[0].width)] * count if ofdma else numbers(solution, "bandwidth_hz", count, 0.0)
    for k, device in enumerate(fleet):
        row = solution["tx_power_w"][k]
        power = numbers({"tx_power_w": row if ofdma else [row]}, "tx_power_w", width, 0.0)
        if any(power[m] > 0 for m in set(range(width)) - set(held[k])):
            raise Refused(f"device {k} sends on a subcarrier that it does not own")
        if not solution["scheduled"][k]:
            if any(power) or (held[k] and (ofdma or hertz[k] > 0)):
                raise Refused(f"device {k} sits out and yet holds power, bandwidth or subcarriers")
            continue
        gamma, hz, spent = arb(number(solution["dropout_rate"], k)), arb(hertz[k]), sum(map(arb, power), ZERO)
        yield f"device {k}: the dropout rate is above its limit", gamma, arb(device.top)
        yield f"device {k}: the dropout rate is below 0", 1 - gamma, ONE
        yield f"device {k}: the transmit power exceeds its cap", spent, device.power
        bits, tau, energy = device.at(gamma)
        used = (m for m in held[k] if power[m] * hertz[k] > 0)
        nats = sum((hz * (1 + arb(power[m]) * device.snr[m] / hz).log() for m in used), ZERO)
        sending = ZERO if bits <= 0 else bits * _LN2 / nats if nats > 0 else INFINITE
        cost = {"latency_s": device.deadline - tau + sending, "energy_j": device.budget - energy + spent * sending}
        yield f"device {k}: the latency exceeds the deadline", cost["latency_s"], device.deadline
        yield f"device {k}: the energy exceeds its budget", cost["energy_j"], device.budget
        for name, value in cost.items():
            said = arb(number(solution[name], k))
            yield f"device {k}: {name} is not what is reported", abs(said - value) - 1e-12, REPORTED * abs(value)
    if not ofdma:
        total = arb(number(problem, "total_bandwidth_hz", 1e-300))
        yield "the bandwidths exceed the band", sum(map(arb, hertz), ZERO), total


def guess_snr(device: Device, gamma: arb) -> arb:
    """Received SNR y at the smallest bandwidth for ``gamma``, exact as a number and only a guess; 0 where there is none."""
    bits, tau, energy = device.at(gamma)
    least = energy if energy < device.power * tau else device.power * tau
    ratio = (bits * _LN2 / (least * device.snr[0])).mid() if least > 0 and device.snr[0] > 0 else ZERO
    y = (-(-ratio * (-ratio).exp()).lambertw(-1) / ratio - 1).mid() if 0 < ratio < 1 else ZERO
    return y if y.is_finite() and y > 0 else ZERO


def smallest_band(device: Device, gamma: arb) -> arb:
    """Lower bound [Hz] of the bandwidth that serves a device at ``gamma`` or below; infinite where surely none does."""
    bits, tau, energy = device.at(gamma)
    needed, carried = bits * _LN2, device.snr[0] * energy.min(device.power * tau)
    if tau < 0 or energy < 0 or (bits > 0 and (tau <= 0 or needed >= carried)):
        return INFINITE
    y = guess_snr(device, gamma)
    found = (needed - carried / (1 + y)) / (((1 + y).log() - y / (1 + y)) * tau) if y > 0 and tau > 0 else ZERO
    return found if found > 0 else ZERO


def fdma_floor(device: Device, price: arb, at: arb, ends: Ends) -> arb:
    """Lower bound of phi + price b over the dropout rates in ``ends``, nearly attained at ``at``."""
    best = device.floor(ZERO, ZERO, at, ends)  # the bandwidth is not negative

    def weights(gamma: arb) -> tuple[arb, arb]:
        y = guess_snr(device, gamma)
        scale = price / ((1 + y).log() - y / (1 + y)) if y > 0 else ZERO
        return scale * _LN2, scale * device.snr[0] / (1 + y)

    if price > 0:
        best = best.max(device.floor(*weights(at), at, ends))
        attained = device.phi(at)[0] + price * smallest_band(device, at)
        if not best >= attained - 1e-12 * abs(attained):  # so steep that no float is close to the minimiser
            near = at * (1 - arb(1e-13)), at * (1 + arb(1e-13))
            near = bisect(lambda rate: weights(rate)[0] == 0 or device.slope(rate, *weights(rate))[0] < 0, near, 50)
            best = best.max(device.floor(*weights(near[1]), near[1], ends))
    return best


def fdma_bound(problem: Json, fleet: list[Device], certificate: Json) -> arb:
    """Weak duality: the sum of the least phi + mu b over every device's dropout rates, less mu times the band."""
    price, total = arb(number(certificate, "price_per_hz", 0.0)), arb(number(problem, "total_bandwidth_hz"))
    least = [smallest_band(device, arb(device.top)) for device in fleet]
    together, bound = sum(least, ZERO), -price * total
    for device, rate, own in zip(fleet, numbers(certificate, "dropout_rate", len(fleet), 0.0), least, strict=True):
        # No device can hold more than what the others leave at their least, and a lower rate needs more bandwidth.
        start = arb(rate * (1 - 1e-12))
        reached = rate > 0 and smallest_band(device, start) > total - (together - own)
        bound += fdma_floor(device, price, arb(rate), (start if reached else ZERO, device.top))
    return bound


def carries_too_little(device: Device, members: Sequence[int], gamma: arb) -> bool:
    """Whether it is proven that ``members`` do not serve the device at ``gamma`` or below: duality at a water level."""
    bits, tau, energy = device.at(gamma)
    if not (tau > 0 and energy > 0 and device.power > 0):
        return bool(tau < 0 or energy < 0 or (bits > 0 and (tau <= 0 or energy <= 0 or device.power <= 0)))
    budget, level, running = (energy / tau).min(device.power), ZERO, ZERO
    inverse = sorted((device.width / device.snr[m] for m in members if device.snr[m] > 0), key=arb.mid)
    for j, ball in enumerate(inverse, 1):  # level: where the budget fills the best j subcarriers
        running += ball
        if ((budget + running) / j).mid() <= ball:
            break
        level = ((budget + running) / j).mid()
    nats = sum(((level / ball).log() - 1 + ball / level for ball in inverse if not ball >= level), ZERO)
    return bool(tau * device.width * (nats + budget / level if level > 0 else nats) < bits * _LN2)


def price_pairs(device: Device, pairs: list[tuple[float, float]], ends: Ends) -> tuple[Any, Any]:
    """Lower bounds of psi (P,) and upper bounds of D (P, M) for prices (lambda, eta) on rate and power, as floats."""
    inverse = [device.width / snr if snr > 0 else INFINITE for snr in device.snr]
    logs = [ball.log() if ball.is_finite() else ball for ball in inverse]
    psi, worth = np.zeros(len(pairs)), np.zeros((len(pairs), len(inverse)))
    for i, (lam, eta) in enumerate(pairs):
        a, b = arb(lam) / device.width, arb(eta)
        at = bisect(lambda rate, a=a, b=b: not device.at(rate)[1] > 0 or device.slope(rate, a, b)[0] < 0, ends)[1]
        psi[i] = low(device.floor(a, b, at, ends))
        rate, level = arb(lam) / _LN2, arb(lam) / (_LN2 * b) if eta > 0 else ZERO
        for m, (ball, log) in enumerate(zip(inverse, logs, strict=True)):
            if not ball >= level:
                worth[i, m] = max(-low(b * (level - ball) - rate * (level.log() - log)), 0.0)
    return psi, worth


def cheap_sets(device: Device, price: Any, items: Any, prices: Any, ends: Ends, target: float, effort: Any) -> Any:
    """Every set A of ``items``, a row of bool, that no price pair shows to cost at least ``target``; None if too many.

    A sum of n floats is off by less than n 2^-53 times the sum of absolute values, which is taken off first.
    """
    pairs = [(0.0, 0.0), *((prices[0] * a, prices[1] * b) for a, b in effort[0] if min(prices) > 0)]
    psi, worth = price_pairs(device, pairs, ends)
    reduced, count = np.nextafter(price[items] - worth[:, items], -np.inf), len(items)
    state = (psi - 2.3e-16 * (count + 2) * (np.abs(psi) + np.abs(reduced).sum(axis=1)))[None, :]
    order = np.argsort(-np.abs(reduced).max(axis=0), kind="stable")
    after = np.minimum(reduced[:, order], 0.0)[:, ::-1].cumsum(axis=1)[:, ::-1]  # what the undecided can still take off
    picks = np.zeros((1, count), dtype=bool)
    for j, m in enumerate(order):
        both, chosen = np.concatenate([state, state + reduced[:, m]]), np.concatenate([picks, picks])
        chosen[len(picks) :, m] = True
        keep = (both + (after[:, j + 1] if j + 1 < count else 0.0)).max(axis=1) < target
        state, picks = both[keep], chosen[keep]
        if len(picks) > effort[1]:
            return None
    return picks


def floor_holds(device: Device, price: Any, items: Any, prices: Any, ends: Ends, target: float) -> bool:
    """Whether it is proven that no set A of the subcarriers ``items`` costs phi + mu(A) < ``target`` at rates in ``ends``."""
    sets = cheap_sets(device, price, items, prices, ends, target, _STAR)
    sets = cheap_sets(device, price, items, prices, ends, target, _GRID) if sets is None else sets
    for row in [] if sets is None else sets:
        members = items[row].tolist()
        left = arb(target) - sum((arb(price[m]) for m in members), ZERO)
        if not device.phi(arb(ends[0]))[0] >= left:  # the set must not serve a rate at which phi is below what is left
            inside, outside = bisect(lambda gamma, left=left: device.phi(gamma)[0] < left, ends)
            if not carries_too_little(device, members, inside if device.phi(outside)[0] >= left else outside):
                return False
    return sets is not None


def tree_bound(fleet: list[Device], node: Json, allowed: Any, ends: list[Any], claimed: float) -> arb:
    """OFDMA: the least bound of a node's parts, or its own; devices may own ``allowed`` (K, M) at rates in ``ends``."""
    boxes: list[tuple[Any, list[Any]]] = []
    if "parts" not in node:
        return leaf_bound(fleet, node, allowed, ends)[0]
    bound, allowed = leaf_bound(fleet, node["narrow"], allowed, ends, claimed)
    if "owners" in node:  # one part per group of devices that may own the subcarrier
        m = int(number(node, "subcarrier", 0.0, int))
        if not set(np.flatnonzero(allowed[:, m]).tolist()) <= {k for group in node["owners"] for k in group}:
            raise Refused(f"the parts leave out an owner of subcarrier {m}")
        for group in node["owners"]:
            inner = allowed.copy()
            inner[~np.isin(np.arange(len(fleet)), group), m] = False
            boxes.append((inner, ends))
    elif "device" not in node:  # nothing but narrowed
        boxes = [(allowed, ends)]
    else:  # below and above a dropout rate
        k, at = int(number(node, "device", 0.0, int)), number(node, "at")
        boxes = [(allowed, [*ends[:k], pair, *ends[k + 1 :]]) for pair in ((ends[k][0], at), (at, ends[k][1]))]
    parts = zip(node["parts"], boxes, strict=True)
    inner = min((tree_bound(fleet, part, *box, claimed).lower() for part, box in parts), default=-INFINITE)
    return bound.max(arb(claimed).min(inner))  # what was left out costs at least what is claimed


def leaf_bound(
    fleet: list[Device], leaf: Json, allowed: Any, ends: list[Any], claimed: float | None = None
) -> tuple[arb, Any]:
    """Floors less prices, or infinite where a device cannot be served with what it may own.

    Also returns who may own what (K, M) in an allocation that costs less than ``claimed``: what is in a set that may
    cost less than its floor and what is missing to the claim, and not in all such sets of another device.
    """
    if "impossible" in leaf:
        k = int(number(leaf, "impossible", 0.0, int))
        if not carries_too_little(fleet[k], np.flatnonzero(allowed[k]).tolist(), arb(ends[k][1])):
            raise Refused(f"a part is said to be empty, but device {k} may be served in it")
        return INFINITE, allowed
    price, count = np.array(numbers(leaf, "price", allowed.shape[1], 0.0)), len(fleet)
    floors, rate, power = (numbers(leaf, key, count) for key in ("floor", "rate_price", "power_price"))
    slack = 1e-10 * abs(math.fsum(floors)) / count
    bound = sum((arb(value - slack) for value in floors), ZERO) - sum(map(arb, price.tolist()), ZERO)
    narrow, missing = allowed.copy(), 0.0 if claimed is None else max(-low(bound - claimed), 0.0) + 1e-12 * abs(claimed)
    for k, device in enumerate(fleet):
        # Resources limit a rate from below only, so nothing is gained where phi still falls.
        rising = bisect(lambda gamma, device=device: device.phi(gamma)[1] < 0, (0.0, device.top))[1]
        free = min(math.nextafter(float(rising), 1.0), device.top)
        within, items = (max(free, ends[k][0]), ends[k][1]), np.flatnonzero(allowed[k])
        flat = device.floor(ZERO, ZERO, arb(free), (0.0, device.top))  # phi is not quite flat there
        bound -= device.phi(arb(free))[0] - flat
        if within[0] > within[1]:
            continue
        offer = price, items, (rate[k], power[k]), within
        if not floor_holds(device, *offer, floors[k] - slack):
            raise Refused(f"it is not proven that no set of device {k} costs less than {floors[k]:.12g}")
        sets = None if claimed is None else cheap_sets(device, *offer, floors[k] + missing, _GRID)
        if sets is not None:
            narrow[k, items] &= sets.any(axis=0)
            narrow[np.arange(count) != k] &= ~np.isin(np.arange(len(price)), items[sets.all(axis=0)])
    return bound, narrow


def heaviest(fleet: list[Device], on: list[bool], total_hz: float) -> bool:
    """FDMA: whether no set that may fit is heavier than the one served; depth first, with the fractional knapsack bound.

    In whole numbers: sizes are rounded down and the room up to units of 2^-70 of the band, weights are exact.
    """
    fine, unit = max(float(device.n).as_integer_ratio()[1] for device in fleet), Fraction(total_hz) / 2**70
    weight = [int(Fraction(float(device.n)) * fine) for device in fleet]
    need = [smallest_band(device, arb(device.top)) for device in fleet]
    size = [int(Fraction(max(low(hz), 0.0)) / unit) if hz.is_finite() else 2**71 for hz in need]
    order = sorted((k for k in range(len(fleet)) if size[k] <= 2**70), key=lambda k: Fraction(size[k], weight[k]))
    filled, worth = ([0, *itertools.accumulate(row[k] for k in order)] for row in (size, weight))
    served, stack = sum(itertools.compress(weight, on)), [(0, 2**70 + 1, 0)]
    for _ in range(_MOST_STEPS):
        if not stack:
            return True
        at, room, gained = stack.pop()
        end = search.bisect_right(filled, filled[at] + room) - 1  # items from ``at`` that fit as they come
        most, left = gained + worth[end] - worth[at], room - (filled[end] - filled[at])
        if most > served:
            return False
        if end < len(order) and most + weight[order[end]] * left // size[order[end]] > served:
            outs = range(at, end + 1)
            stack += [(out + 1, room - (filled[out] - filled[at]), gained + worth[out] - worth[at]) for out in outs]
    return False


def admission(problem: Json, solution: Json, fleet: list[Device]) -> str:
    """Check what the solution says about the devices that sit out, and return it."""
    on = solution["scheduled"]
    out = [k for k, taken in enumerate(on) if not taken]
    if not out or solution.get("admission") != "heaviest":
        return f"{len(out)} devices; that no heavier set can be served is not proven" if out else "nobody"
    if problem["access"] == "fdma":
        proven = heaviest(fleet, on, number(problem, "total_bandwidth_hz"))
    else:
        band = range(len(fleet[0].snr))
        proven = all(carries_too_little(fleet[k], band, arb(fleet[k].top)) for k in out)
    if not proven:
        raise Refused("it is not proven that no heavier set of devices can be served")
    return f"{len(out)} devices; no heavier set can be served"


def verify(problem: Json, solution: Json) -> Proof:
    """Prove a solution's claims from the decoded files; raises `Unusable` or `Refused` with the first reason."""
    try:
        with ctx.workprec(_BITS):
            return _verify(problem, solution)
    except (KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise Unusable(f"a field is missing or of the wrong kind ({type(error).__name__}: {error})") from error
    except ValueError as error:
        raise error if isinstance(error, (Refused, Unusable)) else Unusable(str(error)) from error


def _verify(problem: Json, solution: Json) -> Proof:
    schemas = "fedlodrop/resource-problem/1", "fedlodrop/resource-problem/2"
    if problem["schema"] not in schemas or problem["access"] not in ("fdma", "ofdma"):
        raise Unusable("the first file is no fedlodrop/resource-problem/1 or /2")
    if unknown := [key for key in ("objective", "outage_probability") if key in problem]:
        raise Unusable(f"problems with {unknown[0]!r} cannot be verified: `check` recomputes their rows")
    if solution["schema"] not in ("fedlodrop/solution/1", "fedlodrop/solution/2"):
        raise Unusable("the second file is no fedlodrop/solution/1 or /2")
    devices, on = problem["devices"], solution["scheduled"]
    clock: Any = solution.get("cpu_hz")
    if not on or len(on) != len(devices) or not all(isinstance(item, bool) for item in on):
        raise Unusable(f"scheduled must be a list of {len(devices)} times true or false")
    least = min(number(problem["bound"], key) for key in ("curvature_min", "confidence"))
    if number(problem, "max_dropout_rate") >= 1 or least <= 0:
        raise Unusable("max_dropout_rate must be below 1, bound.curvature_min and bound.confidence above 0")
    total = sum((arb(number(device, "num_examples")) for device in devices), ZERO)
    total = arb(number(problem, "total_examples", 1e-300)) if "total_examples" in problem else total
    fleet = [Device(problem, k, total, clock) for k in range(len(devices))]
    margin, held = math.inf, 0
    for name, value, limit in rows(problem, solution, fleet):
        if not value <= limit + TOLERANCE * abs(limit):
            raise Refused(f"{name}: {float(value.mid()):.12g} against {float(limit.mid()):.12g}")
        held, margin = held + 1, min(margin, low((limit - value) / limit) if limit > 0 else 0.0)
    for k, device in enumerate(fleet if clock is not None else []):
        if not device.clocks[0] * (1 - TOLERANCE) <= clock[k] <= device.clocks[1] * (1 + TOLERANCE):
            raise Refused(f"device {k}: its clock is out of its range")
    served = [k for k, taken in enumerate(on) if taken]
    objective = sum((fleet[k].phi(arb(solution["dropout_rate"][k]))[0] for k in served), ZERO)
    if not abs(number(solution, "objective") - objective) <= REPORTED * abs(objective):
        raise Refused(f"the objective is said to be {solution['objective']:.12g}, it is {float(objective.mid()):.12g}")
    outcome = admission(problem, solution, fleet)
    bound = low(_bound(problem, solution, [fleet[k] for k in served])) if served else 0.0
    if number(solution, "lower_bound") > bound + TOLERANCE * abs(bound):
        raise Refused(f"the lower bound is said to be {solution['lower_bound']:.12g}, proven is {bound:.12g}")
    gap = (objective - number(solution, "lower_bound")) / abs(objective) if served else ZERO
    if not abs(number(solution, "gap") - gap) <= REPORTED:
        raise Refused(f"the gap is said to be {solution['gap']:.3g}, the claims leave {float(gap.mid()):.3g}")
    return Proof(-low(-objective) if served else 0.0, bound, held, margin, outcome)


def _bound(problem: Json, solution: Json, fleet: list[Device]) -> arb:
    certificate = solution.get("certificate")
    if not isinstance(certificate, dict):
        raise Refused("the solution carries no certificate of its lower bound")
    if any("min_cpu_hz" in device or "max_cpu_hz" in device for device in problem["devices"]):
        raise Refused("a bound over free clocks cannot be proven yet")
    if problem["access"] == "fdma":
        return fdma_bound(problem, fleet, certificate)
    everything = np.ones((len(fleet), len(fleet[0].snr)), dtype=bool)
    ends = [(0.0, device.top) for device in fleet]
    return tree_bound(fleet, certificate, everything, ends, number(solution, "lower_bound"))


def main(problem: str, solution: str) -> int:
    """Verify two files and say what was proven; returns the exit status."""
    try:
        proof = verify(read(problem), read(solution))
    except Unusable as error:
        print(f"error: {error}", file=sys.stderr)
        return UNUSABLE
    except Refused as error:
        print(f"refused: {error}", file=sys.stderr)
        return REFUSED
    gap = max(proof.objective - proof.lower_bound, 0.0) / max(abs(proof.objective), 1e-12)
    claim = f"objective <= {proof.objective:.17g}, optimum >= {proof.lower_bound:.17g}, gap <= {gap:.3g}"
    print(f"{claim} for every admissible allocation of the same devices")
    print(f"{proof.rows} of {proof.rows} constraints hold with margin {proof.margin:.3g} (tolerance {TOLERANCE:g})")
    print(f"sits out: {proof.admission}\nproven")
    return PROVEN


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
