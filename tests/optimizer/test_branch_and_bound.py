"""The generic search on a knapsack, where every answer can be listed."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer.branch_and_bound import SearchResult, branch_and_bound
from optimizer.timing import time_limit

Node = tuple[int, ...]  # decisions on the first items


def knapsack(value: np.ndarray, size: np.ndarray, room: float, **options: object) -> SearchResult[Node]:
    """Minimise -value by deciding item after item, in order of value per size; the bound fills up with a fraction."""
    order = np.argsort(-value / size, kind="stable")
    value, size = value[order], size[order]

    def bound(node: Node, upper: float) -> tuple[float, Node]:
        taken = np.array(node, dtype=bool)
        left = room - size[: len(node)][taken].sum()
        if left < 0:
            return np.inf, node
        total = value[: len(node)][taken].sum()
        for v, s in zip(value[len(node) :], size[len(node) :], strict=True):
            share = min(1.0, left / s)
            total, left = total + share * v, left - share * s
        return -float(total), node

    def candidate(node: Node) -> tuple[float, Node] | None:
        return -float(value[: len(node)][np.array(node, dtype=bool)].sum()), node

    def split(node: Node) -> list[Node]:
        return [(*node, 1), (*node, 0)] if len(node) < len(value) else []

    return branch_and_bound((), bound=bound, candidate=candidate, split=split, **options)  # type: ignore[arg-type]


def brute_force(value: np.ndarray, size: np.ndarray, room: float) -> float:
    choices = np.array(list(itertools.product((0, 1), repeat=len(value))))
    return -float((choices @ value)[choices @ size <= room].max())


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 9))
def test_finds_the_brute_force_optimum(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    value, size = rng.uniform(1, 9, count), rng.uniform(1, 9, count)
    result = knapsack(value, size, 0.5 * size.sum(), gap=0.0)
    assert result.finished
    assert result.value == pytest.approx(brute_force(value, size, 0.5 * size.sum()), abs=1e-9)
    assert result.lower_bound <= result.value + 1e-12


def test_limits_leave_a_valid_bound_and_say_so() -> None:
    rng = np.random.default_rng(1)
    value, size = rng.uniform(1, 9, 14), rng.uniform(1, 9, 14)
    best = brute_force(value, size, 30.0)
    for limit_s, options in ((10.0, {"max_nodes": 5}), (0.0, {})):
        with time_limit(limit_s):
            result = knapsack(value, size, 30.0, gap=0.0, **options)
        assert not result.finished and result.lower_bound <= best <= result.value


def test_same_search_twice_is_the_same_search() -> None:
    rng = np.random.default_rng(2)
    value, size = rng.uniform(1, 9, 12), rng.uniform(1, 9, 12)
    assert knapsack(value, size, 25.0, gap=0.0) == knapsack(value, size, 25.0, gap=0.0)


def test_a_wide_gap_stops_early_and_keeps_its_promise() -> None:
    rng = np.random.default_rng(3)
    value, size = rng.uniform(1, 9, 14), rng.uniform(1, 9, 14)
    exact, rough = knapsack(value, size, 30.0, gap=0.0), knapsack(value, size, 30.0, gap=0.05)
    assert rough.nodes <= exact.nodes
    assert rough.lower_bound <= exact.value <= rough.value
    assert rough.value - rough.lower_bound <= 0.05 * abs(rough.value)


def test_an_empty_root_has_no_answer() -> None:
    result = knapsack(np.ones(3), np.ones(3), -1.0)
    assert result.answer is None and result.value == np.inf and result.lower_bound == np.inf and result.finished


def test_a_known_answer_that_is_optimal_is_kept() -> None:
    value, size = np.array([3.0, 2.0]), np.array([1.0, 1.0])
    result = knapsack(value, size, 1.0, gap=0.0, start=(-3.0, (1, 0)))
    assert result.answer == (1, 0) and result.value == -3.0


def test_no_candidate_is_sought_where_the_gap_is_reached() -> None:
    """A search for one may take all the time there is, and improves nothing that was asked."""
    asked: list[float] = []

    def candidate(node: float) -> tuple[float, float]:
        asked.append(node)
        return node, node

    options = {"bound": lambda node, upper: (node, node), "split": lambda node: [], "candidate": candidate}
    found = branch_and_bound(0.9999, start=(1.0, 1.0), gap=1e-3, **options)  # type: ignore[arg-type]
    assert asked == [] and found.finished and (found.value, found.lower_bound) == (1.0, 0.9999)
    assert branch_and_bound(0.99, start=(1.0, 1.0), gap=1e-3, **options).value == 0.99  # type: ignore[arg-type]
    assert asked == [0.99]
    assert branch_and_bound(0.5, gap=1e-3, **options).answer == 0.5 and asked == [0.99, 0.5]  # type: ignore[arg-type]
