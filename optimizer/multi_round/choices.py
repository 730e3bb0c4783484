"""A way to send for every device, chosen with its dropout rate and bandwidth: bits per number, or a rank.

In each of the J ways phi_kj and b_min,kj are convex, and a device's lower envelope is convex piece by piece. At a price
mu on bandwidth a device takes the cheapest way, so

    D(mu) = sum_k min_j min over gamma of [phi_kj + mu b_kj] - mu W

is below every allocation whatever is chosen. Its gap is that of the few devices whose way changes at the best price
[Aubin1976]; such a device is split between the way on one side of that price and the others. With ways given the
problem is that of `optimizer.fdma.exact`.

References
----------
[Aubin1976] Aubin and Ekeland, Estimates of the duality gap in nonconvex optimization, Mathematics of Operations
Research 1(3), 1976.
"""

from bisect import bisect
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from optimizer.branch_and_bound import SearchResult, branch_and_bound
from optimizer.certificate import NOT_PROVEN, Certificate
from optimizer.fdma.admission import admit_fdma
from optimizer.fdma.bandwidth_curve import BandwidthCurve
from optimizer.fdma.branch_and_bound import best_price
from optimizer.fdma.completion import finish
from optimizer.fdma.exact import Fleet, solve_box
from optimizer.feasibility import each_way, relaxed
from optimizer.objective import GeneralizationBound, free_bound
from optimizer.problem import BoolArray, FloatArray, InfeasibleProblemError, IntArray, ResourceProblem, Solution
from optimizer.solver_interface import DEFAULTS, Arguments, Decision
from optimizer.timing import remaining_s, time_limit

_BOUND = GeneralizationBound()
_MOST_TOLD = 200  # leaves of a tree that goes into the certificate
_SHARE = 0.4  # of the time left that the choice of ways takes, where another method decides all else

Plan = tuple[IntArray, FloatArray]  # way and dropout rate of every device, (K,) each


@dataclass
class _Told:
    """A node's place in the tree that the certificate tells: its bound at a price [1/Hz], and how it was split."""

    bound: float = -np.inf
    price: float = 0.0
    device: int = 0
    ways: tuple[list[int], list[int]] = ([], [])
    parts: tuple["_Told", ...] = ()

    def certificate(self) -> tuple[float, dict[str, Any], int]:
        """What this part of the tree proves, its plain form, and how many prices that holds."""
        if not self.parts:
            return self.bound, {"price_per_hz": self.price}, 1
        told = [part.certificate() for part in self.parts]
        parts = [record for _, record, _ in told]
        bound, size = min(each for each, _, _ in told), sum(each for _, _, each in told)
        return bound, {"device": self.device, "ways": list(self.ways), "parts": parts}, size


@dataclass(frozen=True)
class _Node:
    """Ways ``open`` (J, K) that devices may still take; those taken where a price is too low and too high, (K,)."""

    open: BoolArray
    told: _Told
    taken: tuple[IntArray, IntArray] | None = None


