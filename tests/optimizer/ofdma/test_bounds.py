"""Every lower bound against listed assignments, and the tree search against brute force over all ownerships."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer.feasibility import check_solution
from optimizer.instances import sample_problem
from optimizer.objective import GeneralizationBound
from optimizer.ofdma.branch_and_bound import solve_bnb_ofdma
from optimizer.ofdma.dual_bound import certify_prices, maximise_bound, root_box, start_prices
from optimizer.ofdma.local_search import local_search, owner_values
from optimizer.ofdma.model import OfdmaModel
from optimizer.ofdma.psca import solve_psca_ofdma
from optimizer.ofdma.set_bound.master import SetBound
from optimizer.ofdma.set_bound.pricing import Pricing, choose_members, make_columns
from optimizer.ofdma.waterfilling import owned_mask, set_values
from optimizer.problem import FloatArray, ResourceProblem
from optimizer.solver_interface import Arguments, Limits
from tests.optimizer.ofdma_instances import SHARED, random_problem, shared_problem
from tests.support.cases import first


def subset_table(model: OfdmaModel) -> tuple[np.ndarray, np.ndarray]:
    """All sets of subcarriers (2^M, M) and their values (K, 2^M)."""
    sets = np.array(list(itertools.product((False, True), repeat=model.num_subcarriers)))
    return sets, np.array([set_values(model, np.full(len(sets), k), sets) for k in range(model.num_devices)])


def brute_force(model: OfdmaModel) -> float:
    """Best sum of values over all partitions, by dynamic programming over subsets."""
    sets, value = subset_table(model)
    code = sets @ (1 << np.arange(model.num_subcarriers))
    by_code = np.empty_like(value)
    by_code[:, code] = value
    best = by_code[0]
    full = 1 << model.num_subcarriers
    for k in range(1, model.num_devices):
        merged = np.full(full, np.inf)
        for part in range(full):
            rest = np.array([c for c in range(full) if c & part == 0])
            np.minimum.at(merged, rest | part, by_code[k, part] + best[rest])
        best = merged
    return float(best[-1])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 3), st.integers(3, 6), st.floats(1e6, 8e6))
def test_tree_search_equals_brute_force(seed: int, count: int, width: int, load: float) -> None:
    problem = random_problem(count, width, seed, load=load)
    solution = solve_bnb_ofdma(problem, Arguments(gap=1e-9))
    assert check_solution(problem, solution) == []
    if solution.scheduled.all():
        assert solution.objective == pytest.approx(brute_force(OfdmaModel(problem)), rel=1e-8)
        assert solution.gap <= 1e-8


@pytest.mark.parametrize(("seed", "rounds"), first(1, [(1, 1), (0, 0), (0, 1)]))
def test_branching_alone_closes_the_gap(seed: int, rounds: int) -> None:
    """With short lists and hardly a linear program per node the bound stays weak: the tree must do the rest."""
    problem = random_problem(3, 6, seed)
    limits = Limits(rounds=rounds, list_length=4, keep=1)
    solution = solve_bnb_ofdma(problem, Arguments(gap=1e-9, limits=limits))
    assert solution.nodes > 1
    assert solution.objective == pytest.approx(brute_force(OfdmaModel(problem)), rel=1e-8)
    assert solution.gap <= 1e-8


@pytest.mark.slow
def test_splitting_rates_or_only_owners_ends_at_the_same_optimum() -> None:
    problem = random_problem(4, 10, 10)
    limits = (Limits(split_rates=rates, rounds=3, list_length=20) for rates in (None, False))
    runs = [solve_bnb_ofdma(problem, Arguments(gap=1e-9, limits=each)) for each in limits]
    assert all(run.nodes > 1 and run.gap <= 1e-9 for run in runs)
    assert runs[0].objective == pytest.approx(runs[1].objective, rel=1e-9)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_any_prices_bound_any_assignment(seed: int) -> None:
    rng = np.random.default_rng(seed)
    model = OfdmaModel(random_problem(3, 9, seed % 50))
    box = root_box(model)
    leaf = certify_prices(model, box, start_prices(model, box) * np.exp(rng.normal(0, 1, (2, 3))))
    owner, _ = local_search(model, rng.integers(0, 3, 9))
    value = owner_values(model, owner).sum()
    assert leaf.bound <= value + 1e-12
    price = leaf.price * rng.uniform(0.5, 1.5, 9)
    ceiling = owner_values(model, owner) + owned_mask(owner, 3) @ price
    least, _ = Pricing(model, box, price).cheapest_sets(ceiling, 0.0, Limits())
    assert least.sum() - price.sum() <= value + 1e-12


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 400))
def test_pricing_finds_the_cheapest_set_or_stays_below_it(seed: int, list_length: int) -> None:
    rng = np.random.default_rng(seed)
    model = OfdmaModel(random_problem(2, 7, seed % 40))
    box = root_box(model)
    price = maximise_bound(model, box).leaf.price * rng.uniform(0.7, 1.3, 7)
    sets, value = subset_table(model)
    exact = (value + sets @ price).min(axis=1)
    ceiling = exact + rng.uniform(0, 0.01)
    found = Pricing(model, box, price).cheapest_sets(ceiling, 1e-3, Limits(list_length=list_length))[0]
    assert np.all(found <= exact + 1e-12)
    complete = Pricing(model, box, price).cheapest_sets(ceiling, 1e-3, Limits())[0]
    np.testing.assert_allclose(complete, exact, rtol=1e-10)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 6), st.floats(-2, 2))
def test_choosing_members_misses_nothing(seed: int, size: int, limit: float) -> None:
    cost = np.sort(np.random.default_rng(seed).normal(0, 1, 7))
    picks = choose_members(cost, size, limit, 10_000)
    expected = [c for c in itertools.combinations(range(7), size) if cost[list(c)].sum() <= limit] if size else None
    assert picks is not None
    if expected is not None:
        assert sorted(map(tuple, picks.tolist())) == expected


def test_no_price_falls_to_nothing_on_the_way() -> None:
    """In logarithms a price that has fallen to nothing stays there: one device's cost a twentieth of the bound."""
    cell = sample_problem(20, 0, access="ofdma", num_subcarriers=100)
    model = OfdmaModel(cell)
    assert maximise_bound(model, root_box(model)).leaf.bound > 0.46
    solution = solve_bnb_ofdma(cell, Arguments(gap=1e-4))
    assert solution.nodes == 1 and solution.gap <= 1e-4


