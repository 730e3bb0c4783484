"""Prove what goes beyond the plain problem: time shares, a shared downlink, outage, ways to send, goals, free clocks.

All of it is led back to claims about plain problems (`optimizer.verify`) whose numbers stand in the file, and to one
Lagrangian in logarithms: every row is convex in the logarithms of its variables, so the Lagrangian lies above its
tangent at any point, whatever the prices, and the least value of the tangent over a box that holds all plans is a
bound. docs/certificates.md and docs/multi_round.md have the proofs.
"""

import math
from fractions import Fraction
from functools import cache, cached_property
from itertools import compress, pairwise
from typing import Any

import numpy as np
from flint import arb

import optimizer.verify as plain
from optimizer.verify import INFINITE, LN2, ONE, ZERO, Claim, Device, Refused, Unusable, bisect, exact, low, number

_WORDS = {"objective", "outage_probability", "min_cpu_hz", "max_cpu_hz", "broadcast_rate_bps"}
_BITS = ("fixed_bits", "droppable_bits")
_MOST_TERMS, _TAIL = 50_000, arb(2) ** -90  # of the series of a Rician probability


@cache
def outage_margin(probability: float, kappa: float) -> arb:
    """Enclose the share of its mean that a gain falls short of with a probability, under Rician fading.

    P(gain <= m) = sum_j Poisson(j; kappa) P(Poisson((1 + kappa) m) > j), whose factors fall in j: the tail is less than
    what is left of the first times the last of the second.
    """
    if kappa == 0:
        return -(1 - arb(probability)).log()

    def short(margin: arb) -> tuple[arb, arb]:
        scattered, total, left, above = (1 + arb(kappa)) * margin, ZERO, ONE, ONE
        first, second = (-arb(kappa)).exp(), (-scattered).exp()
        for j in range(1, _MOST_TERMS):
            left, above = left - first, above - second
            total += first * above
            if left < _TAIL:
                return total, total + left * above
            first, second = first * kappa / j, second * scattered / j
        raise Unusable(f"rician_k is too large for its series, found {kappa:g}")

    most = ONE
    while not short(most)[0] > probability:
        most *= 2
    least = bisect(lambda margin: short(margin)[1] < probability, (ZERO, most), 70)[0]
    return least.union(bisect(lambda margin: not short(margin)[0] > probability, (ZERO, most), 70)[1])


class Way(Device):
    """A device in one way to send: noise on the wire, outage, turns in a shared band, a range of clocks."""

    def __init__(self, problem: Any, k: int, total: arb, shared: Any) -> None:
        super().__init__(problem, k, total, shared)
        raw = problem["devices"][k]
        (self.noise,), self.clocks = exact(problem["payload"]["noise"], [k]), exact(raw["clocks_hz"], (0, 1))
        self.snr = [each * raw["margin"] for each in self.snr]
        self.total = arb(number(problem, "total_bandwidth_hz", 0.0)) if "total_bandwidth_hz" in problem else ZERO
        # In turns: the rate [nat/s/Hz] at full power over the whole band, which no share of the time exceeds.
        self.full = (1 + self.power * self.snr[0] / self.total).log() if problem["turns"] else ZERO
        if problem["any_clock"]:  # the time of the fastest clock (``cpu_hz``) with the energy of the slowest
            joules = self.capacitance * self.clocks[0] * self.clocks[0]
            self.e0, self.e1 = self.budget - self.circuit - joules * sum(self.cycles), joules * self.cycles[1]

    def phi(self, gamma: arb) -> tuple[arb, arb]:
        """Weighted bound with the noise q, J + a q/(1 - gamma), and its derivative."""
        (value, slope), kept = super().phi(gamma), ONE - gamma
        more = self.weight * self.shapes[0] * self.noise / kept
        return value + more, slope + more / kept

    def band(self, gamma: arb, price: arb = ONE) -> tuple[arb, arb, arb]:
        """As of a plain device; in turns the larger of that and S ln2/(tau ln(1 + P g/(N0 W)))."""
        cost, a, b = super().band(gamma, price)
        bits, tau, _ = self.at(gamma)
        if self.full > 0 and tau > 0 and bits > 0 and (dear := price * LN2 / self.full * bits / tau) > cost:
            return dear, price * LN2 / self.full, ZERO
        return cost, a, b

    def priced(self, price: arb, at: arb, ends: Any) -> arb:
        """As of a plain device; in turns the better of two bounds, apart where they cross."""
        if not self.full > 0:
            return super().priced(price, at, ends)
        joules = self.power * LN2 / (self.total * self.full)  # per bit at full power
        turn, knots, bounds = self.e1 + joules * self.s1, [arb(ends[0]), arb(ends[1])], []
        if turn > 0 and knots[0] < (kink := ((joules * self.s0 - self.e0) / turn).mid()) < knots[1]:
            knots[1:1] = [kink]
        for part in pairwise(knots):
            if self.at(part[1])[1] < 0:  # no rate of this part meets the deadline
                continue
            near = part[0] if at < part[0] else part[1] if at > part[1] else at
            energy = self.floor(*super().band(near, price)[1:], near, part)
            bounds += [energy.max(self.floor(price * LN2 / self.full, ZERO, near, part)).lower()]
        return min(bounds, default=INFINITE)


