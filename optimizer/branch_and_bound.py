"""Best-first branch and bound that knows only three operations: bound a node, take a candidate from it, split it.

The search takes the node with the lowest bound first, the oldest among equals, so it is deterministic as long as the
three operations are and no clock stops it. It can be stopped at any moment: the lower bound is then the smallest one
among everything that was not searched to the end.

References
----------
[Land1960] Land and Doig, An Automatic Method of Solving Discrete Programming Problems, Econometrica 28(3), 1960.
"""

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import inf
from typing import Generic, TypeVar

from optimizer.timing import time_is_up

Node = TypeVar("Node")
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class SearchResult(Generic[Answer]):
    """What a search found: the best answer, None when there was none, and what is certified."""

    answer: Answer | None
    value: float  # of the answer, infinite when there is none
    lower_bound: float  # for the whole root node; equal to ``value`` when the tree was exhausted
    nodes: int  # bounded
    finished: bool  # the requested gap was reached, or the tree exhausted, before a limit


def branch_and_bound(
    root: Node,
    *,
    bound: Callable[[Node, float], tuple[float, Node]],
    candidate: Callable[[Node], tuple[float, Answer] | None],
    split: Callable[[Node], Iterable[Node]],
    start: tuple[float, Answer] | None = None,
    gap: float = 1e-4,
    max_nodes: int | None = None,
) -> SearchResult[Answer]:
    """Minimise over ``root``, a node (anything) that holds every answer.

    ``bound`` (node, best value) -> (certified lower bound, enriched node), infinite for an empty one; a bound at or
    above the best value may be returned early. ``candidate`` enriched node -> (value, answer) or None. ``split``
    enriched node -> parts that hold all its answers better than the best one known; none close the node, whose bound
    must then be the value of an answer already offered. ``start``: a (value, answer) known. The search stops at the
    relative gap (value - lower bound) / max(|value|, 1e-12) <= ``gap``, or when ``max_nodes`` are bounded.
    """
    value, answer = start if start is not None else (inf, None)
    nodes, closed, finished = 0, inf, True  # closed: the least bound among nodes that are not searched further
    heap: list[tuple[float, int, Node]] = []

    def close_enough(lower: float) -> bool:
        return value - lower <= gap * max(abs(value), 1e-12)

    def enter(node: Node, inherited: float) -> None:
        nonlocal value, answer, nodes, closed
        lower, node = bound(node, value)
        nodes += 1
        lower = max(lower, inherited)
        needless = answer is not None and (close_enough(lower) or time_is_up())
        found = candidate(node) if lower < value and not needless else None
        if found is not None and found[0] < value:
            value, answer = found
        if close_enough(lower):
            closed = min(closed, lower)
        elif lower < inf:
            heapq.heappush(heap, (lower, nodes, node))

    enter(root, -inf)
    while heap and not close_enough(heap[0][0]):
        if time_is_up() or (max_nodes is not None and nodes >= max_nodes):
            finished = False
            break
        lower, number, node = heapq.heappop(heap)
        parts = list(split(node))
        if not parts:
            closed = min(closed, lower)
        for done, part in enumerate(parts):
            if time_is_up() and done:
                heapq.heappush(heap, (lower, number, node))  # the parts not entered keep their parent's bound
                break
            enter(part, lower)
    return SearchResult(answer, value, min(heap[0][0] if heap else inf, closed, value), nodes, finished)
