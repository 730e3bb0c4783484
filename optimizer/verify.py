"""Prove what a solution claims from the two files alone, all numbers enclosed: docs/certificates.md has the proof."""

import json
import math
from bisect import bisect_right
from collections import namedtuple
from fractions import Fraction
from functools import cache, cached_property
from itertools import accumulate, compress, pairwise
from typing import Any

import numpy as np
from flint import arb, ctx

TOLERANCE, REPORTED = 1e-9, 1e-6  # relative excess of a resource or bound, and error of a reported figure: rounding
_BITS, _POSITIVE, _MOST_STEPS, _FEW, _MANY, _MOST_CUTS = 128, 1e-300, 200_000, 2_000, 200_000, 2000
ZERO, ONE, INFINITE = arb(0), arb(1), arb("inf")  # a ball beside an int costs ten times two balls
with ctx.workprec(_BITS):
    LN2 = arb.const_log2()
_SCHEMAS = [(f"fedlodrop/resource-problem/{i}", f"fedlodrop/solution/{j}") for i in (1, 2) for j in (1, 2, 3, 4)]
Proof = namedtuple("Proof", "objective lower_bound rows margin admission")  # so many rows hold, by this margin at least


class Unusable(Exception):
    """A file that cannot be read as what it should be."""


class Refused(Exception):
    """A claim that is false or could not be proven; the message is the first reason."""


