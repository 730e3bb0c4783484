"""OFDMA with objectives that are not convex: a certified piecewise linear stand-in that rises with the dropout rate.

Resources limit a dropout rate from below only, so a device whose set of subcarriers reaches gamma_A may choose any rate
above, and the set is worth

    psi(gamma_A),    psi(g) = min over gamma in [g, gamma_max] of phi(gamma),

which never falls in g, whatever phi is. On a cell [a, b] of width h with phi'' >= -alpha the function
phi - alpha/2 (gamma - a)(b - gamma) is convex and below phi [Adjiman1998], hence phi lies above its two end tangents:
with slopes s0 = phi'(a) - alpha h/2, s1 = phi'(b) + alpha h/2 and c that of the chord, at most
d = h (c - s0)(s1 - c)/(s1 - s0) = O(h^2) below the chord. Lowering every node by the larger d of its two cells gives a
piecewise linear function below phi; its running minimum from the right is below psi. Its lower convex hull on an
interval is what Lagrangian bounds need: rising and convex. [Adjiman1998]: see `optimizer.objective`.
"""

import itertools
from collections.abc import Sequence

import numpy as np

from optimizer.objective import SeparableObjective, is_convex
from optimizer.problem import FloatArray, IntArray, ResourceProblem

_SEGMENTS = 128  # intervals for which the objective is asked for its curvature floor
_CELLS = (1024, 4096, 16384, 32768)  # per device, tried in this order
_CLOSE = 1e-8  # total lowering of the nodes at which the cells are fine enough, relative to the objective
_KEPT = 64  # hulls that are remembered: a search asks for the same interval again and again


class RisingTable:
    """Non-decreasing piecewise linear functions of K devices: knots at ascending ``rate``, with values ``height``."""

    def __init__(self, rate: Sequence[FloatArray], height: Sequence[FloatArray]) -> None:
        self.rate, self.height = rate, height
        self._hulls: dict[bytes, RisingTable] = {}
        # All knots lie on one axis, two units apart per device, so that one search serves all devices.
        self._axis = np.concatenate([2.0 * k + each for k, each in enumerate(rate)])
        self._rates, self._heights = np.concatenate(rate), np.concatenate(height)
        slopes = [np.diff(y) / np.diff(x) for x, y in zip(rate, height, strict=True)]
        self._slopes = np.concatenate([np.append(each, each[-1:] if each.size else 0.0) for each in slopes])

    def _cell(self, gamma: FloatArray, device: IntArray) -> IntArray:
        """Knot at or left of each rate."""
        return np.maximum(np.searchsorted(self._axis, 2.0 * device + gamma, side="right") - 1, 0)

    def value(self, gamma: FloatArray, device: IntArray) -> FloatArray:
        """Height of ``device`` at ``gamma``, both of one shape; rates outside the knots are not looked at."""
        at = self._cell(gamma, device)
        return np.asarray(self._heights[at] + self._slopes[at] * (gamma - self._rates[at]))

    def slope(self, gamma: FloatArray, device: IntArray) -> FloatArray:
        """Slope right of ``gamma`` (left of it at the last knot)."""
        return np.asarray(self._slopes[self._cell(gamma, device)])

    def hull(self, low: FloatArray, high: FloatArray) -> "RisingTable":
        """Lower convex hull of every device's function on [low_k, high_k] (K,); empty intervals keep their low end."""
        key = low.tobytes() + high.tobytes()
        if key not in self._hulls:
            if len(self._hulls) > _KEPT:
                self._hulls.clear()
            high, device = np.maximum(low, high), np.arange(len(self.rate))
            first, last = self.value(low, device), self.value(high, device)
            parts = []
            for k, (rate, height) in enumerate(zip(self.rate, self.height, strict=True)):
                inside = (rate > low[k]) & (rate < high[k])
                x, y = np.r_[low[k], rate[inside], high[k]], np.r_[first[k], height[inside], last[k]]
                parts.append(_lower_hull(x, y) if high[k] > low[k] else (x[:1], y[:1]))
            self._hulls[key] = RisingTable(*zip(*parts, strict=True))
        return self._hulls[key]


