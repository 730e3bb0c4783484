"""What the verifier reads: JSON files, numbers, and a device's data as enclosures, with none of the solver's code."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flint import arb

_BOUND = ("empirical_scale", "loss_bound", "lipschitz", "curvature_min", "sparsity_regularization", "confidence")
ZERO, ONE, INFINITE = arb(0), arb(1), arb("inf")


class Unusable(ValueError):
    """A file that cannot be read as what it should be."""


class Refused(ValueError):
    """A claim that is false or could not be proven; the message is the first reason."""


def read(path: str | Path) -> dict[str, Any]:
    """Return the JSON object in a file; duplicate keys, NaN and infinities are refused."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise ValueError("a key occurs twice in one object")
        return dict(pairs)

    def never(name: str) -> float:
        raise ValueError(f"{name} is not a number of JSON")

    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"), object_pairs_hook=once, parse_constant=never)
    except (OSError, ValueError, RecursionError) as error:
        raise Unusable(f"{path}: {error}") from error
    if not isinstance(found, dict):
        raise Unusable(f"{path}: expected a JSON object, found {type(found).__name__}")
    return found


def number(source: Any, key: str | int, least: float = -math.inf, kind: Any = (int, float)) -> float:
    """Return ``source[key]`` as the float it denotes, at least ``least``."""
    value = source[key]
    try:
        found = float(value) if isinstance(value, kind) and not isinstance(value, bool) else math.nan
    except OverflowError:
        found = math.nan
    if not (math.isfinite(found) and found >= least):
        raise Unusable(
            f"{key} must be a finite number{f' >= {least:g}' if least > -math.inf else ''}, found {str(value)[:50]}"
        )
    return found


def numbers(source: Mapping[str, Any], key: str, count: int, least: float = -math.inf) -> list[float]:
    """Return ``source[key]``, a list of ``count`` numbers."""
    if not isinstance(source[key], list) or len(source[key]) != count:
        raise Unusable(f"{key} must be a list of {count} numbers")
    return [number(source[key], i, least) for i in range(count)]


def low(value: arb) -> float:
    """Float that is surely not above ``value``."""
    return math.nextafter(float(value.lower()), -math.inf)


def bisect(holds: Any, ends: Sequence[Any], steps: int = 60) -> tuple[arb, arb]:
    """Narrow ``ends`` around the place where ``holds`` (true on the left) changes."""
    left, right = arb(ends[0]), arb(ends[1])
    for _ in range(steps):
        middle = ((left + right) / 2).mid()
        left, right = (middle, right) if holds(middle) else (left, middle)
    return left, right