def test_the_set_bound_is_at_least_as_sharp_as_the_price_bound() -> None:
    for seed in range(3):
        model = OfdmaModel(random_problem(4, 16, seed))
        box = root_box(model)
        leaf = maximise_bound(model, box).leaf
        owner, values = local_search(model, np.arange(16) % 4)
        sets = SetBound(model, box, Limits(), make_columns(model, owned_mask(owner, 4)), leaf)
        sets.generate(values.sum(), 1e-8)
        assert leaf.bound - 1e-12 <= sets.leaf.bound <= values.sum() + 1e-12


def test_the_price_bound_is_the_value_of_the_conic_relaxation() -> None:
    """In t = 1/tau every row of the relaxation is affine or an exponential cone; phi is the largest of 200 tangents."""
    cp = pytest.importorskip("cvxpy", reason="CVXPY comes with fedlodrop[dev]")
    model = OfdmaModel(random_problem(4, 16, 1))
    box, each = root_box(model), np.arange(4)
    bound = maximise_bound(model, box).leaf.bound
    gamma = np.linspace(box.low, box.high, 200)  # (200, K)
    tau = model.tau0 + model.tau1 * gamma
    height, slope = (f(gamma, np.tile(each, (200, 1))) for f in (model.value, model.slope))
    t, share, power, phi = cp.Variable(4), cp.Variable((4, 16)), cp.Variable((4, 16)), cp.Variable(4)
    gamma_t = (1 - cp.multiply(model.tau0, t)) / model.tau1  # gamma t
    snr = model.power[:, None] / model.inv_snr  # powers are relative to P, logarithms to 1 + snr
    received = cp.multiply(1 / (1 + snr), share) + cp.multiply(snr / (1 + snr), power)
    carried = cp.sum(cp.multiply(np.log1p(snr), share) - cp.rel_entr(share, received), axis=1) / np.log(2)
    rows = [phi >= height[j] - cp.multiply(slope[j] * tau[j] ** 2 / model.tau1, t - 1 / tau[j]) for j in range(200)]
    rows += [cp.multiply(model.bits0, t) - cp.multiply(model.bits1, gamma_t) <= carried, share >= 0, power >= 0]
    allowed = cp.multiply(model.joule0, t) + cp.multiply(model.joule1, gamma_t)
    rows += [cp.multiply(model.power, cp.sum(power, axis=1)) <= allowed, cp.sum(power, axis=1) <= 1]
    rows += [cp.sum(share, axis=0) <= 1]
    rows += [t >= 1 / tau[-1], t <= 1 / tau[0]]
    conic = cp.Problem(cp.Minimize(cp.sum(phi)), rows)
    assert conic.solve(solver=cp.CLARABEL) == pytest.approx(bound, rel=1e-5) and conic.status == cp.OPTIMAL