def _lower_hull(x: FloatArray, y: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Knots (x, y) of a piecewise linear function's lower convex hull."""
    while len(x) > 2:  # drop knots on or above the line between their neighbours
        above = y[1:-1] * (x[2:] - x[:-2]) >= y[:-2] * (x[2:] - x[1:-1]) + y[2:] * (x[1:-1] - x[:-2])
        if not above.any():
            break
        # Of two adjacent candidates only one goes: the other must be judged against its new neighbour.
        run = np.flatnonzero(above)
        starts = np.append(True, np.diff(run) > 1)
        begin = np.maximum.accumulate(np.where(starts, np.arange(len(run)), 0))
        drop = run[(np.arange(len(run)) - begin) % 2 == 0] + 1
        x, y = np.delete(x, drop), np.delete(y, drop)
    return x, y


class RisingObjective:
    """A plug-in objective made usable under OFDMA: `table` is below psi, and `choose` says where psi is attained.

    The cells are so fine that the nodes are lowered by 1e-8 of the objective in sum (or there are 32768 of them).
    """

    def __init__(self, problem: ResourceProblem, objective: SeparableObjective) -> None:
        top, count = problem.max_dropout_rate, problem.num_devices
        edges = np.linspace(0.0, top, _SEGMENTS + 1)
        ends = itertools.pairwise(np.repeat(edges[:, None], count, axis=1))
        floors = [objective.curvature_floor(problem, low, high) for low, high in ends]
        alpha = np.maximum(-np.array(floors), 0.0)  # (segments, K)
        for cells in _CELLS:
            self.grid = np.linspace(0.0, top, cells + 1)
            fleet = np.repeat(self.grid[:, None], count, axis=1)
            value, slope = objective.value(problem, fleet), objective.derivative(problem, fleet)  # (N, K)
            lowered = _lowering(value, slope, np.repeat(alpha, cells // _SEGMENTS, axis=0), top / cells)
            scale = float(np.abs(value).max(axis=0).sum())
            if lowered.max(axis=0).sum() <= _CLOSE * scale:
                break
        low = value - np.maximum(np.vstack([lowered, lowered[-1:]]), np.vstack([lowered[:1], lowered])) - 1e-13 * scale
        self.table = RisingTable(*zip(*(_running_minimum(self.grid, each) for each in low.T), strict=True))
        self._value = np.ascontiguousarray(value.T)  # (K, N)
        # (K, N) place of the smallest value at or right of every grid point, the leftmost of equals
        least = np.minimum.accumulate(self._value[:, ::-1], axis=1)[:, ::-1]
        place = np.where(self._value <= least, np.arange(len(value)), len(value))
        self._attained = np.minimum.accumulate(place[:, ::-1], axis=1)[:, ::-1]

    def best_rate(self) -> FloatArray:
        """Largest rate (K,) up to which psi_k does not rise: the global minimiser of the stand-in."""
        knots = zip(self.table.rate, self.table.height, strict=True)
        return np.array([x[np.flatnonzero(y <= y[0])[-1]] for x, y in knots])

    def choose(self, gamma: FloatArray, own: FloatArray, device: IntArray) -> FloatArray:
        """Dropout rate in [gamma, gamma_max] at which each device does best; ``own`` is its true value at ``gamma``."""
        at = np.minimum(np.searchsorted(self.grid, gamma - 1e-12), len(self.grid) - 1)
        node = self._attained[device, at]
        return np.where(self._value[device, node] < own, np.maximum(self.grid[node], gamma), gamma)


def rising_objective(problem: ResourceProblem, objective: SeparableObjective) -> RisingObjective | None:
    """Return what stands in for an objective, None where it is convex or nothing may be dropped."""
    plain = problem.max_dropout_rate == 0 or is_convex(problem, objective)
    return None if plain else RisingObjective(problem, objective)


def _lowering(value: FloatArray, slope: FloatArray, alpha: FloatArray, width: float) -> FloatArray:
    """How far phi may lie below its chord on every cell: d of the module's formula, (cells, K)."""
    first, last = slope[:-1] - 0.5 * alpha * width, slope[1:] + 0.5 * alpha * width
    chord = np.diff(value, axis=0) / width
    below, above = np.maximum(chord - first, 0.0), np.maximum(last - chord, 0.0)
    return width * np.divide(below * above, below + above, out=np.zeros_like(chord), where=below + above > 0)


def _running_minimum(x: FloatArray, y: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Running minimum from the right of a piecewise linear function; a knot is added where it leaves the function."""
    least = np.minimum.accumulate(y[::-1])[::-1]
    cross = np.flatnonzero((y[:-1] < least[1:]) & (least[1:] < y[1:]))
    share = (least[cross + 1] - y[cross]) / (y[cross + 1] - y[cross])
    rate = np.concatenate([x, x[cross] + share * (x[cross + 1] - x[cross])])
    order = np.argsort(rate, kind="stable")
    rate, height = rate[order], np.concatenate([least, least[cross + 1]])[order]
    distinct = np.append(True, np.diff(rate) > 0)
    flat = (np.diff(height)[:-1] == 0) & (np.diff(height)[1:] == 0)  # inner knots of flat stretches
    keep = distinct & ~np.pad(flat, 1)
    return rate[keep], height[keep]