class Menu(list[Way]):
    """Ways that one device may take; the least of them counts."""

    least = cached_property(lambda self: min((way.least.lower() for way in self), default=INFINITE))

    def cheapest(self, price: arb, at: arb, spare: Any) -> arb:
        """Lower bound of phi + price b over the ways and rates that ``spare`` hertz may serve."""
        return min((way.cheapest(price, at, spare) for way in self if not way.least > spare()), default=INFINITE)


class Part(Claim):
    """A claim about a plain problem of `Way`s."""

    def __init__(self, problem: Any, solution: Any) -> None:
        super().__init__(problem, solution | {"cpu_hz": None}, Way)
        self.shared_hz = arb(self.total_hz) if problem["turns"] else None

    def need(self, k: int) -> float:
        """Bandwidth [Hz] that a device needs at least; under OFDMA 0, or more than there is where nothing serves."""
        device = self.fleet[k]
        if self.total_hz is not None:
            return max(low(device.least), 0.0)
        return float(device.waterfilling(np.arange(self.width)[None], arb(device.top))[0][0])


def least_of_ways(parts: list[Part], node: Any, open_to: list[set[int]]) -> arb:
    """Bound of a node over all ways that devices may take: of its parts, or at one price for everyone."""
    if "ways" in node:
        k, groups = int(number(node, "device", 0.0, kind=int)), [set(group) for group in node["ways"]]
        if not open_to[k] <= set().union(*groups):
            raise Refused(f"the parts leave out a way of device {k}")
        sides = ([*open_to[:k], open_to[k] & group, *open_to[k + 1 :]] for group in groups)
        pairs = zip(node["parts"], sides, strict=True)
        return min((least_of_ways(parts, part, side).lower() for part, side in pairs), default=-INFINITE)
    return parts[0].band_bound(node, [Menu(parts[j].served[k] for j in ways) for k, ways in enumerate(open_to)])