class _Menu:
    """What every device does in each way at a price, (J, K); prices that were tried serve all nodes."""

    def __init__(self, part: ResourceProblem) -> None:
        self.part, self.shape, self.total_hz = part, (len(part.choices), part.num_devices), part.total_bandwidth_hz
        each = part.subset(np.tile(np.arange(part.num_devices), len(part.choices)))
        each = each.chosen(np.repeat(np.arange(len(part.choices)), part.num_devices))
        curve, top = BandwidthCurve.of(each), each.highest_rates
        thrifty = curve.bandwidth_hz(top).reshape(self.shape).min(axis=0)
        left = np.maximum(self.total_hz * (1 + 1e-12) - (thrifty.sum() - thrifty), thrifty)
        low = curve.smallest_dropout_rate(np.tile(left, len(part.choices)))
        self.root = _Node(~np.isnan(low).reshape(self.shape), _Told())
        with np.errstate(all="ignore"):  # of ways that cannot be taken
            self.fleet = Fleet(each, _BOUND, curve, np.where(np.isnan(low), top, low), top)
        self.tried: dict[float, tuple[FloatArray, FloatArray, FloatArray]] = {}
        self.rates = {0.0: (self.fleet.low, top), np.inf: (self.fleet.low, top)}

    def at(self, price: float) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Least phi + mu b, what rounding may take from it, and the bandwidth, (J, K) each."""
        if price not in self.tried:
            prices = sorted(self.rates)  # rates rise with the price: the nearest prices bracket them
            place = bisect(prices, price)
            self.fleet.below, self.fleet.above = self.rates[prices[place - 1]][0], self.rates[prices[place]][1]
            with np.errstate(all="ignore"):
                below, above = self.fleet.answer(price)
                least, size = self.fleet.floors(price, below, above)
                band = self.fleet.curve.bandwidth_hz(above)
            if price > 0:
                self.rates[price] = below, above
            self.tried[price] = (least.reshape(self.shape), size.reshape(self.shape), band.reshape(self.shape))
        return self.tried[price]

    def bound(self, node: _Node, best: float) -> tuple[float, _Node]:
        """Dual bound of a node."""

        def answer(price: float) -> tuple[float, IntArray, float]:
            least, size, band = self.at(price)
            way = np.where(node.open, least, np.inf).argmin(axis=0)[None]
            total, error, demand = (float(np.take_along_axis(part, way, 0).sum()) for part in (least, size, band))
            paid, told = price * self.total_hz, node.told
            bound = total - paid - self.fleet.curve.rounding * (error + paid)
            told.bound, told.price = max((told.bound, told.price), (bound, price))
            return bound, way[0], demand

        if not node.open.any(axis=0).all():
            node.told.bound = np.inf
            return np.inf, node
        answer(node.told.price)  # that of the parent, whose bound is not lost
        lower, taken = best_price(answer, self.total_hz, best)
        return max(lower, node.told.bound), replace(node, taken=taken)

    def candidate(self, node: _Node) -> tuple[float, Plan] | None:
        """Best plan with the ways on either side of the best price, or on one side but for one device."""
        assert node.taken is not None
        cheap, dear = node.taken
        tried, best = [dear, cheap], None
        for k in np.flatnonzero(cheap != dear):
            tried += [np.where(np.arange(dear.size) == k, one, other) for one, other in ((cheap, dear), (dear, cheap))]
        for way in {tuple(way): way for way in tried}.values():
            with suppress(InfeasibleProblemError):
                found = solve_box(self.part.chosen(way), _BOUND, np.zeros(way.size), self.part.highest_rates)
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
        one, others = node.open.copy(), node.open.copy()
        one[:, k], others[cheap[k], k] = False, False
        one[cheap[k], k] = True
        told, mine, rest = node.told, int(cheap[k]), [way for way in range(self.shape[0]) if way != cheap[k]]
        told.device, told.ways = int(k), ([mine], rest)
        told.parts = _Told(told.bound, told.price), _Told(told.bound, told.price)
        return [_Node(one, told.parts[0]), _Node(others, told.parts[1])]


def search_choices(part: ResourceProblem, gap: float) -> tuple[SearchResult[Plan], Certificate | None]:
    """Best ways and dropout rates of devices that fit together in their thriftiest ways, with a certified bound."""
    menu = _Menu(part)
    found = branch_and_bound(menu.root, bound=menu.bound, candidate=menu.candidate, split=menu.split, gap=gap)
    bound, certificate, size = menu.root.told.certificate()
    if size > _MOST_TOLD:
        return found, None
    return replace(found, lower_bound=min(found.lower_bound, bound)), certificate


def _thrifty(problem: ResourceProblem) -> IntArray:
    """The way in which every device needs least bandwidth at the largest dropout rate, (K,)."""
    with np.errstate(invalid="ignore"):
        return np.argmin([BandwidthCurve.of(way).bandwidth_hz(way.highest_rates) for way in each_way(problem)], axis=0)


def _exactly(problem: ResourceProblem, gap: float) -> tuple[Solution, IntArray]:
    """Heaviest set that fits in its thriftiest ways, and its best plan: solution and ways (K,)."""
    way = _thrifty(problem)
    admission = admit_fdma(problem.chosen(way))
    if not admission.scheduled.any():
        return admission.nobody(problem), way
    found, certificate = search_choices(problem.subset(admission.scheduled), gap)
    assert found.answer is not None  # the thriftiest ways fit
    way[admission.scheduled], rate = found.answer
    decision = Decision(found.lower_bound, dropout_rate=rate, nodes=found.nodes)
    answer = finish(problem.chosen(way), admission, decision, replace(DEFAULTS, gap=gap))
    return replace(answer, certificate=certificate), way


def solve_with_choices(
    problem: ResourceProblem, solve: Callable[[ResourceProblem], Solution], *, whole: bool, arguments: Arguments
) -> Solution:
    """Answer a problem with choices: with ``whole`` exactly but under OFDMA, else by ``solve`` with given ways.

    ``solve`` is asked with the ways of the relaxed problem (`relaxed`) and with each way for all; the answer that
    serves most, then the best, counts. The bound is that of the relaxed problem, for who takes part.
    """
    if whole and problem.access != "ofdma":
        return _told(*_exactly(problem, arguments.gap))
    with time_limit(_SHARE * remaining_s()):
        bounded, mixed = _exactly(relaxed(problem), arguments.gap)
    ways = [mixed, *(np.full(problem.num_devices, way) for way in range(len(problem.choices)))]
    best: tuple[float, float] | None = None
    for left, way in zip(range(len(ways), 0, -1), ways, strict=True):
        with time_limit(remaining_s() / left):
            found = solve(problem.chosen(way))
        rank = -round(float(problem.weights[found.scheduled].sum()), 12), found.objective
        if best is None or rank < best:
            best, answer = rank, _told(found, way)
    on = answer.scheduled
    if not on.any():
        return answer
    bound, proof = bounded.lower_bound, bounded.certificate
    if not np.array_equal(bounded.scheduled, on):
        bound, proof = _free(problem.subset(on)), {"price_per_hz": 0.0}
    status, bound = arguments.status(answer.objective, bound), min(bound, answer.objective)
    if problem.access == "ofdma" and proof is not None:
        proof = {"relaxed": proof}
    return replace(answer, lower_bound=bound, status=status, admission=NOT_PROVEN, certificate=proof)


def _free(part: ResourceProblem) -> float:
    """Sum of the least phi of any way, without resource limits."""
    ways, alone = each_way(part), [np.array([k]) for k in range(part.num_devices)]
    return sum(min(free_bound(way.subset(one), _BOUND) for way in ways) for one in alone)


def _told(found: Solution, way: IntArray) -> Solution:
    """Return the solution with the ways that were chosen."""
    return replace(found, choice=np.where(found.scheduled, way, -1))
