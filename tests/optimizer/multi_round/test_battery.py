"""Batteries over rounds: answers, bound and plans against brute force; the online policy against the offline bound."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from optimizer.fdma.bandwidth_curve import BandwidthCurve
from optimizer.fdma.exact import solve_fdma
from optimizer.multi_round.battery import Rounds, allowances, answer, best_prices, offline_plan
from optimizer.objective import GeneralizationBound
from optimizer.problem import FloatArray, ResourceProblem
from tests.optimizer.fleets import random_fleet
from tests.support.cases import first


def _cell(seed: int, devices: int, rounds: int, share: tuple[float, float] = (0.1, 0.5)) -> tuple[ResourceProblem, ...]:
    """A fleet, the Rayleigh gains (R, K) of its rounds, and batteries of a share of all rounds' budgets."""
    fleet, rng = random_fleet(seed, devices), np.random.default_rng([seed, 7])
    gain = fleet.channel_gain * rng.exponential(1.0, (rounds, devices))
    return fleet, gain, fleet.energy_budget_j * rounds * rng.uniform(*share, devices)  # type: ignore[return-value]


def _simulate(fleet: ResourceProblem, gain: FloatArray, battery: FloatArray, policy: str) -> float:
    """Cost of a run in which a policy allots energy round by round and `solve_fdma` allocates."""
    charge, total = battery.copy(), 0.0
    absence = Rounds(fleet, gain[:1]).absence[0]
    for row in range(len(gain)):
        now = replace(fleet, channel_gain=gain[row])
        if policy == "prices":
            budget = allowances(now, gain[:row], charge, len(gain) - row)[0]
        else:
            budget = np.minimum(np.minimum(battery / len(gain), charge), fleet.energy_budget_j)
        found = solve_fdma(replace(now, energy_budget_j=budget))
        on = found.scheduled
        total += float(absence[~on].sum()) + (found.objective if on.any() else 0.0)
        charge = charge - np.where(on, np.nan_to_num(found.energy_j), 0.0)
        assert (charge >= -1e-9 * battery).all()
        charge = np.maximum(charge, 0.0)
    return total


@pytest.mark.parametrize("seed", range(5))
def test_answers_to_prices_are_the_cheapest_of_a_grid(seed: int) -> None:
    fleet, gain, _ = _cell(seed, 3, 2)
    rounds, rng = Rounds(fleet, gain), np.random.default_rng(seed)
    theta, mu = 10 ** rng.uniform(-3, -1, 3), 10 ** rng.uniform(-8, -6, 2)
    found, blocks = answer(rounds, theta, mu), rounds.blocks
    curve, best = BandwidthCurve(blocks), np.full(6, np.inf)
    joule, hertz = np.tile(theta, 2), np.repeat(mu, 3)
    for rate in np.linspace(0, fleet.max_dropout_rate, 300):
        gamma = np.full(6, rate)
        least, left, bits = curve.bandwidth_hz(gamma), curve.uplink_time_s(gamma), curve.uplink_bits(gamma)
        computing = blocks.energy_budget_j - curve.energy_j + curve.energy_slope_j * (1 - rate)
        value = GeneralizationBound().value(blocks, gamma)
        for wider in np.geomspace(1, 300, 100):
            with np.errstate(all="ignore"):
                load = np.minimum(bits * np.log(2) / (left * least * wider), 600)
                energy = computing + left * curve.noise_to_gain * least * wider * np.expm1(load)
                cost = np.where(np.isfinite(least), value + joule * energy + hertz * least * wider, np.inf)
            best = np.minimum(best, np.where(np.isnan(cost), np.inf, cost))
    finite = np.isfinite(best)
    assert finite.any() and (np.isfinite(found.cost.ravel()) == finite).all()
    assert (found.cost.ravel() <= best * (1 + 1e-9))[finite].all()
    np.testing.assert_allclose(found.cost.ravel()[finite], best[finite], rtol=2e-3)


@pytest.mark.parametrize("seed", first(1, range(4)))
def test_no_split_of_the_batteries_beats_the_offline_bound(seed: int) -> None:
    """Brute force over how two devices divide their batteries between two rounds, each round solved exactly."""
    fleet, gain, battery = _cell(seed, 2, 2, (0.3, 0.7))
    plan, absence, best = offline_plan(Rounds(fleet, gain), battery), Rounds(fleet, gain).absence[0], np.inf
    cost: dict[tuple[int, int, int], float] = {}
    shares = np.linspace(0, 1, 13)
    for row, one, other in product((0, 1), range(13), range(13)):
        spent = shares[[one, other]] if row == 0 else 1 - shares[[one, other]]
        budget = np.minimum(battery * spent, fleet.energy_budget_j)
        found = solve_fdma(replace(fleet, channel_gain=gain[row], energy_budget_j=budget))
        served = found.objective if found.scheduled.any() else 0.0
        cost[row, one, other] = min(served + float(absence[~found.scheduled].sum()), float(absence.sum()))
    best = min(cost[0, i, j] + cost[1, i, j] for i, j in product(range(13), range(13)))
    assert plan.lower_bound <= best * (1 + 1e-12) and plan.cost >= plan.lower_bound
    assert plan.cost <= best * 1.02


def test_the_bound_falls_with_the_battery_and_holds_the_plan() -> None:
    fleet, gain, battery = _cell(0, 6, 15)
    rounds, earlier = Rounds(fleet, gain), np.inf
    for factor in (0.0, 0.3, 1.0, 3.0, 10.0):
        plan = offline_plan(rounds, factor * battery)
        assert plan.lower_bound <= plan.cost and plan.lower_bound <= earlier * (1 + 1e-6)
        assert (plan.energy_j.sum(axis=0) <= factor * battery * (1 + 1e-9)).all()
        earlier = plan.lower_bound
    assert not offline_plan(rounds, 0 * battery).served.any()


def test_any_prices_prove_a_bound() -> None:
    fleet, gain, battery = _cell(1, 4, 8)
    rounds = Rounds(fleet, gain)
    prices = best_prices(rounds, battery)
    plan = offline_plan(rounds, battery)
    for factor in (0.3, 0.9, 1.2, 4.0):
        found = answer(rounds, factor * prices.per_j, prices.per_hz)
        least = np.minimum(found.cost, rounds.absence).sum()
        paid = factor * prices.per_j @ battery + fleet.total_bandwidth_hz * prices.per_hz.sum()
        assert least - paid <= plan.cost


@pytest.mark.parametrize(
    ("seed", "devices", "rounds"), first(1, [(1, 4, 12), (0, 4, 12), *((seed, 10, 50) for seed in range(20))])
)
def test_the_online_policy_is_near_the_offline_bound_and_ahead_of_even_shares(
    seed: int, devices: int, rounds: int
) -> None:
    fleet, gain, battery = _cell(seed, devices, rounds)
    plan = offline_plan(Rounds(fleet, gain), battery)
    online, even = (_simulate(fleet, gain, battery, policy) for policy in ("prices", "even"))
    assert plan.cost <= (1.01 if rounds == 50 else 1.03) * plan.lower_bound
    assert plan.lower_bound <= online <= 1.05 * plan.lower_bound and online < even


def test_an_empty_device_is_allotted_nothing() -> None:
    fleet, gain, battery = _cell(2, 4, 3)
    battery[1] = 0.0
    allotted, price = allowances(replace(fleet, channel_gain=gain[0]), gain[:0], battery, 3)
    assert allotted[1] == 0 and (allotted >= 0).all() and (allotted <= battery).all() and (price >= 0).all()
