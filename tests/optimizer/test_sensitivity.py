"""What one more unit of a resource changes, against solving again with a little more of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from optimizer.allocator import make_allocator
from optimizer.fdma.exact import solve_fdma
from optimizer.ofdma.branch_and_bound import solve_bnb_ofdma
from optimizer.ofdma.model import OfdmaModel
from optimizer.ofdma.waterfilling import set_values
from optimizer.problem import FloatArray, ResourceProblem
from optimizer.sensitivity import sensitivity
from tests.optimizer.fleets import random_fleet
from tests.optimizer.ofdma_instances import random_problem


def bumped(values: FloatArray, k: int, step: float) -> FloatArray:
    return values + step * (np.arange(len(values)) == k)


@pytest.mark.parametrize("seed", range(4))
def test_fdma_prices_are_the_derivatives_of_the_optimum(seed: int) -> None:
    fleet = random_fleet(seed, 6)
    found = solve_fdma(fleet)
    assert found.scheduled.all()
    prices = sensitivity(fleet, found)

    def slope(field: str, low: object, high: object, step: float) -> float:
        ends = [solve_fdma(replace(fleet, **{field: value})).objective for value in (low, high)]  # type: ignore[arg-type]
        return (ends[1] - ends[0]) / (2 * step)

    step = 1e-4 * fleet.total_bandwidth_hz
    by_band = slope("total_bandwidth_hz", fleet.total_bandwidth_hz - step, fleet.total_bandwidth_hz + step, step)
    assert -prices.bandwidth_price[0] == pytest.approx(by_band, rel=1e-4) and (prices.bandwidth_price > 0).all()
    by_time = slope("deadline_s", 4 - 4e-4, 4 + 4e-4, 4e-4)
    assert prices.per_second.sum() == pytest.approx(by_time, rel=1e-3)
    for k in range(6):
        for field, mine in (("energy_budget_j", prices.per_joule), ("max_tx_power_w", prices.per_watt)):
            values, step = getattr(fleet, field), 1e-4 * getattr(fleet, field)[k]
            measured = slope(field, bumped(values, k, -step), bumped(values, k, step), step)
            assert mine[k] == pytest.approx(measured, rel=2e-3, abs=1e-7)
    assert prices.on_deadline.all() and (prices.on_energy | prices.on_power).all() and not prices.at_best.any()


def test_a_rule_leaves_every_device_its_own_price() -> None:
    fleet = random_fleet(1, 5, total_bandwidth_hz=8e5)
    found = make_allocator("equal").allocate(fleet)
    prices = sensitivity(fleet, found)
    on = np.flatnonzero(found.scheduled)
    assert len(set(np.round(prices.bandwidth_price[on] * 1e12))) > 1
    for k in on:
        values, step = fleet.energy_budget_j, 1e-4 * fleet.energy_budget_j[k]
        ends = [
            make_allocator("equal").allocate(replace(fleet, energy_budget_j=bumped(values, k, s))).objective
            for s in (-step, step)
        ]
        assert prices.per_joule[k] == pytest.approx((ends[1] - ends[0]) / (2 * step), rel=2e-3, abs=1e-7)


def test_a_fleet_with_plenty_pays_nothing() -> None:
    fleet = random_fleet(0, 4, total_bandwidth_hz=1e9, energy_budget_j=50.0, max_tx_power_w=10.0, channel_gain=1e-8)
    found = solve_fdma(fleet)
    prices = sensitivity(fleet, found)
    assert prices.at_best.all() and prices.bandwidth_price.max() == 0 and prices.per_second.min() == 0
    np.testing.assert_allclose(prices.best_rate, found.dropout_rate, atol=1e-9)


def values_of(problem: ResourceProblem, owned: np.ndarray) -> FloatArray:
    return set_values(OfdmaModel(problem), np.arange(problem.num_devices), owned)


@pytest.mark.parametrize("seed", range(3))
def test_ofdma_sensitivities_hold_the_sets(seed: int) -> None:
    problem = random_problem(4, 16, seed)
    found = solve_bnb_ofdma(problem)
    assert found.scheduled.all() and found.subcarrier_owner is not None
    owned = found.subcarrier_owner[None, :] == np.arange(4)[:, None]
    prices = sensitivity(problem, found)
    for field, mine in (("energy_budget_j", prices.per_joule), ("max_tx_power_w", prices.per_watt)):
        step = 1e-4 * getattr(problem, field)
        ends = [values_of(replace(problem, **{field: getattr(problem, field) + s}), owned) for s in (-step, step)]
        np.testing.assert_allclose(mine, (ends[1] - ends[0]) / (2 * step), rtol=2e-3, atol=1e-8)
    ends = [values_of(replace(problem, deadline_s=4.0 + s), owned) for s in (-4e-4, 4e-4)]
    np.testing.assert_allclose(prices.per_second, (ends[1] - ends[0]) / 8e-4, rtol=2e-3, atol=1e-8)
    assert (prices.bandwidth_price >= 0).all() and prices.bandwidth_price.max() > 0


def test_who_sits_out_has_no_price() -> None:
    fleet = random_fleet(0, 3, channel_gain=np.array([1e-9, 0.0, 1e-10]))
    prices = sensitivity(fleet, solve_fdma(fleet))
    assert prices.bandwidth_price[1] == 0 and prices.per_second[1] == 0 and not prices.on_deadline[1]
