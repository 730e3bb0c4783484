"""Best-first branch and bound that knows only three operations: bound a node, take a candidate from it, split it.

A node is anything. `bound` returns a certified lower bound of the node (infinite for an empty one) and the node
enriched with what `candidate` and `split` want to know; `candidate` returns an answer with its value, or None; `split`
returns parts that together hold every answer of the node better than the best one known. The search takes the node with
the lowest bound first, the oldest among equals, so it is deterministic as long as the three operations are and no clock
stops it. It can be stopped at any moment: the lower bound is then the smallest one among everything that was not
searched to the end.

References
----------
[Land1960] Land and Doig, An Automatic Method of Solving Discrete Programming Problems, Econometrica 28(3), 1960.
"""

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass
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


@dataclass
class _Search(Generic[Node, Answer]):
    """State of one search: best answer, open nodes, and the least bound among the nodes that were set aside."""

    bound: Callable[[Node, float], tuple[float, Node]]
    candidate: Callable[[Node], tuple[float, Answer] | None]
    gap: float
    answer: Answer | None
    value: float
    heap: list[tuple[float, int, Node]]
    nodes: int = 0
    set_aside: float = float("inf")

    def close_enough(self, lower: float) -> bool:
        """Whether a lower bound leaves less than the requested gap below the best value (the stopping inequality)."""
        return self.value - lower <= self.gap * max(abs(self.value), 1e-12)

    def enter(self, node: Node, inherited: float) -> None:
        """Bound a node; if it may improve the best value by more than the gap, try its candidate and queue it."""
        lower, node = self.bound(node, self.value)
        self.nodes += 1
        lower = max(lower, inherited)
        needless = self.answer is not None and (self.close_enough(lower) or time_is_up())
        found = self.candidate(node) if lower < self.value and not needless else None
        if found is not None and found[0] < self.value:
            self.value, self.answer = found
        if lower == float("inf"):
            return
        if self.close_enough(lower):
            self.set_aside = min(self.set_aside, lower)
        else:
            heapq.heappush(self.heap, (lower, self.nodes, node))

    def lower_bound(self) -> float:
        """Least bound among open nodes, nodes set aside and the best value."""
        open_bound = self.heap[0][0] if self.heap else float("inf")
        return min(open_bound, self.set_aside, self.value)


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
    """Minimise over ``root``, a node that holds every answer.

    ``bound`` (node, best value) -> (certified lower bound, enriched node); a bound at or above the best value may be
    returned early. ``candidate`` enriched node -> (value, answer) or None. ``split`` enriched node -> parts; none close
    the node, whose bound must then be the value of an answer already offered. ``start`` is (value, answer) known
    beforehand; the search stops at the relative gap (value - lower bound) / max(|value|, 1e-12) <= ``gap``, or when
    ``max_nodes`` are bounded.
    """
    value, answer = start if start is not None else (float("inf"), None)
    search = _Search(bound, candidate, gap, answer, value, [])
    search.enter(root, -float("inf"))
    while search.heap and not search.close_enough(search.lower_bound()):
        if time_is_up() or (max_nodes is not None and search.nodes >= max_nodes):
            return SearchResult(search.answer, search.value, search.lower_bound(), search.nodes, False)
        lower, number, node = heapq.heappop(search.heap)
        if search.close_enough(lower):
            search.set_aside = min(search.set_aside, lower)
            continue
        parts = list(split(node))
        if not parts:
            search.set_aside = min(search.set_aside, lower)
        for done, part in enumerate(parts):
            if time_is_up() and done:
                heapq.heappush(search.heap, (lower, number, node))  # the parts not entered keep their parent's bound
                break
            search.enter(part, lower)
    return SearchResult(search.answer, search.value, search.lower_bound(), search.nodes, True)
