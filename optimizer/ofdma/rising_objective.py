"""OFDMA with objectives that are not convex: a certified piecewise linear stand-in that rises with the dropout rate.

Resources limit a dropout rate from below only, so a device whose set of subcarriers reaches gamma_A may choose any rate
above, and the set is worth

    psi(gamma_A),    psi(g) = min over gamma in [g, gamma_max] of phi(gamma),

which never falls in g, whatever phi is. On a cell [a, b] of width h with phi'' >= -alpha the function
phi - alpha/2 (gamma - a)(b - gamma) is convex and below phi [Adjiman1998], hence phi lies above its two end tangents:
with slopes s0 = phi'(a) - alpha h/2, s1 = phi'(b) + alpha h/2 and c that of the chord, at most
d = h (c - s0)(s1 - c)/(s1 - s0) = O(h^2) below the chord. Lowering every node by the larger d of its two cells gives a
piecewise linear function below phi; its running minimum from the right is below psi. Its lower convex hull on an
interval is what Lagrangian bounds need: rising and convex.

References
----------
[Adjiman1998] Adjiman et al., A global optimization method, alphaBB, for general twice-differentiable constrained NLPs,
Computers & Chemical Engineering 22(9), 1998.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import numpy as np

from optimizer.objective import SeparableObjective
from optimizer.problem import FloatArray, IntArray, ResourceProblem

_SEGMENTS = 128  # intervals for which the objective is asked for its curvature floor
_FEWEST, _MOST = 1024, 32768  # cells per device
_CLOSE = 1e-8  # total lowering of the nodes at which the cells are fine enough, relative to the objective


@dataclass(frozen=True)
class RisingTable:
    """Non-decreasing piecewise linear functions of K devices.

    Parameters
    ----------
    rate, height : tuple of ndarray
        Knots of each device: dropout rates, ascending, and values, non-decreasing.
    """

    rate: tuple[FloatArray, ...]
    height: tuple[FloatArray, ...]
    _hulls: dict[bytes, RisingTable] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        """Lay all knots on one axis, two units apart per device, so that one search serves all devices."""
        axis = np.concatenate([2.0 * k + rate for k, rate in enumerate(self.rate)])
        slopes = [
            np.append(s, s[-1]) if (s := np.diff(y) / np.diff(x)).size else np.zeros(1)
            for x, y in zip(self.rate, self.height, strict=True)
        ]
        object.__setattr__(self, "_axis", axis)
        object.__setattr__(self, "_heights", np.concatenate(self.height))
        object.__setattr__(self, "_rates", np.concatenate(self.rate))
        object.__setattr__(self, "_slopes", np.concatenate(slopes))

    def _cell(self, gamma: FloatArray, device: IntArray) -> tuple[IntArray, FloatArray]:
        """Knot at or left of each rate, and how far right of it the rate is."""
        axis: FloatArray = self._axis  # type: ignore[attr-defined]
        at = np.maximum(np.searchsorted(axis, 2.0 * device + gamma, side="right") - 1, 0)
        return at, gamma - self._rates[at]  # type: ignore[attr-defined]

    def value(self, gamma: FloatArray, device: IntArray) -> FloatArray:
        """Height of ``device`` at ``gamma``, both of one shape; rates outside the knots are not looked at."""
        at, ahead = self._cell(gamma, device)
        return np.asarray(self._heights[at] + self._slopes[at] * ahead)  # type: ignore[attr-defined]

    def slope(self, gamma: FloatArray, device: IntArray) -> FloatArray:
        """Slope right of ``gamma`` (left of it at the last knot)."""
        return np.asarray(self._slopes[self._cell(gamma, device)[0]])  # type: ignore[attr-defined]

    def hull(self, low: FloatArray, high: FloatArray) -> RisingTable:
        """Lower convex hull of every device's function on [low_k, high_k] (K,); empty intervals keep their low end."""
        key = low.tobytes() + high.tobytes()
        if key not in self._hulls:
            if len(self._hulls) > 64:
                self._hulls.clear()
            device = np.arange(len(self.rate))
            ends = self.value(low, device), self.value(np.maximum(low, high), device)
            parts = [self._hull_of(int(k), (low[k], max(low[k], high[k])), (ends[0][k], ends[1][k])) for k in device]
            self._hulls[key] = RisingTable(tuple(part[0] for part in parts), tuple(part[1] for part in parts))
        return self._hulls[key]

    def _hull_of(
        self, k: int, ends: tuple[float, float], heights: tuple[float, float]
    ) -> tuple[FloatArray, FloatArray]:
        inside = (self.rate[k] > ends[0]) & (self.rate[k] < ends[1])
        x = np.concatenate([[ends[0]], self.rate[k][inside], [ends[1]]])
        y = np.concatenate([[heights[0]], self.height[k][inside], [heights[1]]])
        if not ends[1] > ends[0]:
            return x[:1], y[:1]
        while len(x) > 2:  # drop knots on or above the line between their neighbours, every other one at a time
            above = y[1:-1] * (x[2:] - x[:-2]) >= y[:-2] * (x[2:] - x[1:-1]) + y[2:] * (x[1:-1] - x[:-2])
            if not above.any():
                break
            # Of two adjacent candidates only one goes: the other must be judged against its new neighbour.
            run = np.flatnonzero(above)
            first = np.concatenate([[True], np.diff(run) > 1])
            begin = np.maximum.accumulate(np.where(first, np.arange(len(run)), 0))
            drop = run[(np.arange(len(run)) - begin) % 2 == 0] + 1
            keep = np.ones(len(x), dtype=bool)
            keep[drop] = False
            x, y = x[keep], y[keep]
        return x, y


