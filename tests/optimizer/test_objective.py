import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from optimizer.objective import GeneralizationBound, bound_gradient, bound_value, sparsity, unconstrained_minimiser
from optimizer.problem import BoundConstants, ProblemError
from tests.optimizer.fleets import CONSTANTS, random_fleet


def _zero_or_more(most: float) -> st.SearchStrategy[float]:
    return st.just(0.0) | st.floats(1e-50, most)  # smaller constants are refused


constants = st.builds(
    BoundConstants,
    empirical_scale=_zero_or_more(2),
    loss_bound=_zero_or_more(5),
    lipschitz=_zero_or_more(5),
    curvature_min=st.floats(0.01, 5),
    sparsity_regularization=_zero_or_more(20),
    confidence=st.floats(0.01, 0.9),
)


def test_value_by_hand() -> None:
    curvature = 0.5 + 2 * 2 * (1 - 0.7**2)
    expected = 0.05 * 0.3 / 0.7 + np.sqrt((1 + 24 / curvature) / (2 * 500 * 0.1))
    assert bound_value(0.3, 500, CONSTANTS) == pytest.approx(expected, rel=1e-14)
    assert sparsity(0.3) == pytest.approx(1 - 0.7**2)


@given(constants, st.floats(0.01, 0.98), st.floats(1, 1e6))
def test_gradient_is_the_difference_quotient(c: BoundConstants, gamma: float, examples: float) -> None:
    step = 1e-6
    ours = bound_gradient(gamma, examples, c)
    quotient = (bound_value(gamma + step, examples, c) - bound_value(gamma - step, examples, c)) / (2 * step)
    assert ours == pytest.approx(quotient, rel=1e-4, abs=1e-6)


@given(constants, st.floats(1, 1e6))
def test_the_bound_is_convex(c: BoundConstants, examples: float) -> None:
    gradient = bound_gradient(np.linspace(0, 0.98, 400), examples, c)
    assert (np.diff(gradient) >= -1e-9 * np.abs(gradient).max()).all()


@given(constants, st.floats(1, 1e6), st.floats(0.0, 0.99))
def test_the_minimiser_beats_a_bounded_search(c: BoundConstants, examples: float, top: float) -> None:
    ours = unconstrained_minimiser(np.array([examples]), c, top)[0]
    assert 0 <= ours <= top
    if top > 0:
        theirs = minimize_scalar(lambda g: float(bound_value(g, examples, c)), bounds=(0, top), method="bounded")
        assert bound_value(ours, examples, c) <= theirs.fun + 1e-9 * max(1.0, abs(theirs.fun))


def test_default_objective_is_the_weighted_bound() -> None:
    fleet, gamma = random_fleet(0, 4), np.array([0.1, 0.2, 0.3, 0.4])
    value = GeneralizationBound().value(fleet, gamma)
    np.testing.assert_allclose(
        value, fleet.num_examples / fleet.num_examples.sum() * bound_value(gamma, fleet.num_examples, CONSTANTS)
    )
    batch = GeneralizationBound().value(fleet, np.stack([gamma, gamma]))
    np.testing.assert_array_equal(batch, [value, value])


def test_a_subset_keeps_the_weights_of_the_fleet() -> None:
    fleet = random_fleet(1, 5)
    part = fleet.subset(np.array([True, False, True, False, False]))
    assert part.device_ids == ("device-0", "device-2")
    np.testing.assert_array_equal(part.weights, fleet.weights[[0, 2]])
    np.testing.assert_array_equal(part.subset(np.array([1])).weights, fleet.weights[[2]])


def test_constants_outside_their_domain_are_named() -> None:
    with pytest.raises(ProblemError, match=r"bound\.curvature_min must be finite and > 0"):
        BoundConstants(0.1, 1, 1, 0.0, 1, 0.1)
    with pytest.raises(ProblemError, match=r"bound\.confidence must be below 1"):
        BoundConstants(0.1, 1, 1, 0.5, 1, 1.5)