class Extended(Part):
    """A solution beside its problem, whatever it says beyond a plain one."""

    def __init__(self, problem: Any, solution: Any) -> None:
        self.problem, self.all, self.goal = problem, problem["devices"], problem.get("objective")
        self.on, count, self.joules = solution["scheduled"], len(problem["devices"]), ZERO
        given, choice, clocks = problem["payload"], solution.get("choice"), solution.get("cpu_hz")
        newer = {"objective", "outage_probability"} & set(problem) or isinstance(given, list)
        if problem["schema"].endswith("/1") and (newer or problem["access"] == "tdma"):
            raise Unusable("schema must be 'fedlodrop/resource-problem/2' for what this problem says")
        self.margins = [ONE] * count
        if "outage_probability" in problem:
            if problem["access"] == "ofdma":
                raise Unusable("outage_probability needs 'fdma' or 'tdma'")
            chance = number(problem, "outage_probability", 1e-300, math.nextafter(1.0, 0.0))
            kappas = (number({"rician_k": 0.0} | raw, "rician_k", 0.0) for raw in self.all)
            self.margins = [outage_margin(chance, kappa) for kappa in kappas]
        if self.goal is not None and self.goal["objective"] not in ("time", "tradeoff"):
            raise Unusable("objective.objective must be 'time' or 'tradeoff'")
        free = dict.fromkeys(("energy_weight_per_j", "time_weight_per_s"), 0.0)
        self.joule, self.second = exact(free | (self.goal or {}), free)  # what they cost
        if len({"broadcast_rate_bps" in raw for raw in self.all}) > 1:
            raise Unusable("broadcast_rate_bps must be given for all devices or for none")
        self.ways = _ways(given if isinstance(given, list) else [given | {"noise": 0.0}], self.all)
        if choice is None and len(self.ways) > 1 or choice is not None and not isinstance(given, list):
            raise Refused("ways to send are chosen where there are some, and only there")
        told = compress(range(count), () if choice is None else self.on)
        taken = {k: int(number(choice, k, 0, len(self.ways) - 1, int)) for k in told}
        clocks = [None] * count if clocks is None else clocks
        self.clocks = [raw["cpu_hz"] if own is None else own for raw, own in zip(self.all, clocks, strict=True)]
        said = solution.get("deadline_s")
        if self.goal is None and said is not None:
            raise Refused("a deadline is chosen only where the objective asks for one")
        chosen = self.goal is not None and any(self.on)
        self.deadline = number(solution, "deadline_s", 1e-300) if chosen else problem["deadline_s"]
        ways = [self.ways[taken.get(k, 0)] for k in range(count)]
        super().__init__(self.plain(ways, self.deadline, self.clocks), solution)

    def plain(self, ways: Any, deadline: Any, clocks: Any = None, rate: Any = None, relaxed: bool = False) -> Any:
        """The problem in which every device sends in one of ``ways`` (K,), in the form that `Part` takes.

        Left out: ``clocks`` (K,), time of the fastest, energy of the slowest; ``rate`` of a shared downlink, that
        of the slowest who takes part. ``relaxed``: the best subcarrier's gain over the whole band.
        """
        problem, devices, ofdma = self.problem, [], self.problem["access"] == "ofdma"
        sent = [raw.get("broadcast_rate_bps") for raw in self.all]
        rate = min((own for own in compress(sent, self.on) if own is not None), default=None) if rate is None else rate
        for k, raw in enumerate(self.all):
            ends = [raw.get(key, raw["cpu_hz"]) for key in ("min_cpu_hz", "max_cpu_hz")]
            own = {"clocks_hz": ends, "margin": self.margins[k], "cpu_hz": ends[1] if clocks is None else clocks[k]}
            own |= {} if sent[k] is None else {"downlink_rate_bps": sent[k] if rate is None else min(sent[k], rate)}
            own |= {"channel_gain": max(raw["channel_gain"])} if relaxed else {}
            own |= {"adapter_cycles": ways[k]["adapter_cycles"][k]}
            devices.append({key: value for key, value in (raw | own).items() if key not in _WORDS})
        keys = (*_BITS, *(f"downlink_{key}" for key in _BITS), "noise")
        found = {key: value for key, value in problem.items() if key not in _WORDS}
        found |= {"payload": {key: [way[key][k] for k, way in enumerate(ways)] for key in keys}, "devices": devices}
        found |= {"deadline_s": deadline, "turns": problem["access"] == "tdma", "any_clock": clocks is None}
        if relaxed:
            band = number(problem, "subcarrier_hz", 0.0) * len(self.all[0]["channel_gain"])
            found["total_bandwidth_hz"] = math.nextafter(band, math.inf)
        return found | {"access": "ofdma" if ofdma and not relaxed else "fdma"}

    def parts(self, deadline: Any, **options: Any) -> list[Part]:
        """Claims at a deadline, one for every way to send of all devices."""
        ways = ([way] * len(self.all) for way in self.ways)
        return [Part(self.plain(way, deadline, **options), self.solution) for way in ways]

    def rows(self) -> Any:
        """Yield every constraint, those of clocks and of the goal as well."""
        for row in super().rows():
            self.joules += row[1] if row[0].endswith("energy exceeds its budget") else ZERO
            yield row
        for k in compress(range(len(self.all)), self.on):
            clock, (slow, fast) = arb(number(self.clocks, k)), self.fleet[k].clocks
            if not slow == fast == clock:
                yield f"device {k}: the clock is above its range", clock, fast
                yield f"device {k}: the clock is below its range", slow, clock
        if self.goal is None or not self.served:
            return
        chosen, weight = arb(self.deadline), sum((device.weight for device in self.served), ZERO)
        yield "the chosen deadline exceeds the longest", chosen, arb(number(self.problem, "deadline_s"))
        if self.goal["objective"] == "time":
            needed = arb(number({"min_weight": 1.0} | self.goal, "min_weight", 0.0))
            yield "the mean bound exceeds what is asked for", self.value / weight, *exact(self.goal, "max_bound")
            yield "too little weight is served", needed * sum(device.weight for device in self.fleet), weight
            self.value = chosen
        else:
            self.value += self.joule * self.joules + self.second * chosen

    def bound(self, node: Any, box: Any = None) -> arb:
        """What a certificate proves to be below the worth of every plan for the same devices."""
        if self.goal is None:
            return self.proven(self.deadline, node)
        return self.soonest(node) if self.goal["objective"] == "time" else self.weighed(node)

    def proven(self, deadline: Any, node: Any) -> arb:
        """Bound on the sum of the devices' bounds within a deadline."""
        relaxed = "relaxed" in node
        node = node["relaxed"] if relaxed else node
        if "logarithms" in node:
            best = self.plain([_best_of(self.ways)] * len(self.all), deadline, relaxed=relaxed)
            return log_bound(Part(best, self.solution), node["logarithms"])
        parts = self.parts(deadline, relaxed=relaxed)
        if parts[0].total_hz is not None:
            return least_of_ways(parts, node, [set(range(len(parts))) for _ in parts[0].served])
        if len(parts) > 1:
            raise Refused("several ways to send under OFDMA are bounded by the relaxed problem only")
        return parts[0].bound(node)

    def soonest(self, node: Any) -> arb:
        """Longest deadline that is proven too short: by a bound above what is asked for, or by who can be served."""
        deadline, goal = number(node, "deadline_s", 0.0), {"min_weight": 1.0} | self.goal
        if deadline == 0:
            return ZERO
        share = number(goal, "min_weight", 0.0)
        if share == 1 and all(self.on) and isinstance(node.get("bound"), dict):
            if self.proven(deadline, node["bound"]) > number(goal, "max_bound") * sum(d.weight for d in self.served):
                return arb(deadline)
            raise Refused(f"within {deadline:.12g} s the bound is not proven to exceed what is asked for")
        needed = Fraction(share) * sum(Fraction(float(device.n)) for device in self.fleet) * (1 - Fraction(1, 10**12))
        ofdma = self.problem["access"] == "ofdma"
        if self.at_most(deadline, needed) or (ofdma and self.at_most(deadline, needed, relaxed=True)):
            return arb(deadline)
        raise Refused(f"it is not proven that too few devices can be served within {deadline:.12g} s")

    def weighed(self, node: Any) -> arb:
        """Bound on bounds, joules and seconds together: each at its least, or their Lagrangian in logarithms."""
        relaxed, longest = self.problem["access"] == "ofdma", self.problem["deadline_s"]
        part = Part(self.plain([_best_of(self.ways)] * len(self.all), longest, relaxed=relaxed), self.solution)
        idle, node = self.joule * sum(device.circuit for device in part.served), node.get("relaxed", node)
        if "logarithms" in node:
            return idle + log_bound(part, node["logarithms"], self.joule, self.second)
        least = (device.cheapest(ZERO, ZERO, lambda: INFINITE) for device in part.served)
        return idle + sum(least, self.second * earliest(part))

    def heaviest(self, needs: Any = None, most: Any = None) -> bool:
        """Whether no set of devices that may be served within the longest deadline weighs more than the one served."""
        served = sum((Fraction(float(device.n)) for device in self.served), Fraction(0))
        return self.at_most(self.problem["deadline_s"], served)

    def at_most(self, deadline: Any, most: Fraction, relaxed: bool = False) -> bool:
        """Whether no set that a deadline and a shared downlink rate may serve weighs over ``most`` [examples]."""
        sent = [raw.get("broadcast_rate_bps", 0) for raw in self.all]
        sizes = [Fraction(float(device.n)) for device in self.fleet]
        for rate in sorted(set(sent)):
            inside = [own >= rate for own in sent]
            if sum(compress(sizes, inside)) > most:
                parts, never = self.parts(deadline, rate=rate or None, relaxed=relaxed), low(INFINITE)
                needs = [min(part.need(k) for part in parts) if own else never for k, own in enumerate(inside)]
                if not Claim.heaviest(parts[0], needs, most):
                    return False
        return True