@dataclass(frozen=True)
class RisingObjective:
    """A plug-in objective made usable under OFDMA: `table` is below psi, `nodes` say where psi is attained.

    Parameters
    ----------
    table : RisingTable
        Certified stand-in for psi_k.
    grid : ndarray
        (N,) dropout rates.
    attained : ndarray
        (K, N) position of the smallest true value at or right of each grid point.
    value : ndarray
        (K, N) true values.
    """

    table: RisingTable
    grid: FloatArray
    attained: IntArray
    value: FloatArray

    def best_rate(self) -> FloatArray:
        """Largest rate (K,) up to which psi_k does not rise: the global minimiser of the stand-in."""
        return np.array(
            [x[np.flatnonzero(y <= y[0])[-1]] for x, y in zip(self.table.rate, self.table.height, strict=True)]
        )

    def choose(self, gamma: FloatArray, own: FloatArray, device: IntArray) -> FloatArray:
        """Dropout rate in [gamma, gamma_max] at which each device does best; ``own`` is its true value at ``gamma``."""
        at = np.minimum(np.searchsorted(self.grid, gamma - 1e-12), len(self.grid) - 1)
        node = self.attained[device, at]
        return np.where(self.value[device, node] < own, np.maximum(self.grid[node], gamma), gamma)


def rising_objective(problem: ResourceProblem, objective: SeparableObjective) -> RisingObjective:
    """Tabulate psi of every device, with cells so fine that the nodes are lowered by 1e-8 of the objective at most.

    Parameters
    ----------
    problem : ResourceProblem
        Gives K and gamma_max.
    objective : SeparableObjective
        Any phi_k with a curvature floor.

    Returns
    -------
    RisingObjective
    """
    top, count = problem.max_dropout_rate, problem.num_devices
    if top <= 0:
        only = objective.value(problem, np.zeros((1, count))).T  # (K, 1)
        table = RisingTable((np.zeros(1),) * count, tuple(only))
        return RisingObjective(table, np.zeros(1), np.zeros((count, 1), dtype=np.int64), only)
    edges = np.linspace(0.0, top, _SEGMENTS + 1)
    floors = [
        objective.curvature_floor(problem, np.full(count, a), np.full(count, b)) for a, b in itertools.pairwise(edges)
    ]
    alpha = np.maximum(-np.array(floors), 0.0)  # (segments, K)
    cells = _FEWEST
    while True:
        grid = np.linspace(0.0, top, cells + 1)
        value = objective.value(problem, np.repeat(grid[:, None], count, axis=1))  # (N, K)
        slope = objective.derivative(problem, np.repeat(grid[:, None], count, axis=1))
        lowered = _lowering(value, slope, np.repeat(alpha, cells // _SEGMENTS, axis=0), top / cells)
        scale = float(np.abs(value).max(axis=0).sum())
        if lowered.max(axis=0).sum() <= _CLOSE * scale or cells >= _MOST:
            break
        cells *= 4 if cells * 4 <= _MOST else 2
    low = value - np.maximum(np.vstack([lowered, lowered[-1:]]), np.vstack([lowered[:1], lowered])) - 1e-13 * scale
    parts = [_running_minimum(grid, low[:, k]) for k in range(count)]
    table = RisingTable(tuple(part[0] for part in parts), tuple(part[1] for part in parts))
    return RisingObjective(table, grid, _suffix_argmin(value.T), np.ascontiguousarray(value.T))


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
    flat = np.append(False, (np.diff(height)[:-1] == 0) & (np.diff(height)[1:] == 0))  # inner knots of flat stretches
    keep = distinct & ~np.append(flat, False)
    return rate[keep], height[keep]


def _suffix_argmin(value: FloatArray) -> IntArray:
    """Position of the smallest entry at or right of every place, (K, N); the leftmost of equals."""
    least = np.minimum.accumulate(value[:, ::-1], axis=1)[:, ::-1]
    place = np.where(value <= least, np.arange(value.shape[1]), value.shape[1])
    return np.asarray(np.minimum.accumulate(place[:, ::-1], axis=1)[:, ::-1])
