"""Primal-dual interior-point method for a `GeometricProgram`: blocks joined by few common rows and the deadline.

Newton's method on the perturbed optimality conditions; the matrix is an arrow (a 5 x 5 block per device, a border for
the common rows and T), so a step costs O(n). The point stays strictly inside, so it is always an admissible plan.

References
----------
[Boyd2004] Boyd and Vandenberghe, Convex Optimization, section 11.7, and Boyd, Kim, Vandenberghe, Hassibi, A tutorial on
geometric programming, Optimization and Engineering 8, 2007.
"""

from dataclasses import dataclass, replace

import numpy as np

from optimizer.certificate import Certificate
from optimizer.fdma.bandwidth_curve import BandwidthCurve, best_clock_hz
from optimizer.multi_round.geometric import BAND, CLOCK, POWER, POWER_CAP, RATE, TIME, Evaluation, GeometricProgram, X
from optimizer.problem import FloatArray
from optimizer.timing import time_is_up
from wireless.link import fdma_rate_bps, tx_power_for_rate_w

_MAX_STEPS = 150
# How far the first point keeps from its limits: widest first, where the fleet leaves that much room.
_MARGINS = (0.3, 0.1, 0.03, 0.01, 1e-3, 1e-4, 1e-6, 1e-8)


@dataclass(frozen=True)
class Optimum:
    """A strictly admissible point (n, 6), its cost, a certified lower bound of all, what proves it, steps.

    The proof: prices of rows and coupling rows, and the point ``touching`` (n, 6) at which the tangent is taken.
    """

    program: GeometricProgram
    point: FloatArray
    cost: float
    lower_bound: float
    row_price: FloatArray
    coupling_price: FloatArray
    touching: FloatArray
    steps: int

    def certificate(self) -> Certificate:
        """Return the proof's plain form."""
        point, problem = self.touching.copy(), self.program.problem
        if problem.min_cpu_hz is None:
            point[:, CLOCK] = np.log(problem.cpu_hz)
        plain = {
            "price_per_hz": float(self.coupling_price[0] / problem.total_bandwidth_hz),
            "log_deadline": float(point[0, TIME]),
            "point": point[:, :TIME].tolist(),
            "price": self.row_price[:, [0, 1, 2, POWER_CAP]].tolist(),
        }
        return {"logarithms": plain}


@dataclass(frozen=True)
class _State:
    """Point, prices of rows (n, m) and of coupling rows (q,), and the evaluation there."""

    point: FloatArray
    row_price: FloatArray
    coupling_price: FloatArray
    at: Evaluation

    @property
    def surplus(self) -> float:
        """Sum of price times slack, what is left of the duality gap."""
        return -float((self.row_price * self.at.rows).sum() + self.coupling_price @ self.at.coupling)


def inside(program: GeometricProgram) -> FloatArray | None:
    """A point (n, 6) strictly inside all rows, None where the plans have no interior worth the name."""
    problem, low, high = program.problem, program.low, program.high
    if (problem.uplink_bits(problem.highest_rates) <= 0).any():
        return None
    for margin in _MARGINS:
        point = low + margin * (high - low)
        point[:, TIME] = high[:, TIME] - (0.1 * margin if program.free_time else 0.0)
        gamma, clock = -np.expm1(point[:, X]), problem.cpu_hz
        at = replace(problem, deadline_s=float(np.exp(point[0, TIME])))
        if problem.min_cpu_hz is not None:
            clock = np.log(best_clock_hz(at, gamma))
            room = 0.1 * margin * (high - low)[:, CLOCK]
            point[:, CLOCK] = np.clip(clock, low[:, CLOCK] + room, high[:, CLOCK] - room)
            clock = np.exp(point[:, CLOCK])
        curve = BandwidthCurve(at, clock)
        band = curve.bandwidth_hz(gamma)
        demand = band @ program.in_band / problem.total_bandwidth_hz
        if not (demand < 1 - 0.1 * margin).all():
            continue
        band = band * (program.in_band @ ((1 - 0.05 * margin) / demand))
        left_s = curve.uplink_time_s(gamma)
        left_j = curve.energy_left_j(gamma)[0]
        cap_w = problem.max_tx_power_w * (band / problem.total_bandwidth_hz if problem.access == "tdma" else 1.0)
        rate, most = curve.uplink_bits(gamma) / left_s, np.minimum(left_j / left_s, cap_w)
        least = tx_power_for_rate_w(rate, band, problem.channel_gain, problem.noise_psd_w_per_hz)
        power = least ** (1 - margin) * most**margin
        reached = fdma_rate_bps(band, power, problem.channel_gain, problem.noise_psd_w_per_hz)
        with np.errstate(invalid="ignore", divide="ignore"):
            point[:, BAND], point[:, RATE] = np.log(band), 0.5 * (np.log(rate) + np.log(reached))
            point[:, POWER] = np.log(power)
        found = program.evaluate(point)
        if (found.rows < 0).all() and (found.coupling < 0).all():
            return point
    return None