def _ways(given: Any, devices: Any) -> list[dict[str, Any]]:
    """Ways to send with every size and the noise as lists (K,); what a way does not say is that of the others."""
    spread: Any = lambda value: value if isinstance(value, list) else [value] * len(devices)  # noqa: E731
    ways = []
    for way in given:
        own = {key: spread(way[key]) for key in (*_BITS, "noise")}
        for key in _BITS:
            down = f"downlink_{key}"
            usual = given[0].get(down, given[0][key]) if any(down in each for each in given) else way[key]
            own[down] = spread(way.get(down, usual))
        cycles = [raw["adapter_cycles"] for raw in devices]
        ways.append(own | {"adapter_cycles": spread(way.get("adapter_cycles", cycles))})
    return ways


def _best_of(ways: list[dict[str, Any]]) -> dict[str, Any]:
    """A way that is the best of all in everything at once."""
    return {key: [min(each) for each in zip(*(way[key] for way in ways), strict=True)] for key in ways[0]}


def earliest(part: Any) -> arb:
    """A time within which no plan for the devices that take part ends."""
    rates = [device.total * (1 + device.power * device.snr[0] / device.total).log() / LN2 for device in part.served]
    ends = []
    for device, rate in zip(part.served, rates, strict=True):
        bits, tau, _ = device.at(arb(device.top))
        ends.append((device.deadline - tau + (bits / rate if bits > 0 else ZERO)).lower())
    return max(ends)