def wild_problem(seed: int) -> ResourceProblem:
    """A small problem with gains, budgets, weights and widths spread over orders of magnitude."""
    rng = np.random.default_rng(seed)
    count, width = int(rng.integers(2, 5)), int(rng.integers(5, 9))
    problem = random_problem(count, width, seed, load=rng.uniform(1e6, 1.2e7))
    spread = rng.choice([0.0, 1.0, 3.0])
    return replace(
        problem,
        channel_gain=problem.channel_gain * 10 ** rng.normal(0, spread, problem.channel_gain.shape),
        energy_budget_j=problem.energy_budget_j * rng.uniform(0.9, 1.5, count),
        max_tx_power_w=10 ** rng.uniform(-2, 0.5, count),
        max_dropout_rate=float(rng.choice([0.5, 0.9, 0.99])),
        num_examples=np.ceil(10 ** rng.uniform(0, 4, count)),
        fixed_bits=10 ** rng.uniform(3, 6.3),
        subcarrier_hz=float(10 ** rng.uniform(4.5, 5.5)),
    )


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(120))
def test_wild_problems_against_brute_force(seed: int) -> None:
    problem = wild_problem(seed)
    solution, rough = solve_bnb_ofdma(problem, Arguments(gap=1e-8)), solve_psca_ofdma(problem)
    assert check_solution(problem, solution) == [] and check_solution(problem, rough) == []
    if solution.scheduled.any():
        best = brute_force(OfdmaModel(problem).subset(solution.scheduled))
        assert solution.objective == pytest.approx(best, rel=2e-8)
        assert max(solution.lower_bound, rough.lower_bound) <= best * (1 + 1e-9)


@pytest.mark.skipif(not SHARED.is_dir(), reason="shared instances are not at hand")
def test_shared_instances() -> None:
    small = solve_bnb_ofdma(shared_problem("ofdma_k3_m8"), Arguments(gap=1e-9))
    assert small.objective == pytest.approx(0.26502882, rel=1e-6) and small.gap <= 1e-9
    middle = solve_bnb_ofdma(shared_problem("ofdma_k5_m24"), Arguments(gap=1e-9))
    assert middle.objective <= 0.296013 and middle.gap <= 1e-9
    large = solve_bnb_ofdma(shared_problem("ofdma_k10_m64"))
    assert large.objective <= 0.305461 and large.gap <= 5e-4


def test_the_model_values_what_the_bound_values() -> None:
    class Doubled(GeneralizationBound):
        """A subclass with a value of its own."""

        def value(self, problem: ResourceProblem, gamma: FloatArray, *_: Any) -> FloatArray:
            return 2.0 * super().value(problem, gamma)

    rng = np.random.default_rng(0)
    problem = replace(random_problem(4, 9, 3), noise=rng.uniform(0.01, 0.5, 4))  # of a coarse number type
    rates, pair = rng.uniform(0.1, 0.8, 4), np.array([2, 0])
    for objective in (GeneralizationBound(), Doubled()):
        model = OfdmaModel(problem, objective)
        value, slope = objective.value(problem, rates), objective.derivative(problem, rates)
        assert model.value(rates) == pytest.approx(value, rel=1e-14)
        assert model.value(rates[pair], pair) == pytest.approx(value[pair], rel=1e-14)
        assert model.slope(rates) == pytest.approx(slope, rel=1e-14)
        assert model.slope(rates[pair], pair) == pytest.approx(slope[pair], rel=1e-14)


@pytest.mark.parametrize("seed", first(2, range(6)))
def test_noise_on_the_wire_is_part_of_what_is_minimised(seed: int) -> None:
    noise = np.random.default_rng(seed).uniform(0.05, 1.0, 3)
    problem = replace(random_problem(3, 6, seed, load=2e6), noise=noise)
    solution = solve_bnb_ofdma(problem, Arguments(gap=1e-6))
    assert check_solution(problem, solution) == [] and solution.scheduled.all()
    assert solution.gap <= 1e-6
    assert solution.objective == pytest.approx(brute_force(OfdmaModel(problem)), rel=2e-6)