class Device:
    """Payload s0 - s1 gamma, time left tau = t0 + t1 gamma, energy left e0 + e1 gamma: affine in the dropout rate."""

    def __init__(self, problem: Mapping[str, Any], k: int, total: arb, clocks: Any) -> None:
        raw, payload, positive = problem["devices"][k], problem["payload"], 1e-300

        def value(key: str, least: float = 0.0) -> arb:
            return arb(number(raw, key, least))

        def bits(*keys: str) -> arb:
            key = next((key for key in keys if key in payload), keys[-1])
            source, at = (payload[key], k) if isinstance(payload[key], list) else (payload, key)
            return arb(number(source, at, 0.0))

        self.n, own, speed = (value(key, positive) for key in ("num_examples", "cpu_hz", "downlink_rate_bps"))
        self.clocks = [number(raw, key, positive) if key in raw else float(own) for key in ("min_cpu_hz", "max_cpu_hz")]
        clock = own if clocks is None else arb(number(clocks, k, positive))
        down, self.s1 = bits("downlink_droppable_bits", "droppable_bits"), bits("droppable_bits")
        self.s0 = bits("fixed_bits") + self.s1
        joules, extra, cycles = value("capacitance") * clock**2, value("adapter_cycles"), value("fixed_cycles")
        self.budget, self.power = value("energy_budget_j"), value("max_tx_power_w")
        self.deadline = arb(number(problem, "deadline_s"))
        self.t1, self.e1 = down / speed + extra / clock, joules * extra
        self.t0 = self.deadline - (bits("downlink_fixed_bits", "fixed_bits") + down) / speed - (cycles + extra) / clock
        circuit = value("circuit_energy_j") if "circuit_energy_j" in raw else ZERO
        self.e0 = self.budget - circuit - joules * (cycles + extra)
        self.weight, self.constants = self.n / total, [arb(number(problem["bound"], key, 0.0)) for key in _BOUND]
        ofdma = problem["access"] == "ofdma"
        self.width = arb(number(problem, "subcarrier_hz", positive)) if ofdma else INFINITE
        gain = raw["channel_gain"] if ofdma else [raw["channel_gain"]]
        noise = arb(number(problem, "noise_psd_w_per_hz", positive))
        self.snr = [arb(number(gain, m, 0.0)) / noise for m in range(len(gain))]  # g/N0
        self.top = number(problem, "max_dropout_rate", 0.0)

    def at(self, gamma: arb) -> tuple[arb, arb, arb]:
        """Payload [bit], time left [s] and energy left [J], before the power cap."""
        return self.s0 - self.s1 * gamma, self.t0 + self.t1 * gamma, self.e0 + self.e1 * gamma

    def phi(self, gamma: arb) -> tuple[arb, arb]:
        """Weighted bound of the device and its derivative."""
        a, c, rho, curvature, regularization, delta = self.constants
        kept = 1 - gamma
        inner = curvature + 2 * regularization * (1 - kept**2)
        root = ((c**2 + 24 * c * rho**2 / inner) / (2 * self.n * delta)).sqrt()
        steep = -24 * c * rho**2 * regularization * kept / (inner**2 * self.n * delta * root) if c != 0 else ZERO
        return self.weight * (a * gamma / kept + root), self.weight * (a / kept**2 + steep)

    def slope(self, gamma: arb, a: arb, b: arb, share: arb | None = None) -> tuple[arb, arb]:
        """Derivative of phi + (a S - b share e)/tau, and the number whose sign says where the quotient is convex: falling."""
        _, tau, energy = self.at(gamma)
        share = share if share is not None else ONE if energy < self.power * tau else ZERO
        bend = (a * self.s0 - b * share * self.e0) * self.t1 + (a * self.s1 + b * share * self.e1) * self.t0
        return self.phi(gamma)[1] - bend / tau**2, bend

    def floor(self, a: arb, b: arb, at: arb, ends: Sequence[Any]) -> arb:
        """Lower bound of phi + (a S - b min(e, P tau))/tau over the rates in ``ends`` with tau > 0, a, b >= 0.

        min(e, P tau) <= share e + (1 - share) P tau for any share in [0, 1]; what is left is bounded by its tangent at
        ``at``.
        """
        left, right = arb(ends[0]), arb(ends[1])
        gamma, best = left if at < left else right if at > right else at, -INFINITE
        bits, tau, energy = self.at(gamma)
        cap, idle = self.power * tau, a == 0 and b == 0
        if not (idle or tau > 0):
            return best
        shares = [ONE if energy < cap else ZERO]
        if b > 0 and abs(energy - cap) <= 1e-6 * abs(cap):  # near the kink the best share makes the slope vanish
            slopes = self.slope(gamma, a, b, ZERO)[0], self.slope(gamma, a, b, ONE)[0]
            middle = (slopes[0] / (slopes[0] - slopes[1])).mid() if slopes[0] != slopes[1] else ZERO
            shares += [middle if 0 < middle < 1 else ONE, ZERO]
        for share in shares:
            value, slope = self.phi(gamma)
            value -= b * (1 - share) * self.power
            bend = ZERO if idle else self.slope(gamma, a, b, share)[1]
            first, start, early = self.at(left)
            if not idle and (bend >= 0 or self.t1 == 0):
                value, slope = value + (a * bits - b * share * energy) / tau, slope - bend / tau**2
            elif not idle and bend < 0 and start > 0:  # the quotient rises: least at the left end
                value += (a * first - b * share * early) / start
            elif not idle:
                continue
            best = best.max(min((value + slope * (end - gamma)).lower() for end in (left, right)))
        return best
