import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.rootfinding import increasing_root


@given(st.lists(st.floats(-0.99, 0.99), min_size=1, max_size=20), st.floats(0.2, 9))
def test_brackets_the_roots_of_a_vector_of_functions(targets: list[float], power: float) -> None:
    goal = np.array(targets)
    found = increasing_root(
        lambda x: np.sign(x) * np.abs(x) ** power - np.sign(goal) * np.abs(goal) ** power,
        np.full_like(goal, -1.0),
        np.full_like(goal, 1.0),
    )
    assert (found.low <= found.high).all()
    value = [np.sign(x) * np.abs(x) ** power - np.sign(goal) * np.abs(goal) ** power for x in found[:2]]
    assert (value[0] <= 0).all() and (value[1] >= 0).all()
    assert np.max(found.high - found.low) < 1e-13 or found.evaluations == 200


def test_signs_at_the_ends_decide_without_a_search() -> None:
    low, high = np.array([0.0, 0.0]), np.array([1.0, 1.0])
    found = increasing_root(lambda x: x + np.array([1.0, -2.0]), low, high)
    np.testing.assert_array_equal(found.low, [0.0, 1.0])
    np.testing.assert_array_equal(found.high, [0.0, 1.0])


def test_jumps_and_infinities_are_bracketed() -> None:
    with np.errstate(divide="ignore"):
        found = increasing_root(lambda x: np.where(x < 0.3, -np.inf, np.inf), np.zeros(2), np.ones(2))
    assert found.high[0] - found.low[0] < 1e-15 and found.low[0] <= 0.3 <= found.high[0]


def test_smooth_roots_need_few_evaluations() -> None:
    found = increasing_root(lambda x: np.expm1(x) - 1.0, np.zeros(1), np.ones(1))
    assert found.high[0] == pytest.approx(np.log(2.0), abs=1e-15) and found.evaluations < 15