def log_bound(part: Any, record: Any, joule: arb = ZERO, second: arb = ZERO) -> arb:
    """Least value over a box of the tangent of a Lagrangian, at any point and any prices >= 0 in the record.

    It is below sum phi + ``joule`` per joule + ``second`` per second of a deadline at most that of ``part``.
    """
    deadline, (price,) = part.served[0].deadline, exact(record, "price_per_hz")
    free = second > 0 or joule > 0
    start = arb(number(record, "log_deadline")) if free else deadline.log()
    slope = second * start.exp()
    bound = slope - price * arb(part.total_hz)
    for i, device in enumerate(part.served):
        row, prices = [arb(number(record["point"][i], j)) for j in range(5)], exact(record["price"][i], range(4))
        bound += _device_tangent(device, row, prices, (price, joule, start))
        slope -= prices[0]
    if free:
        ends = earliest(part).log().lower(), deadline.log().upper()
        bound += (slope * (ends[0] - start)).min(slope * (ends[1] - start))
    return bound


def _device_tangent(device: Any, row: list[arb], prices: list[arb], common: tuple[arb, arb, arb]) -> arb:
    """A device's part of the tangent's least value; ``row``: logarithms of kept share, band, rate, power, clock."""
    (price, joule, start), (late, costly, short, loud) = common, prices
    kept, band, rate, power, clock = (each.exp() for each in row)
    (work, extra), bits = device.cycles, (device.fixed / rate, device.s1 * kept / rate)
    seconds = [device.down[0], device.down[1] * kept, work / clock, extra * kept / clock, *bits]
    heat = device.capacitance * clock * clock
    joules = [heat * work, heat * extra * kept, power * bits[0], power * bits[1]]
    used, spent = sum(seconds), sum(joules)
    snr = power * device.snr[0] / band
    soft = (1 + snr).log()
    tilt, (value, steep) = snr / (1 + snr) / soft, device.phi(ONE - kept)
    value += joule * spent + late * (used.log() - start) + short * (row[2] - row[1] - (soft / LN2).log()) + price * band
    per_joule = joule + costly / spent
    value += costly * (spent / (device.budget - device.circuit)).log() if costly > 0 else ZERO
    slopes = [
        late * (seconds[1] + seconds[3] + seconds[5]) / used + per_joule * (joules[1] + joules[3]) - kept * steep,
        price * band + short * (tilt - 1),
        short - late * sum(bits) / used - per_joule * (joules[2] + joules[3]),
        per_joule * (joules[2] + joules[3]) - short * tilt,
        2 * per_joule * (joules[0] + joules[1]) - late * (seconds[2] + seconds[3]) / used,
    ]
    if device.full > 0:  # in turns a device radiates P b/W at most
        value += loud * (row[3] - row[1] - (device.power / device.total).log())
        slopes[1], slopes[3] = slopes[1] - loud, slopes[3] + loud
    for slope, at, (left, right) in zip(slopes, row, _box(device), strict=True):
        value += (slope * (left - at)).min(slope * (right - at))
    return value.lower()


