"""A way to send for every device, chosen with its dropout rate and bandwidth: bits per number, or a rank.

In each of the J ways phi_kj and b_min,kj are convex, and a device's lower envelope is convex piece by piece. At a price
mu on bandwidth a device takes the cheapest way, so

    D(mu) = sum_k min_j min over gamma of [phi_kj + mu b_kj] - mu W

is below every allocation whatever is chosen. As in `optimizer.fdma.branch_and_bound` its gap is that of the few devices
whose way changes at the best price; such a device is split between the way on one side of that price and the others.
With ways given the problem is that of `optimizer.fdma.exact`.
"""

from bisect import bisect
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from optimizer.branch_and_bound import SearchResult, branch_and_bound
from optimizer.certificate import NOT_PROVEN, Certificate
from optimizer.fdma.admission import admit_fdma, rank
from optimizer.fdma.bandwidth_curve import BandwidthCurve
from optimizer.fdma.branch_and_bound import best_price
from optimizer.fdma.completion import finish
from optimizer.fdma.exact import ROUNDING, Fleet, solve_box
from optimizer.feasibility import each_way, favourable, relaxed
from optimizer.objective import GeneralizationBound, free_bound
from optimizer.problem import BoolArray, FloatArray, InfeasibleProblemError, IntArray, ResourceProblem, Solution
from optimizer.solver_interface import DEFAULTS, Arguments, Decision
from optimizer.timing import remaining_s, time_limit

_BOUND = GeneralizationBound()
_MOST_TOLD = 200  # leaves of a tree that goes into the certificate
_SHARE = 0.4  # of the time left that the choice of ways takes, where another method decides all else

Plan = tuple[IntArray, FloatArray]  # way and dropout rate of every device, (K,) each


@dataclass
class _Node:
    """Ways ``open`` (J, K) that devices may still take, and the tree below: its bound at a price, how it was split."""

    open: BoolArray
    bound: float = -np.inf
    price: float = 0.0  # [1/Hz]
    taken: tuple[IntArray, IntArray] | None = None  # (K,) each, where a price is too low and where it is too high
    device: int = 0
    ways: tuple[list[int], list[int]] = ([], [])
    parts: list["_Node"] = field(default_factory=list)

    def certificate(self) -> tuple[float, dict[str, Any], int]:
        """What this part of the tree proves, its plain form, and how many prices that holds."""
        if not self.parts:
            return self.bound, {"price_per_hz": self.price}, 1
        bounds, parts, sizes = zip(*(part.certificate() for part in self.parts), strict=True)
        return min(bounds), {"device": self.device, "ways": list(self.ways), "parts": list(parts)}, sum(sizes)