def minimise(program: GeometricProgram, *, gap: float = 1e-9) -> Optimum | None:
    """Minimise until a relative ``gap`` is certified or nothing moves; None where there is nothing `inside`."""
    start = inside(program)
    if start is None:
        return None
    at = program.evaluate(start)
    scale, level = 1.0 / max(abs(at.cost), 1e-300), 1.0 / _weights(at)
    state = _State(start, level / -at.rows, level * at.rows.shape[0] / -at.coupling, at)
    best, proof, length, steps = -np.inf, state, 1.0, 0
    for steps in range(1, _MAX_STEPS + 1):
        state, length = _step(program, state, scale, 0.02 if length > 0.9 else 0.1 if length > 0.6 else 0.4)
        last = length < 1e-9 or steps == _MAX_STEPS or time_is_up()
        if state.surplus < 1e-2 * scale * abs(state.at.cost) or last:
            found = program.lower_bound(state.point, state.row_price / scale, state.coupling_price / scale)
            best, proof = max((best, proof), (found, state), key=lambda pair: pair[0])
        if last or state.at.cost - best <= gap * abs(state.at.cost):
            break
    prices = proof.row_price / scale, proof.coupling_price / scale
    return Optimum(program, state.point, state.at.cost, best, *prices, proof.point, steps)


def _weights(at: Evaluation) -> int:
    """How many rows the barrier counts: one that joins n blocks weighs n."""
    return int(at.rows.size + at.coupling.size * at.rows.shape[0])


def _step(program: GeometricProgram, state: _State, scale: float, centring: float) -> tuple[_State, float]:
    """One damped Newton step towards the point of the central path with ``centring`` times the present gap."""
    at, count = state.at, state.point.shape[0]
    target = centring * state.surplus / _weights(at)
    blocks = program.hessian(at, state.row_price, state.coupling_price, scale)
    weighted = at.row_slope * np.sqrt(state.row_price / -at.rows)[:, :, None]
    blocks += np.swapaxes(weighted, 1, 2) @ weighted
    moves = program.moves[:, :, None]
    blocks = np.where(moves & np.swapaxes(moves, 1, 2), blocks, np.eye(6))
    pull = np.where(program.moves, at.slope(target / -at.rows, state.coupling_price, scale), 0.0)
    slope = np.where(moves, at.coupling_slope, 0.0)
    # Border: T first, then the prices of the coupling rows.
    border = np.concatenate([blocks[:, :TIME, TIME:], slope[:, :TIME]], axis=2)  # (n, 5, 1 + q)
    corner = np.diag(np.concatenate([[blocks[:, TIME, TIME].sum()], at.coupling / state.coupling_price]))
    corner[0, 1:] = corner[1:, 0] = slope[:, TIME].sum(axis=0)
    right = np.concatenate([[-pull[:, TIME].sum()], -at.coupling - count * target / state.coupling_price])
    solved = np.linalg.solve(blocks[:, :TIME, :TIME], np.concatenate([border, -pull[:, :TIME, None]], axis=2))
    flat = border.reshape(count * TIME, -1)
    reduced = corner - flat.T @ solved[:, :, :-1].reshape(count * TIME, -1)
    common = np.linalg.solve(reduced, right - flat.T @ solved[:, :, -1].ravel())
    move = np.empty_like(state.point)
    move[:, :TIME] = solved[:, :, -1] - solved[:, :, :-1] @ common
    move[:, TIME] = common[0]
    change = np.einsum("nmi,ni->nm", at.row_slope, move)
    row_move = -state.row_price + (target + state.row_price * change) / -at.rows
    return _search(program, state, (move, row_move, common[1:]), scale, target)


def _search(
    program: GeometricProgram, state: _State, moves: tuple[FloatArray, ...], scale: float, target: float
) -> tuple[_State, float]:
    """Longest backtracked step along ``moves`` that keeps prices and rows strict and shrinks the residual."""
    move, row_move, coupling_move = moves
    prices = np.concatenate([state.row_price.ravel(), state.coupling_price])
    change = np.concatenate([row_move.ravel(), coupling_move])
    falling = change < 0
    length = min(1.0, 0.99 * float((-prices[falling] / change[falling]).min(initial=np.inf)))
    before = _residual(program, state, scale, target)
    while length > 1e-12:
        point = state.point + length * move
        at = program.evaluate(point)
        if (at.rows < 0).all() and (at.coupling < 0).all():
            rows, coupling = state.row_price + length * row_move, state.coupling_price + length * coupling_move
            found = _State(point, rows, coupling, at)
            if _residual(program, found, scale, target) <= (1.0 - 0.01 * length) * before:
                return found, length
        length *= 0.6
    return state, 0.0


def _residual(program: GeometricProgram, state: _State, scale: float, target: float) -> float:
    at, count = state.at, state.point.shape[0]
    slope = np.where(program.moves, at.slope(state.row_price, state.coupling_price, scale), 0.0)
    parts = [
        slope[:, :TIME].ravel(),
        [slope[:, TIME].sum()],
        (state.row_price * at.rows).ravel() + target,
        state.coupling_price * at.coupling + count * target,
    ]
    return float(np.linalg.norm(np.concatenate(parts)))
