"""The learning-curve model of dropout: limits, recovery of its numbers, refusals."""

from __future__ import annotations

import numpy as np
import pytest

from optimizer.learning_curve import Curve, Exponents, fit_exponents
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


def test_refusals():
    with pytest.raises(ProblemError, match="needs a run with dropout"):
        fit_exponents([])
    with pytest.raises(ProblemError, match="ascending rounds"):
        Curve(ROUNDS[::-1], PILOT.train, PILOT.test)
