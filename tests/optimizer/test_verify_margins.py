"""The verifier's float64 shortcuts beside exact arithmetic: whatever they leave out is surely left out rightly."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from flint import arb, ctx

from optimizer.problem import FloatArray
from optimizer.verify import LN2, ZERO, Claim, Device, bisect, choices
from tests.optimizer.honest import as_files, solve
from tests.optimizer.ofdma_instances import random_problem
from tests.support.cases import first

FAR = (1e-320, 1e-300, 1e-200, 1e-30, 1e-16, 1.0, 1e16, 1e200, 1e290)
NEAR = (0.0, 1e-16, -1e-16, 1e-15, -1e-15, 1e-14, -1e-14, 1e-12, -1e-12, 1e-6, -1e-6)
SEEDS = pytest.mark.parametrize("seed", first(2, range(40)))


@pytest.fixture(scope="module")
def files() -> tuple[dict[str, Any], dict[str, Any]]:
    cell = random_problem(1, 9, 0)
    return as_files(cell, solve(cell, "equal"))


@pytest.fixture(autouse=True)
def _wide() -> Iterator[None]:
    with ctx.workprec(128), np.errstate(all="ignore"):
        yield


def _device(files: Any, gain: FloatArray, **problem: float) -> Device:
    """A device without any use of energy or downlink, which radiates ``max_tx_power_w`` for a second."""
    cell, solution = files
    own = {"channel_gain": gain.tolist(), "fixed_cycles": 0.0, "adapter_cycles": 0.0, "energy_budget_j": 1e300}
    payload = {key: 0.0 for key in cell["payload"]}
    device = cell["devices"][0] | own | {"max_tx_power_w": problem.pop("power_w", 1.0)}
    return Claim(cell | problem | {"devices": [device], "payload": payload, "deadline_s": 1.0}, solution).fleet[0]


def _capacity(power: float, device: Device, members: Any) -> arb:
    """Nats that water-filling carries, with 600 digits."""
    with ctx.workprec(2000):
        noise_w = sorted((v.mid() for v in device.balls[0][members] if v.is_finite()), key=lambda v: v.log())
        nats = arb(0)
        for n in range(1, len(noise_w) + 1):
            level = (power + sum(noise_w[:n], arb(0))) / n
            if noise_w[n - 1] < level:
                nats = sum(((level / v).log() for v in noise_w[:n]), arb(0))
        return nats


@SEEDS
def test_many_sets_in_floats_say_never_only_where_it_is_true(seed: int, files: Any) -> None:
    rng, said = np.random.default_rng([seed, 3]), 0
    for _ in range(12):
        scale = float(rng.choice(FAR[2:-2])) if seed % 3 else 1.0
        gain = scale * 10 ** rng.uniform(-1, 1, 9) if seed % 2 else 10 ** rng.uniform(-320, 300, 9)
        power = float(rng.choice(FAR)) if rng.random() < 0.3 else 10 ** rng.uniform(-20, 5)
        device = _device(
            files, gain, power_w=power, noise_psd_w_per_hz=float(10 ** rng.uniform(-290, 0)), subcarrier_hz=1.0
        )
        sets = np.array([rng.choice(9, 4, replace=False) for _ in range(5)])
        carried = [_capacity(power, device, row) for row in sets]
        for near in NEAR:
            for need in carried:
                device.s0 = (need * (1 + arb(near)) / LN2).mid() if need > 0 else arb(float(rng.choice(FAR)))
                never = device.waterfilling(sets, arb(0))[0]
                said += int(never.sum())
                assert all(not (most >= device.s0 * LN2) for most, gone in zip(carried, never, strict=True) if gone)
    assert said > 400


def test_a_channel_beyond_the_range_of_floats_still_carries_something(files: Any) -> None:
    """N0 Delta/g is 1e309: infinite as a float, and the set is not called useless for it."""
    device = _device(files, np.full(9, 1e-320), subcarrier_hz=1e10, noise_psd_w_per_hz=1e-21, power_w=1e5)
    device.s0 = arb(1e-300)  # a ten thousandth of what it carries
    sets = np.array([[0, 1], [2, 3]])
    assert _capacity(1e5, device, sets[0]) > device.s0 / device.width * LN2
    assert not device.waterfilling(sets, arb(0))[0].any()


def _least_cost(device: Device, price: FloatArray, items: Any, rate: arb, power: arb) -> tuple[Any, list[Any]]:
    """Least psi and least price - D per item by the definition, in balls of 600 digits."""
    a, b, c = rate / device.width, power, rate / LN2
    with ctx.workprec(2000):
        costs = []
        for m in items:
            level, own = (c / b if power > 0 else arb(0)), device.balls[0][m].mid()
            worth = c * (level / own).log() - b * (level - own) if own < level else arb(0)
            costs.append((arb(float(price[m])) - worth.max(arb(0))).upper())
        values = [device.phi(g)[0] + device.quotient(g, a, b, g)[0] for g in map(arb, np.linspace(0, device.top, 9))]
        return min(value.upper() for value in values), costs


@SEEDS
def test_floors_of_sets_added_as_floats_in_any_order_stay_below_the_exact_ones(seed: int, files: Any) -> None:
    """And a list of all sets that may cost less than a target leaves out none that does, prices near what they buy."""
    rng, listed = np.random.default_rng([seed, 5]), 0
    items = np.arange(9)
    for _ in range(6):
        spread = float(rng.choice([1, 8, 60, 150]))
        device = _device(files, 10 ** rng.uniform(-spread, spread, 9), noise_psd_w_per_hz=1.0, subcarrier_hz=1.0)
        device.s0 = arb(float(10 ** rng.uniform(-spread, 1)))
        rate, power = (arb(float(10 ** rng.uniform(-spread, spread))) for _ in range(2))
        worth = -device.cut(np.zeros(9), items, (0.0, device.top), rate, power)[1]
        price = np.clip(worth * (1 + rng.choice(NEAR, 9)) + rng.choice([0.0, 1e-300, 1e-3]) * rng.random(9), 0, 1e300)
        psi, reduced, *_ = device.cut(price, items, (0.0, device.top), rate, power)
        most, costs = _least_cost(device, price, items, rate, power)
        sets = [np.array(part, int) for size in (1, 3, 4) for part in combinations(range(9), size)]
        for part in sets:
            order = rng.permutation(part)
            exact = most + sum((costs[m] for m in part), arb(0))
            assert all(arb(float(total)) <= exact for total in (psi + reduced[order].sum(), sum(reduced[order], psi)))
        if psi == -1e300:
            continue
        ranked = np.argsort(reduced, kind="stable")
        for target in (psi + float(np.sort(reduced)[:3].sum()) * (1 + near) for near in NEAR[::2]):
            found = choices(reduced[ranked], 3, target - psi, 200)
            kept = {frozenset(ranked[row].tolist()) for row in found}
            listed += len(kept)
            for part in combinations(range(9), 3):  # lowered psi and costs are what the floor is made of: exactly
                left = Fraction(psi) + sum(Fraction(float(reduced[m])) for m in part)
                slack = Fraction(1e-15) * 11 * (abs(Fraction(psi)) + sum(map(abs, map(Fraction, reduced.tolist()))))
                assert frozenset(part) in kept or left + slack >= Fraction(target)
    assert listed > 0


@SEEDS
def test_a_list_is_said_to_cost_a_target_only_where_every_set_of_it_does(seed: int, files: Any) -> None:
    """Prices far apart, sets that just carry the payload at all rates or just do not, targets next to the cheapest."""
    rng, said = np.random.default_rng([seed, 8]), {True: 0, False: 0}
    sets = np.array(list(combinations(range(9), 3)))
    for _ in range(6):
        device = _device(files, 10 ** rng.uniform(-2, 2, 9), noise_psd_w_per_hz=1.0, subcarrier_hz=1.0)
        some = sets[rng.random(len(sets)) < 0.2]
        carried = [_capacity(1.0, device, row) for row in some]
        device.s0 = (carried[0] * (1 + arb(float(rng.choice(NEAR)))) / LN2).mid()
        best = bisect(lambda rate, device=device: device.falls(rate, ZERO, ZERO), (0.0, device.top))[1]
        phi = Fraction(float(device.phi(best)[0].upper()))
        price = float(rng.choice([float(phi), *FAR[:-1]])) * 10 ** rng.uniform(-17, 0.5, 9)
        paid = [
            sum(map(Fraction, price[row].tolist()), phi)
            for row, nats in zip(some, carried, strict=True)
            if nats >= device.s0 * LN2
        ]
        for near in (-1e-6, *rng.choice(NEAR, 2)):
            target = float(min(paid, default=phi)) * (1 + near)
            holds = device.all_cost(target, some, price, (0.0, device.top))
            said[holds] += 1
            assert not holds or all(cost * (1 + Fraction(1e-15)) >= Fraction(target) for cost in paid)
    assert min(said.values()) >= 1, said
