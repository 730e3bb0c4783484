"""The learning-curve model of dropout: limits, recovery of its numbers, refusals."""

from __future__ import annotations

import numpy as np
import pytest

from optimizer.allocator import make_allocator
from optimizer.instances import sample_problem
from optimizer.learning_curve import Curve, Exponents, LearningCurveBound, fit_exponents
from optimizer.problem import ProblemError

ROUNDS = np.arange(9.0)
PILOT = Curve(ROUNDS, 0.7 * np.exp(-ROUNDS / 2), 0.5 + 0.02 * (ROUNDS - 3) ** 2)
TRUE = Exponents(0.3, 0.15, 0.2)


def with_dropout(gamma: float, exponents: Exponents = TRUE) -> Curve:
    moment = exponents.effective_round(gamma, ROUNDS)
    train = np.interp(moment, ROUNDS, PILOT.train)
    return Curve(ROUNDS, train, exponents.test_loss(PILOT, gamma, ROUNDS))


def test_without_dropout_it_is_the_pilot():
    np.testing.assert_allclose(TRUE.test_loss(PILOT, 0.0, ROUNDS), PILOT.test)


def test_dropout_is_a_slower_clock_that_falls_further_behind():
    assert (np.diff(TRUE.effective_round(np.linspace(0, 0.9, 10), 8.0)) < 0).all()
    share = TRUE.effective_round(0.5, ROUNDS[1:]) / ROUNDS[1:]
    assert (np.diff(share) < 0).all() and share[0] == pytest.approx(0.5**0.3)


def test_the_numbers_are_found_again():
    runs = [(PILOT, gamma, with_dropout(gamma)) for gamma in (0.3, 0.7)]
    found = fit_exponents(runs)
    assert (found.a0, found.a1, found.b) == pytest.approx((TRUE.a0, TRUE.a1, TRUE.b), abs=1e-3)
    unseen = with_dropout(0.9).test
    np.testing.assert_allclose(found.test_loss(PILOT, 0.9, ROUNDS), unseen, rtol=1e-3)


def test_from_the_rounds_that_have_passed():
    runs = [(PILOT, gamma, with_dropout(gamma)) for gamma in (0.3, 0.7)]
    early = fit_exponents(runs, last_round=4)
    np.testing.assert_allclose(early.test_loss(PILOT, 0.5, 8.0), with_dropout(0.5).test[8], rtol=0.02)


def test_what_a_run_has_shown_moves_the_exponents_little_by_little():
    """Rates that change from round to round; every round brings them nearer to the truth, none leaves the given ones."""
    given, rates = Exponents(0.6, 0.0, 0.0), np.array([0.0, 0.6, 0.5, 0.7, 0.6, 0.65, 0.6, 0.55, 0.6])
    moment = TRUE.effective_round(rates, ROUNDS)
    shown = Curve(ROUNDS, np.interp(moment, ROUNDS, PILOT.train), TRUE.test_loss(PILOT, rates, ROUNDS))
    ahead = [given, *(fit_exponents([(PILOT, rates, shown)], last_round=last, prior=given) for last in (4, 8))]
    misses = [abs(e.test_loss(PILOT, rates, ROUNDS) / shown.test - 1).max() for e in ahead]
    assert misses[0] > 2 * misses[1] > 4 * misses[2] and misses[2] < 0.02
    nothing = Curve(ROUNDS[:2], shown.train[:2], shown.test[:2])
    assert fit_exponents([(PILOT, rates[:2], nothing)], last_round=0, prior=given) == given


def test_refusals():
    with pytest.raises(ProblemError, match="needs a run with dropout"):
        fit_exponents([])
    with pytest.raises(ProblemError, match="ascending rounds"):
        Curve(ROUNDS[::-1], PILOT.train, PILOT.test)


class TestAsAnObjective:
    BOUND = LearningCurveBound(PILOT, TRUE, 8.0)

    def test_the_curvature_floor_is_one(self):
        problem = sample_problem(6, seed=1)
        rng = np.random.default_rng(0)
        low = rng.uniform(0, 0.6, 6)
        high = low + rng.uniform(0, 0.3, 6)
        floor = self.BOUND.curvature_floor(problem, low, high)
        inside = low + (high - low) * np.linspace(0, 1, 400)[:, None]  # (400, K)
        curvature = np.diff(self.BOUND.derivative(problem, inside), axis=0) / np.diff(inside, axis=0)
        assert (curvature >= floor - 1e-9).all()
        assert (floor < 0).any()  # this pilot's curve is not convex

    @pytest.mark.parametrize("seed", [0, 3])
    def test_branch_and_bound_certifies_it(self, seed):
        problem = sample_problem(3, seed=seed)
        solve = make_allocator("bnb", objective=self.BOUND, gap=1e-3)
        solution = solve.allocate(problem, rng=np.random.default_rng(0))
        assert solution.scheduled.all() and solution.gap <= 1e-3
        equal = make_allocator("equal", objective=self.BOUND).allocate(problem, rng=np.random.default_rng(0))
        assert solution.lower_bound <= solution.objective <= equal.objective + 1e-9
        value = self.BOUND.value(problem, solution.dropout_rate).sum()
        assert solution.objective == pytest.approx(value)