class _Menu:
    """What every device does in each way at a price, (J, K); prices that were tried serve all nodes."""

    def __init__(self, part: ResourceProblem) -> None:
        self.part, self.shape, self.total_hz = part, (len(part.choices), part.num_devices), part.total_bandwidth_hz
        each = part.subset(np.tile(np.arange(part.num_devices), len(part.choices)))
        each = each.chosen(np.repeat(np.arange(len(part.choices)), part.num_devices))
        curve, top = BandwidthCurve(each), each.highest_rates
        thrifty = curve.bandwidth_hz(top).reshape(self.shape).min(axis=0)
        left = np.maximum(self.total_hz * (1 + 1e-12) - (thrifty.sum() - thrifty), thrifty)
        low = curve.smallest_dropout_rate(np.tile(left, len(part.choices)))
        self.root = _Node(~np.isnan(low).reshape(self.shape))
        with np.errstate(all="ignore"):  # of ways that cannot be taken
            self.fleet = Fleet(curve, _BOUND, np.where(np.isnan(low), top, low), top)
        self.tried: dict[float, tuple[FloatArray, FloatArray, FloatArray]] = {}
        self.answers = [self.fleet.cheap, self.fleet.dear]  # by price, with which they rise

    def at(self, price: float) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Least phi + mu b, what rounding may take from it, and the bandwidth, (J, K) each."""
        if price not in self.tried:
            place = bisect(self.answers, price, key=lambda known: known.price)
            self.fleet.cheap, self.fleet.dear = self.answers[place - 1 : place + 1]
            with np.errstate(all="ignore"):
                answer = self.fleet.answer(price)
                found = *self.fleet.floors(answer), self.fleet.curve.bandwidth_hz(answer.above)
            if price > 0:
                self.answers.insert(place, answer)
            least, size, band = (part.reshape(self.shape) for part in found)
            self.tried[price] = least, size, band
        return self.tried[price]

    def bound(self, node: _Node, best: float) -> tuple[float, _Node]:
        """Dual bound of a node."""

        def answer(price: float) -> tuple[float, IntArray, float]:
            least, size, band = self.at(price)
            way = np.where(node.open, least, np.inf).argmin(axis=0)[None]
            total, error, demand = (float(np.take_along_axis(part, way, 0).sum()) for part in (least, size, band))
            paid = price * self.total_hz
            bound = total - paid - ROUNDING * (error + paid)
            node.bound, node.price = max((node.bound, node.price), (bound, price))
            return bound, way[0], demand

        if not node.open.any(axis=0).all():
            node.bound = np.inf
            return np.inf, node
        answer(node.price)  # that of the parent, whose bound is not lost
        lower, node.taken = best_price(answer, self.total_hz, best)
        return max(lower, node.bound), node

    def candidate(self, node: _Node) -> tuple[float, Plan] | None:
        """Best plan with the ways on either side of the best price, or on one side but for one device."""
        assert node.taken is not None
        cheap, dear = node.taken
        tried, best = [dear, cheap], None
        for k in np.flatnonzero(cheap != dear):
            tried += [np.where(np.arange(dear.size) == k, one, other) for one, other in ((cheap, dear), (dear, cheap))]
        for way in {tuple(way): way for way in tried}.values():
            with suppress(InfeasibleProblemError):
                found = solve_box(BandwidthCurve(self.part.chosen(way)), _BOUND)
                if best is None or found.objective < best[0]:
                    best = found.objective, (way, found.dropout_rate)
        return best

    def split(self, node: _Node) -> list[_Node]:
        """Let a device whose way changes at the best price take one of the two, or any other."""
        assert node.taken is not None
        cheap, dear = node.taken
        changes = np.flatnonzero(cheap != dear)
        if not changes.size:
            return []
        k = changes[np.argmax(self.part.num_examples[changes])]
        mine = np.arange(self.shape[0]) == cheap[k]
        node.device, node.ways = int(k), (np.flatnonzero(mine).tolist(), np.flatnonzero(~mine).tolist())
        column = np.arange(self.shape[1]) == k
        node.parts = [_Node(node.open & (part[:, None] | ~column), node.bound, node.price) for part in (mine, ~mine)]
        return node.parts


def search_choices(part: ResourceProblem, gap: float) -> tuple[SearchResult[Plan], Certificate | None]:
    """Best ways and dropout rates of devices that fit together in their thriftiest ways, with a certified bound."""
    menu = _Menu(part)
    found = branch_and_bound(menu.root, bound=menu.bound, candidate=menu.candidate, split=menu.split, gap=gap)
    bound, certificate, size = menu.root.certificate()
    if size > _MOST_TOLD:
        return found, None
    return replace(found, lower_bound=min(found.lower_bound, bound)), certificate


def _exactly(problem: ResourceProblem, gap: float) -> tuple[Solution, IntArray]:
    """Heaviest set that fits in its thriftiest ways, and its best plan: solution and ways (K,)."""
    with np.errstate(invalid="ignore"):  # the way in which a device needs least bandwidth at the largest dropout rate
        way = np.argmin([BandwidthCurve(one).bandwidth_hz(one.highest_rates) for one in each_way(problem)], axis=0)
    admission = admit_fdma(problem.chosen(way))
    if not admission.scheduled.any():
        return admission.nobody(problem), way
    found, certificate = search_choices(problem.subset(admission.scheduled), gap)
    assert found.answer is not None  # the thriftiest ways fit
    way[admission.scheduled], rate = found.answer
    decision = Decision(found.lower_bound, dropout_rate=rate, nodes=found.nodes)
    answer = finish(problem.chosen(way), admission, decision, replace(DEFAULTS, gap=gap))
    return replace(answer, certificate=certificate, choice=np.where(answer.scheduled, way, -1)), way


def solve_with_choices(
    problem: ResourceProblem, solve: Callable[[ResourceProblem], Solution], *, whole: bool, arguments: Arguments
) -> Solution:
    """Answer a problem with choices: with ``whole`` exactly but under OFDMA, else by ``solve`` with given ways.

    ``solve`` is asked with the ways of the relaxed problem (`relaxed`) and with each way for all; the answer that
    serves most, then the best, counts. The bound is that of the relaxed problem, for who takes part.
    """
    if whole and problem.access != "ofdma":
        return _exactly(problem, arguments.gap)[0]
    with time_limit(_SHARE * remaining_s()):
        bounded, mixed = _exactly(relaxed(problem), arguments.gap)
    answers = []
    ways = [mixed, *(np.full(problem.num_devices, way) for way in range(len(problem.choices)))]
    for left, way in zip(range(len(ways), 0, -1), ways, strict=True):
        with time_limit(remaining_s() / left):
            found = solve(problem.chosen(way))
        answers.append(replace(found, choice=np.where(found.scheduled, way, -1)))
    answer = min(answers, key=partial(rank, problem))
    on = answer.scheduled
    if not on.any():
        return answer
    bound, proof = bounded.lower_bound, bounded.certificate
    if not np.array_equal(bounded.scheduled, on):
        bound, proof = free_bound(favourable(problem.subset(on)), _BOUND), {"price_per_hz": 0.0}
    status, bound = arguments.status(answer.objective, bound), min(bound, answer.objective)
    if problem.access == "ofdma" and proof is not None:
        proof = {"relaxed": proof}
    return replace(answer, lower_bound=bound, status=status, admission=NOT_PROVEN, certificate=proof)