def read(path: str) -> Any:
    """Return the content of a JSON file in which no key occurs twice in one object."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise ValueError("a key occurs twice in one object")
        return dict(pairs)

    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file, object_pairs_hook=once)
    except (OSError, ValueError, RecursionError) as error:
        raise Unusable(f"{path}: {error}") from error


def number(source: Any, key: str | int, least: float = -1e308, most: float = 1e308, kind: Any = (int, float)) -> float:
    """Return ``source[key]`` as the float it denotes, between ``least`` and ``most``."""
    if not isinstance(value := source[key], kind) or isinstance(value, bool) or not least <= value <= most:
        raise Unusable(f"{key} must be a number from {least:g} to {most:g}, found {str(value)[:50]}")
    return float(value)


def exact(source: Any, keys: Any, least: float = 0.0) -> list[arb]:
    """Numbers under these keys, exactly; names may stand in one text."""
    return [arb(number(source, key, least)) for key in (keys.split() if isinstance(keys, str) else keys)]


def low(value: arb) -> float:
    """Float that is surely not above ``value``."""
    return 0.0 if value == ZERO else math.nextafter(float(value.lower()), -math.inf)


def bisect(holds: Any, ends: Any, steps: int = 60) -> tuple[arb, arb]:
    """Narrow ``ends`` around the place where ``holds`` (true on the left) changes."""
    left, right = arb(ends[0]), arb(ends[1])
    for _ in range(steps):
        middle = ((left + right) / 2).mid()
        left, right = (middle, right) if holds(middle) else (left, middle)
    return left, right


class Device:
    """What one device can do: payload S, time left tau and energy left e are affine in its dropout rate."""

    least = cached_property(lambda self: self.band(arb(self.top))[0])  # bandwidth [Hz] that serves at any rate
    noise_w = cached_property(lambda self: np.array([self.width / s if s > 0 else INFINITE for s in self.snr], object))
    balls = cached_property(lambda self: (self.noise_w, np.log(self.noise_w)))  # N0 Delta/g and its logarithm
    floats = cached_property(lambda self: tuple(part.astype(float) for part in self.balls))

    def __init__(self, problem: Any, k: int, total: arb, shared: Any) -> None:
        raw, (self.shapes, self.deadline, noise, self.width, *_) = problem["devices"][k], shared
        bits = {key: each[k] if isinstance(each, list) else each for key, each in problem["payload"].items()}
        bits = {f"downlink_{key}": each for key, each in bits.items()} | bits
        self.n, clock, speed = exact(raw, "num_examples cpu_hz downlink_rate_bps", _POSITIVE)
        self.budget, self.power, *self.cycles = exact(raw, "energy_budget_j max_tx_power_w fixed_cycles adapter_cycles")
        self.capacitance, self.circuit = exact({"circuit_energy_j": 0.0} | raw, "capacitance circuit_energy_j")
        (self.fixed, self.s1), work = exact(bits, "fixed_bits droppable_bits"), sum(self.cycles)
        self.down = [part / speed for part in exact(bits, "downlink_fixed_bits downlink_droppable_bits")]
        self.weight, self.s0, joules = self.n / total, self.fixed + self.s1, self.capacitance * clock * clock
        self.t0, self.t1 = self.deadline - sum(self.down) - work / clock, self.down[1] + self.cycles[1] / clock
        self.e0, self.e1 = self.budget - self.circuit - joules * work, joules * self.cycles[1]
        self.top = number(problem, "max_dropout_rate", 0.0, math.nextafter(1.0, 0.0))
        gain = raw["channel_gain"] if self.width < INFINITE else [raw["channel_gain"]]
        self.snr = [arb(number([each], 0, 0.0)) / noise for each in gain]  # g/N0

    def at(self, gamma: arb) -> tuple[arb, arb, arb]:
        """S = s0 - s1 gamma [bit], tau = t0 + t1 gamma [s], e = e0 + e1 gamma [J]; eps = min(e, P tau) is radiated."""
        return self.s0 - self.s1 * gamma, self.t0 + self.t1 * gamma, self.e0 + self.e1 * gamma

    def phi(self, gamma: arb) -> tuple[arb, arb]:
        """Weighted bound of the device and its derivative."""
        scale, square, cross, slope, curvature, delta = self.shapes
        kept, inner, examples = ONE - gamma, curvature + slope * gamma * (2 - gamma), self.n * delta
        root = ((square + cross / inner) / examples).sqrt()
        steep = cross * slope * kept / (inner * inner * examples * root) if cross != ZERO else ZERO
        return self.weight * (scale * gamma / kept + root), self.weight * (scale / (kept * kept) - steep)

    def quotient(self, gamma: arb, a: arb, b: arb, branch: arb) -> tuple[arb, arb]:
        """(a S - b x)/tau, with x = e or P tau, whichever is less at ``branch``, and its slope."""
        (bits, tau, _), (_, time, energy) = self.at(gamma), self.at(branch)
        x0, x1 = (self.e0, self.e1) if energy < self.power * time else (self.power * self.t0, self.power * self.t1)
        fall = (a * self.s0 - b * x0) * self.t1 + (a * self.s1 + b * x1) * self.t0
        return (a * bits - b * (x0 + x1 * gamma)) / tau, -fall / (tau * tau)

    def falls(self, gamma: arb, a: arb, b: arb) -> bool:
        """Whether phi + (a S - b eps)/tau falls at a rate, or has no value there."""
        return not self.at(gamma)[1] > 0 or bool(self.phi(gamma)[1] + self.quotient(gamma, a, b, gamma)[1] < 0)

    def floor(self, a: arb, b: arb, at: arb, ends: Any) -> arb:
        """Lower bound of phi + (a S - b eps)/tau over the rates in ``ends`` with tau > 0: the tangent at ``at``."""
        knots, turn, bounds = [arb(ends[0]), arb(ends[1])], self.power * self.t1 - self.e1, []
        kink = ((self.e0 - self.power * self.t0) / turn).mid() if turn != 0 else -ONE  # e and P tau cross at most once
        if knots[0] < kink < knots[1] and not (tau := self.at(kink)[1]).contains(0):
            knots[int(tau > 0) : 1] = [kink]  # no rate up to a crossing with tau < 0 counts: tau rises
        for left, right in pairwise(knots):
            gamma = left if at < left else right if at > right else at
            (value, slope), tau = self.phi(gamma), self.at(gamma)[1]
            ratio, steep = self.quotient(gamma, a, b, (left + right) / 2)
            if tau > 0 and (steep <= 0 or self.t1 == 0):  # where the quotient falls it is convex, like phi
                value, slope = value + ratio, slope + steep
            elif tau > 0 and steep > 0 and self.at(left)[1] > 0:  # it rises: least at the left end
                value += self.quotient(left, a, b, (left + right) / 2)[0]
            elif a != 0 or b != 0:
                return -INFINITE
            bounds += [(value + slope * (end - gamma)).lower() for end in (left, right)]
        return min(bounds)

    def band(self, gamma: arb, price: arb = ONE) -> tuple[arb, arb, arb]:
        """Bound of price times the band that serves at ``gamma`` or below; a, b: (a S - b eps)/tau at all rates."""
        bits, tau, energy = self.at(gamma)
        nats, carried = bits * LN2, self.snr[0] * energy.min(self.power * tau)
        goal = float((carried / nats).log()) if bits > ZERO and carried > ZERO else 0.0
        u = max(goal + math.log1p(goal), 1e-16) if goal > 0 else 1e-12
        for _ in range(5 if 1e-6 < goal < 600 else 0):  # Newton's method for ln(1 + y) = u: a mere guess
            u -= (math.log(math.expm1(u) / u) - goal) / (-1 / math.expm1(-u) - 1 / u)
        rest = arb(-u).exp()  # 1/(1 + y)
        scale = price / (arb(u) - ONE + rest)
        never = tau < ZERO or energy < ZERO or (bits > ZERO and (tau <= ZERO or nats >= carried))
        cost = INFINITE if never else (scale * (nats - carried * rest) / tau).max(ZERO) if tau > ZERO else ZERO
        return cost, scale * LN2, scale * self.snr[0] * rest

    def priced(self, price: arb, at: arb, ends: Any) -> arb:
        """Lower bound of phi + price b over the rates in ``ends``, near if it is least at ``at``."""
        return self.floor(*self.band(at, price)[1:], at, ends)

    def cheapest(self, price: arb, at: arb, spare: Any) -> arb:
        """Lower bound of phi + price b over all rates, near if it is least at ``at``; the dear ways if need be."""
        ends, cost = (ZERO, arb(self.top)), self.band(at, price)[0] if price > ZERO else ZERO
        if (bound := self.priced(price, at, ends)) >= (self.phi(at)[0] + cost) * (1 - 1e-12):
            return bound.lower()
        at = bisect(lambda gamma: self.falls(gamma, *self.band(gamma, price)[1:]), ends, 100)[1]
        if self.band(start := (at * (1 - arb(1e-12))).mid())[0] > spare():  # a lower rate needs more than others leave
            ends = bisect(lambda gamma: self.band(gamma)[0] > spare(), (start, self.top))[0], ends[1]
        return bound.max(self.floor(ZERO, ZERO, at, ends)).max(self.priced(price, at.max(ends[0]), ends)).lower()

    def waterfilling(self, sets: Any, gamma: arb) -> tuple[Any, Any]:
        """Which sets (N, L) surely serve at no rate up to ``gamma``: by duality at water levels; these levels [W]."""
        (bits, tau, energy), alone = self.at(gamma), len(sets) == 1
        if not (tau > 0 and energy > 0):
            return np.full(len(sets), bool(tau < 0 or energy < 0 or (bits > 0 and (tau <= 0 or energy <= 0)))), [ZERO]
        row: Any = (energy / tau).min(self.power), bits * LN2 / (tau * self.width)
        power, need, off = (*row, 0.0) if alone else (-low(-row[0]), low(row[1]), 1e-15 * (sets.shape[1] + 12))
        inverse, logs = (part[sets] for part in (self.balls if alone else self.floats))  # + - * / are right to 2^-53
        level = (power + np.sort(inverse, axis=1).cumsum(axis=1)) / np.arange(1, sets.shape[1] + 1)
        level = level.min(axis=1, keepdims=True, initial=1e290).clip(1e-290)  # any is a bound, if it is finite
        log = np.log(level * ONE).astype(inverse.dtype)
        nats = log - logs - 1 + inverse / level + off * (abs(log) + abs(logs) + 2)
        nats = np.where(inverse >= level * (1 + off), 0 * power, nats).sum(axis=1) + power / level[:, 0]
        return nats * (1 + off) < need, level[:, 0]

    def own_prices(self, members: Any, gamma: arb) -> tuple[arb, arb]:
        """(lambda, eta) with which the bound of just these subcarriers is sharp at ``gamma``; zeros if unknown."""
        level = self.waterfilling(members[None], gamma)[1][0]
        steep = self.quotient(gamma, 1 / self.width, 1 / (level * LN2), gamma)[1] if 0 < level < INFINITE else ZERO
        rate = (-self.phi(gamma)[1] / steep).mid() if steep < 0 else ZERO
        return (rate, (rate / (level * LN2)).mid()) if rate > 0 else (ZERO, ZERO)

    def cut(self, price: Any, items: Any, ends: Any, rate: arb, power: arb) -> tuple[float, Any, arb, arb]:
        """Psi, c, prices: a set A costs psi + sum c_m at least beside its ``price``, added as floats in any order."""
        a, b, c = rate / self.width, power, rate / LN2
        psi = low(self.floor(a, b, bisect(lambda g: self.falls(g, a, b), ends)[1], ends))
        level, inverse = (c / b if power > 0 else ZERO), self.balls[0][items]
        worth = [0.0 if v >= level else max(-low(b * (level - v) - c * (level / v).log()), 0.0) for v in inverse]
        reduced = np.nextafter(price[items] - np.array(worth), -np.inf)
        psi -= 1e-15 * (len(items) + 2) * (abs(psi) + float(np.abs(reduced).sum()))  # thrice what sums of floats lose
        return (psi, reduced, rate, power) if math.isfinite(psi) else (-1e300, 0.0 * reduced, rate, power)

    def floor_holds(self, target: float, items: Any, price: Any, ends: Any) -> bool:
        """Whether surely no set A of the items costs phi + mu(A) < ``target``, one size of sets after the other."""
        cuts, size, share, pair = list[Any](), 0, 0.5, [ZERO, ZERO]
        least, best = np.full(len(items) + 1, -math.inf), np.zeros(len(items) + 1, int)  # by every size's best cut
        while len(cuts) < _MOST_CUTS:
            if pair:
                cuts.append(self.cut(price, items, ends, *pair))
                reached = cuts[-1][0] + np.pad(np.sort(cuts[-1][1]).cumsum(), (1, 0))
                share = 0.5 if reached[size] > least[size] else share / 2
                best[reached > least], least = len(cuts) - 1, np.fmax(reached, least)
            if not (unproven := np.flatnonzero(least[size:] < target)).size:
                return True
            size += int(unproven[0])
            psi, reduced, *known = cuts[best[size]]
            ranked = items[np.argsort(reduced, kind="stable")]
            sets = choices(np.sort(reduced), size, target - psi, _FEW if len(cuts) < 50 else _MANY)
            if sets is None:  # too many: prices half way from the best known to the cheapest's, less if in vain
                own = self.own_prices(ranked[:size], self.rate_above(target - arb(price[ranked[:size]].sum()), ends))
                pair = [share * i + (1 - share) * j for i, j in zip(own, known, strict=True)]
            elif self.all_cost(target, ranked[sets], price, ends):
                size, pair = size + 1, []
            else:
                return False
        return False

    def rate_above(self, value: arb, ends: Any) -> arb:
        """Rate at which phi reaches ``value`` and rises; the end if there is none."""
        return bisect(lambda gamma: not (((phi := self.phi(gamma))[0] > value) and phi[1] >= 0), ends)[1]

    def all_cost(self, target: float, sets: Any, price: Any, ends: Any) -> bool:
        """Whether surely every one of the sets (N, L) costs ``target``: all at one rate, the rest in halves."""
        groups = [sets[np.argsort(price[sets].sum(axis=1))]] if len(sets) else []
        while groups:
            group = groups.pop()
            left = target - arb(price[group[0]].sum() * (1 - 1e-15 * (group.shape[1] + 1)))  # the first pays least
            rate = self.rate_above(left, ends)
            rest = group[~(self.waterfilling(group, rate)[0] | bool(self.floor(ZERO, ZERO, rate, ends) >= left))]
            if len(group) == len(rest) == 1:
                return False
            groups += [part for part in np.array_split(rest, 2) if len(part)]
        return True


def choices(cost: Any, size: int, limit: float, most: int) -> Any:
    """All choices (N, size) of places of the ascending ``cost`` whose sum may be under ``limit``; None if too many."""
    running, picks, total, n = np.pad(cost.cumsum(), (1, 0)), np.full((1, 1), -1), np.zeros(1), len(cost)
    for rest in range(size - 1, -1, -1):  # cheapest ways to go on from a place, ascending in spite of rounding
        ahead = np.minimum.accumulate((cost[: n - rest] + running[1 + rest :] - running[1 : n - rest + 1])[::-1])[::-1]
        count = np.maximum(np.searchsorted(ahead, limit - total, side="right") - 1 - picks[:, -1], 0)
        if (many := int(count.sum())) * size > most * 10 or many > most:
            return None
        parent = np.repeat(np.arange(len(count)), count)
        place = picks[parent, -1] + 1 + np.arange(many) - np.repeat(count.cumsum() - count, count)
        picks, total = np.column_stack([picks[parent], place]), total[parent] + cost[place]
    return picks[:, 1:]


class Claim:
    """A solution beside its problem: what it says, and what is proven of it."""

    def __init__(self, problem: Any, solution: Any, kind: Any = Device) -> None:
        devices, self.on, self.solution, self.value = problem["devices"], solution["scheduled"], solution, ZERO
        if (problem["schema"], solution["schema"]) not in _SCHEMAS or problem["access"] not in ("fdma", "ofdma"):
            raise Unusable("expected the schemas fedlodrop/resource-problem/1 or /2 and fedlodrop/solution/1 to /4")
        if {"objective", "outage_probability", "min_cpu_hz"} & set(problem).union(*devices) or solution.get("cpu_hz"):
            raise Refused("goals, outage and free clocks are the business of optimizer.verify_extended")
        if not self.on or len(self.on) != len(devices) or not all(isinstance(item, bool) for item in self.on):
            raise Unusable(f"scheduled must be a list of {len(devices)} times true or false")
        total = sum((arb(number(device, "num_examples")) for device in devices), ZERO)
        total = arb(number(problem, "total_examples", _POSITIVE)) if "total_examples" in problem else total
        a, c, rho, slope = exact(problem["bound"], "empirical_scale loss_bound lipschitz sparsity_regularization")
        curvature, delta = exact(problem["bound"], "curvature_min confidence", _POSITIVE)
        keys = "deadline_s noise_psd_w_per_hz" + " subcarrier_hz" * (problem["access"] == "ofdma")
        shapes = a, c * c, 24 * c * rho * rho, 2 * slope, curvature, 2 * delta
        shared = shapes, *exact(problem, keys, _POSITIVE), INFINITE
        self.fleet = [kind(problem, k, total, shared) for k in range(len(devices))]
        self.served, self.rates = (list(compress(each, self.on)) for each in (self.fleet, solution["dropout_rate"]))
        self.width = len(self.fleet[0].snr)
        self.shared_hz: Any = None  # the band that all have in turn, where they do
        self.total_hz = number(problem, "total_bandwidth_hz", _POSITIVE) if problem["access"] == "fdma" else None

    def rows(self) -> Any:
        """Yield every constraint, value <= limit, and every reported figure as another; ownership is refused here."""
        solution, last, ofdma = self.solution, len(self.fleet) - 1, self.total_hz is None
        owner = [None if k is None else number([k], 0, 0, last, int) for k in solution.get("subcarrier_owner") or []]
        widths = [d.width if ofdma else arb(number(solution["bandwidth_hz"], k, 0.0)) for k, d in enumerate(self.fleet)]
        if not ofdma:
            yield "the bandwidths exceed the band", sum(widths, ZERO), arb(self.total_hz)
        for k, (device, row, hz) in enumerate(zip(self.fleet, solution["tx_power_w"], widths, strict=True)):
            power = [number(row if ofdma else [row], m, 0.0) for m in range(self.width)]
            held = [m for m in range(self.width) if (owner[m] == k if ofdma else hz > 0)]
            if sum(map(bool, power)) > sum(power[m] > 0 for m in held) or (not self.on[k] and (held or any(power))):
                raise Refused(f"device {k} sends on what it does not own, or sits out and yet holds something")
            if not self.on[k]:
                continue
            gamma, spent = arb(number(solution["dropout_rate"], k)), sum(map(arb, power), ZERO)
            (bits, tau, energy), over = device.at(gamma), self.shared_hz or hz
            nats = sum((hz * (1 + arb(power[m]) * device.snr[m] / over).log() for m in held if power[m] > 0), ZERO)
            sending = ZERO if bits <= 0 else bits * LN2 / nats if nats > 0 else INFINITE
            latency, joules = device.deadline - tau + sending, device.budget - energy + spent * hz / over * sending
            self.value += device.phi(gamma)[0]
            yield f"device {k}: the dropout rate is above its limit", gamma, arb(device.top)
            yield f"device {k}: the dropout rate is below 0", 1 - gamma, ONE
            yield f"device {k}: the transmit power exceeds its cap", spent, device.power
            yield f"device {k}: the latency exceeds the deadline", latency, device.deadline
            yield f"device {k}: the energy exceeds its budget", joules, device.budget
            for name, value in (("latency_s", latency), ("energy_j", joules)):
                off = abs(arb(number(solution[name], k)) - value) - 1e-12
                yield f"device {k}: {name} is not what is reported", off, REPORTED * abs(value)

    def band_bound(self, node: Any, served: Any = None) -> arb:
        """FDMA, weak duality: the sum of the least phi + mu b over every device's rates, less mu times the band."""
        price, total, served = arb(number(node, "price_per_hz", 0.0)), arb(self.total_hz), served or self.served
        told, shift = node.get("dropout_rate") or self.rates, node.get("shift") or [0] * len(served)
        bound, needs = -price * total, cache(lambda: sum((device.least for device in served), ZERO))
        for k, device in enumerate(served):
            at = arb(number(told, k, 0.0) * (1 + 1e-13 * number(shift, k, -1e9, 1e9)))
            bound += device.cheapest(price, at, lambda own=device: total - (needs() - own.least))
        return bound

    def bound(self, node: Any, box: Any = None) -> arb:
        """Least bound of a node's parts or its own; ``box``: (K, M) who may own what, and ends of the rates."""
        if self.total_hz is not None:
            return self.band_bound(node)
        allowed, ends = box or (np.ones((len(self.served), self.width), bool), [(0.0, d.top) for d in self.served])
        if "parts" not in node:
            return self.leaf_bound(node, allowed, ends)
        if "owners" in node:  # one part per group of devices that may own the subcarrier
            m = int(number(node, "subcarrier", 0, kind=int))
            groups = [np.array([[k in group] for k in range(len(allowed))]) for group in node["owners"]]
            if not np.all(sum(groups, ~allowed[:, [m]])):
                raise Refused(f"the parts leave out an owner of subcarrier {m}")
            boxes = [(allowed & (group | (np.arange(self.width) != m)), ends) for group in groups]
        else:  # below and above a dropout rate
            k, at = int(number(node, "device", 0.0, kind=int)), number(node, "at")
            boxes = [(allowed, [*ends[:k], pair, *ends[k + 1 :]]) for pair in ((ends[k][0], at), (at, ends[k][1]))]
        return min((self.bound(*p).lower() for p in zip(node["parts"], boxes, strict=True)), default=-INFINITE)

    def leaf_bound(self, leaf: Any, allowed: Any, ends: list[Any]) -> arb:
        """Floors on what every device's set costs, less the prices."""
        price = np.array([number(leaf["price"], m, 0.0) for m in range(self.width)])
        floors = [number(leaf["floor"], k) for k in range(len(self.served))]
        slack = 1e-10 * abs(math.fsum(floors)) / len(floors)
        for k, device in enumerate(self.served):
            items = np.flatnonzero(allowed[k])
            void = ends[k][0] > ends[k][1] or device.waterfilling(items[None], arb(ends[k][1]))[0]
            if not void and not device.floor_holds(floors[k] - slack, items, price, ends[k]):
                raise Refused(f"it is not proven that no set of device {k} costs less than {floors[k]:.12g}")
        return sum((arb(value - slack) for value in floors), ZERO) - sum(map(arb, price.tolist()), ZERO)

    def heaviest(self, needs: Any = None, most: Any = None) -> bool:
        """Whether no set that may fit weighs more than the served one: depth first, with the fractional bound."""
        sizes, room = [Fraction(float(device.n)) for device in self.fleet], Fraction(self.total_hz or 0)
        if needs is None and self.total_hz is None:  # OFDMA: nobody left out fits even alone
            out = compress(self.fleet, (not served for served in self.on))
            return all(device.waterfilling(np.arange(self.width)[None], arb(device.top))[0] for device in out)
        needs = needs or [max(low(device.least), 0.0) for device in self.fleet]
        items = [pair for pair in zip(map(Fraction, needs), sizes, strict=True) if pair[0] <= room]
        items.sort(key=lambda pair: pair[0] / pair[1])
        filled, worth = ([Fraction(0), *accumulate(pair[i] for pair in items)] for i in (0, 1))
        most, stack = sum(compress(sizes, self.on)) if most is None else most, [(0, room, Fraction(0))]
        for _ in range(_MOST_STEPS):
            if not stack:
                return True
            at, reach, gained = stack.pop()  # an item left out makes the reach longer
            held = gained + worth[end := bisect_right(filled, reach) - 1]
            if held > most:
                return False
            if end < len(items) and held + items[end][1] * (reach - filled[end]) / items[end][0] > most:
                stack += [(out + 1, reach + items[out][0], gained - items[out][1]) for out in range(at, end + 1)]
        return False

    def proof(self) -> Proof:
        """Prove every claim, or raise with the first that is not."""
        margin, held, solution, out = math.inf, 0, self.solution, len(self.fleet) - len(self.served)
        for name, value, limit in self.rows():
            if not value <= limit + TOLERANCE * abs(limit):
                raise Refused(f"{name}: {float(value.mid()):.12g} against {float(limit.mid()):.12g}")
            held, margin = held + 1, min(margin, low((limit - value) / limit) if limit > 0 else 0.0)
        objective, said, claimed, gap = self.value, *(number(solution, x) for x in ("objective", "lower_bound", "gap"))
        if not abs(said - objective) <= REPORTED * abs(objective):
            raise Refused(f"the objective is said to be {said:.12g}, it is {float(objective):.12g}")
        if (heavy := out > 0 and solution.get("admission") == "heaviest") and not self.heaviest():
            raise Refused("it is not proven that no heavier set of devices can be served")
        if self.served and not isinstance(certificate := solution.get("certificate"), dict):
            raise Refused("the solution carries no certificate of its lower bound")
        most, bound = (-low(-objective), low(self.bound(certificate))) if self.served else (0.0, 0.0)
        if not claimed <= bound + TOLERANCE * abs(bound):
            raise Refused(f"the lower bound is said to be {claimed:.12g}, proven is {bound:.12g}")
        if not abs(gap * abs(objective) - (objective - claimed)) <= REPORTED * abs(objective):
            raise Refused(f"the gap is said to be {gap:.3g}, the claims leave {float(objective - claimed):.3g} in all")
        word = f"{out} devices; that no heavier set can be served is {'proven' if heavy else 'not proven'}"
        return Proof(most, bound, held, margin, word if out else "nobody")


def verify(problem: Any, solution: Any, claim: Any = Claim) -> Proof:
    """Prove a solution's claims from the decoded files; raises `Unusable` or `Refused` with the first reason."""
    try:
        with ctx.workprec(_BITS), np.errstate(all="ignore"):
            return claim(problem, solution).proof()
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError, RecursionError) as error:
        raise Unusable(f"a field is missing or of the wrong kind ({type(error).__name__}: {error})") from error
