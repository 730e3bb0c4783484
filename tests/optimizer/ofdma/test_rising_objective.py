"""OFDMA with objectives that are not convex: the stand-in, and the tree search against brute force."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from optimizer.allocator import make_allocator
from optimizer.feasibility import check_solution
from optimizer.objective import SeparableObjective
from optimizer.ofdma.branch_and_bound import solve_bnb_ofdma
from optimizer.ofdma.dual_bound import device_minima, lagrangian_slope, root_box
from optimizer.ofdma.model import OfdmaModel, power_budget, required_rate
from optimizer.ofdma.psca import solve_psca_ofdma
from optimizer.ofdma.rising_objective import rising_objective
from optimizer.ofdma.waterfilling import set_rates
from optimizer.problem import FloatArray, ResourceProblem, SolverStatus
from optimizer.solver_interface import Arguments
from tests.optimizer.fleets import Rippled
from tests.optimizer.ofdma_instances import random_problem
from tests.support.cases import first


class Rising:
    """phi = gamma: its best rate is the smallest one a set can serve, which is what brute force needs to know."""

    def value(self, problem: ResourceProblem, dropout_rate: FloatArray) -> FloatArray:
        return np.asarray(dropout_rate) + 0.0

    def derivative(self, problem: ResourceProblem, dropout_rate: FloatArray) -> FloatArray:
        return np.ones_like(dropout_rate)

    def curvature_floor(self, problem: ResourceProblem, low: FloatArray, high: FloatArray) -> FloatArray:
        return np.zeros(np.broadcast(low, high).shape)


def brute_force(problem: ResourceProblem, objective: SeparableObjective) -> float:
    """All ownerships, each device at the best of 40,001 rates at or above the smallest one its set serves."""
    smallest = OfdmaModel(problem, Rising())
    count, width = problem.channel_gain.shape
    grid = np.linspace(0, problem.max_dropout_rate, 40_001)
    value = objective.value(problem, np.repeat(grid[:, None], count, axis=1))
    best = np.minimum.accumulate(value[::-1], axis=0)[::-1]
    least = np.inf
    for owner in itertools.product(range(count), repeat=width):
        owned = np.array(owner)[None, :] == np.arange(count)[:, None]
        gamma = set_rates(smallest, np.arange(count), owned)
        if np.isfinite(gamma).all():
            at = np.minimum(np.searchsorted(grid, gamma), len(grid) - 1)
            least = min(least, float(best[at, np.arange(count)].sum()))
    return least


@pytest.mark.parametrize("seed", range(3))
def test_the_tree_search_finds_the_global_minimum(seed: int) -> None:
    problem, objective = random_problem(3, 6, seed, load=4e6), Rippled(height=0.08)
    found = solve_bnb_ofdma(problem, Arguments(gap=1e-6, objective=objective))
    assert found.scheduled.all() and check_solution(problem, found, objective) == []
    least = brute_force(problem, objective)
    assert found.lower_bound <= least + 1e-9
    assert found.objective == pytest.approx(least, rel=2e-6)
    # The convex bound's ownership, at the rates it chose, is another point: the ripple matters.
    plain = solve_bnb_ofdma(problem, Arguments(gap=1e-6))
    assert float(objective.value(problem, plain.dropout_rate).sum()) > least * (1 + 1e-4)


# The high ripple takes 120 nodes and 90 CPU s.
@pytest.mark.parametrize(("height", "frequency"), first(1, [(0.02, 60.0), (0.05, 25.0)]))
def test_the_gap_of_a_mid_size_cell_is_certified(height: float, frequency: float) -> None:
    problem, objective = random_problem(6, 24, 4), Rippled(height, frequency)
    found = solve_bnb_ofdma(problem, Arguments(gap=1e-4, objective=objective))
    assert (
        found.status is SolverStatus.OPTIMAL and found.gap <= 1e-4 and check_solution(problem, found, objective) == []
    )
    for name in ("psca", "equal", "common", "proportional", "random", "fixed"):
        other = make_allocator(name, objective=objective).allocate(problem, rng=np.random.default_rng(0))
        if other.scheduled.all():
            assert found.lower_bound <= other.objective and other.lower_bound <= found.objective, name
    for seed in range(20):  # any ownership whatever
        owner = np.random.default_rng(seed).integers(0, 6, 24)
        model = OfdmaModel(problem, objective)
        gamma = model.choose_rates(set_rates(model, np.arange(6), owner == np.arange(6)[:, None]))
        if np.isfinite(gamma).all():
            assert objective.value(problem, gamma).sum() >= found.lower_bound


@pytest.mark.parametrize(("devices", "subcarriers"), first(1, [(4, 12), (5, 20)]))
def test_psca_is_near_the_tree_search(devices: int, subcarriers: int) -> None:
    problem, objective = random_problem(devices, subcarriers, 1, load=5e6), Rippled()
    best, rough = (
        solve_bnb_ofdma(problem, Arguments(objective=objective)),
        solve_psca_ofdma(problem, Arguments(objective=objective)),
    )
    assert check_solution(problem, rough, objective) == []
    assert rough.lower_bound <= best.objective and best.objective <= rough.objective * (1 + 1e-4)
    assert rough.objective <= best.objective * 1.005


def test_the_stand_in_is_below_and_close_and_rising() -> None:
    problem, objective = random_problem(4, 8, 0), Rippled(frequency=40.0)
    rising = rising_objective(problem, objective)
    assert rising is not None
    grid = np.linspace(0, 0.9, 70_001)
    true = objective.value(problem, np.repeat(grid[:, None], 4, axis=1))
    psi = np.minimum.accumulate(true[::-1], axis=0)[::-1]
    low, high = np.array([0.1, 0.0, 0.3, 0.5]), np.array([0.8, 0.9, 0.31, 0.5])
    hull = rising.table.hull(low, high)
    for k in range(4):
        who = np.full(len(grid), k)
        stand_in = rising.table.value(grid, who)
        assert (stand_in <= psi[:, k]).all() and (np.diff(stand_in) >= -1e-15).all()
        assert (psi[:, k] - stand_in).max() < 1e-6
        inside = (grid >= low[k]) & (grid <= high[k])
        below = hull.value(grid[inside], who[inside])
        assert (below <= stand_in[inside] + 1e-13).all()
        if high[k] > low[k]:
            assert (np.diff(hull.height[k]) / np.diff(hull.rate[k])).min() >= -1e-12
            assert (np.diff(np.diff(hull.height[k]) / np.diff(hull.rate[k])) >= -1e-9).all()  # convex


def test_lagrangian_minima_stay_below_for_any_price() -> None:
    problem, objective = random_problem(4, 8, 2), Rippled()
    model = OfdmaModel(problem, objective)
    box, rng = root_box(model), np.random.default_rng(0)
    for _ in range(20):
        prices = 10 ** rng.uniform([[-6], [-4]], [[0], [2]], (2, 4))
        bound, _ = device_minima(model, box, prices)
        for k in range(4):
            grid = np.linspace(box.low[k], box.high[k], 4001)
            who = np.full(len(grid), k)
            true = objective.value(problem, np.repeat(grid[:, None], 4, axis=1))[:, k]
            lam, eta = prices[:, k]
            lagrangian = true + lam * required_rate(model, grid, who) - eta * power_budget(model, grid, who)
            assert bound[k] <= lagrangian.min() + 1e-12
            assert np.isfinite(lagrangian_slope(model, grid, prices[:, k], who)).all()


def test_no_dropout_and_a_convex_objective_need_no_stand_in() -> None:
    problem = random_problem(3, 9, 5, load=1e6)
    assert OfdmaModel(problem).rising is None
    none = replace(problem, max_dropout_rate=0.0, droppable_bits=problem.droppable_bits / 4)
    solution = solve_bnb_ofdma(none, Arguments(objective=Rippled()))
    assert check_solution(none, solution, Rippled()) == [] and solution.scheduled.any()