def _box(device: Any) -> list[tuple[arb, arb]]:
    """Least and largest logarithm of kept share, band, rate, average power and clock of any plan in time."""
    snr, total, power = device.snr[0], device.total, device.power
    rate = device.at(arb(device.top))[0] / device.deadline
    least = (rate * LN2) ** 2 / (power * snr)  # R ln2 = b ln(1 + q) <= b sqrt(q), and the band that serves is larger
    carries_less = lambda log_hz: log_hz.exp() * (1 + power * snr / log_hz.exp()).log() < rate * LN2  # noqa: E731
    band = bisect(carries_less, (least.log().lower(), total.log().upper()), 40)[0]
    pairs = (
        (ONE - arb(device.top), ONE),
        (band.exp(), total),
        (rate, total * (1 + power * snr / total).log() / LN2),
        (((rate * LN2 / total).exp() - 1) * total / snr, power),
        (device.clocks[0], device.clocks[1]),
    )
    return [(left.log().lower(), right.log().upper()) for left, right in pairs]


def _claim(problem: Any, solution: Any) -> Claim:
    """The claim of two files: a plain one where they say nothing else."""
    keys = set(problem).union(*problem["devices"])
    beyond = _WORDS & keys or problem["access"] == "tdma" or isinstance(problem["payload"], list)
    beyond = beyond or any(solution.get(key) is not None for key in ("choice", "cpu_hz", "deadline_s"))
    return (Extended if beyond else Claim)(problem, solution)


def verify(problem: Any, solution: Any) -> plain.Proof:
    """Prove a solution's claims from the decoded files; raises `Unusable` or `Refused` with the first reason."""
    return plain.verify(problem, solution, _claim)
