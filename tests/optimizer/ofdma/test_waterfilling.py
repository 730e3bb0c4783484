"""Water-filling and the value of an ownership set, against definitions and bisection."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq

from optimizer.fdma.admission import Admission
from optimizer.feasibility import evaluate
from optimizer.ofdma.completion import finish, least_power
from optimizer.ofdma.model import OfdmaModel, power_budget
from optimizer.ofdma.waterfilling import (
    list_members,
    owned_mask,
    serves_at,
    set_rates,
    set_values,
    shortage,
    soft_values,
    sort_members,
    waterfill_power,
    waterfill_rate,
)
from optimizer.problem import IntArray, ProblemError, Solution
from optimizer.solver_interface import DEFAULTS, Decision
from tests.optimizer.fleets import random_fleet
from tests.optimizer.ofdma_instances import random_problem


def masks(count: int, width: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random((count, width)) < 0.5


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(1e-4, 10.0))
def test_waterfilling_is_the_best_split(seed: int, power: float) -> None:
    model = OfdmaModel(random_problem(1, 6, seed))
    owned = masks(1, 6, seed)
    sets = sort_members(model, np.zeros(1, dtype=np.int64), list_members(owned))
    rate, per_watt = waterfill_rate(sets, np.array([power]))
    inverse = model.inv_snr[0, owned[0]]
    if inverse.size == 0:
        assert rate[0] == 0
        return
    level = brentq(lambda w: np.maximum(w - inverse, 0).sum() - power, 0, inverse.max() + power + 1, xtol=1e-15)
    split = np.maximum(level - inverse, 0)
    assert rate[0] == pytest.approx(np.log2(1 + split / inverse).sum(), rel=1e-9)
    again, _ = waterfill_rate(sets, np.array([power * 1.000001]))
    assert (again[0] - rate[0]) / (power * 1e-6) == pytest.approx(per_watt[0], rel=1e-3)
    assert waterfill_power(sets, rate)[0] == pytest.approx(power, rel=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_smallest_rate_is_where_the_definition_turns_feasible(seed: int) -> None:
    problem = random_problem(3, 8, seed)
    model = OfdmaModel(problem)
    owned = masks(60, 8, seed)
    device = np.arange(60) % 3
    rates = set_rates(model, device, owned)
    assert np.isfinite(rates).any()
    for k, mask, gamma in zip(device, owned, rates, strict=True):
        for trial in [gamma] if np.isfinite(gamma) else [0.9]:
            # All the power the device may use, water-filled, must just do: on time, and not below the least rate.
            power = power_budget(model, np.array([trial]), np.array([k]))
            sets = sort_members(model, np.array([k]), list_members(mask[None]))
            carried = waterfill_rate(sets, power)[0][0] * problem.subcarrier_hz
            bits = problem.fixed_bits[k] + problem.droppable_bits[k] * (1 - trial)
            busy = bits / problem.downlink_rate_bps[k]
            busy += (problem.fixed_cycles[k] + problem.adapter_cycles[k] * (1 - trial)) / problem.cpu_hz[k]
            late = busy + (bits / carried if carried > 0 else np.inf) - problem.deadline_s
            if not np.isfinite(gamma):
                assert late > 0
            elif gamma > model.rate_low[k] + 1e-12:
                assert abs(late) < 1e-8
            else:
                assert late <= 1e-8


def test_values_sifting_and_soft_values_agree() -> None:
    model = OfdmaModel(random_problem(3, 8, 5))
    owned = masks(200, 8, 5)
    device = np.arange(200) % 3
    lists = list_members(owned)
    rates, hard, soft = (
        set_rates(model, device, owned),
        set_values(model, device, owned),
        soft_values(model, device, lists),
    )
    able = np.isfinite(rates)
    np.testing.assert_array_equal(hard[able], soft[able])
    assert soft[~able].min() > soft[able].max()
    assert np.all(shortage(model, device, lists)[~able] > 0) and np.all(shortage(model, device, lists)[able] == 0)
    assert np.all(serves_at(model, device, lists, np.where(able, rates + 1e-9, 0.0))[able])
    inside = able & (rates > model.rate_low[device] + 1e-5)
    assert not serves_at(model, device, lists, np.where(able, rates - 1e-5, 0.0))[inside].any()


def test_a_larger_set_is_never_worse() -> None:
    model = OfdmaModel(random_problem(2, 6, 3))
    sets = np.array(list(itertools.product((False, True), repeat=6)))
    for k in range(2):
        value = set_values(model, np.full(64, k), sets)
        for m in range(6):
            grown = sets.copy()
            grown[:, m] = True
            assert np.all(set_values(model, np.full(64, k), grown) <= value + 1e-12)


def test_least_power_meets_the_deadline_exactly_and_saving_energy_keeps_the_objective() -> None:
    problem = random_problem(4, 16, 2, load=2e6)
    model = OfdmaModel(problem)
    owner = np.arange(16) % 4
    gamma = set_rates(model, np.arange(4), owner == np.arange(4)[:, None])
    power = least_power(model, owner, gamma)
    found = evaluate(problem, gamma, power)
    np.testing.assert_allclose(found.cost.latency_s, problem.deadline_s, rtol=1e-9)
    plain, saved = _completed(model, owner)
    assert saved.objective == pytest.approx(plain.objective, abs=1e-15)
    assert saved.energy_j.sum() < plain.energy_j.sum()


def _completed(model: OfdmaModel, owner: IntArray) -> tuple[Solution, Solution]:
    """With the given subcarriers at the best rates for them, and with subcarriers moved to save energy."""
    everyone = Admission(np.ones(model.num_devices, dtype=bool), ("",) * model.num_devices, False)
    gamma = set_rates(model, np.arange(model.num_devices), owned_mask(owner, model.num_devices))
    decisions = Decision(-np.inf, dropout_rate=gamma, owner=owner), Decision(-np.inf, owner=owner)
    plain, saved = (finish(model, everyone, decision, DEFAULTS) for decision in decisions)
    return plain, saved


def test_idle_subcarriers_are_used_to_save_energy() -> None:
    model = OfdmaModel(random_problem(2, 10, 4, load=1e6))
    owner = np.full(10, -1)
    owner[:4] = [0, 1, 0, 1]
    lean, saved = _completed(model, owner)
    assert saved.energy_j.sum() < lean.energy_j.sum() and saved.objective <= lean.objective + 1e-15


def test_fdma_has_its_own_solvers() -> None:
    with pytest.raises(ProblemError, match="'ofdma'"):
        OfdmaModel(random_fleet(0, 3))
