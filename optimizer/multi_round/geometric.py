"""The FDMA problem in logarithms, where it stays convex with the deadline and the clocks as variables.

With x = ln(1 - gamma), beta = ln b, r = ln R, pi = ln p, f = ln clock and t = ln T every row of the problem is convex
(proof in docs/multi_round.md): time and energy are posynomials, the rate row r <= beta + ln log2(1 + e^z), with
z = pi + ln(g/N0) - beta, is convex because softplus is log-concave, and the bound is a power series in 1 - gamma with
non-negative coefficients under a root. So the Lagrangian of any multipliers >= 0 lies above its tangent at any point,
and that tangent's least value over a box that holds every plan is a certified bound.
"""

from dataclasses import dataclass

import numpy as np

from optimizer.objective import bound_value
from optimizer.problem import FloatArray, IntArray, ResourceProblem
from wireless.link import LN2, fdma_rate_bps, spectral_efficiency_nats, tx_power_for_rate_w

X, BAND, RATE, POWER, CLOCK, TIME = range(6)  # columns of a point (n, 6); TIME is common to all blocks
# Rows after time, energy and rate: upper (+) and lower (-) ends of these columns.
_LIMITED, _SIGN = np.array([X, X, POWER, CLOCK, CLOCK]), np.array([1.0, -1.0, 1.0, 1.0, -1.0])
_LIMITS = np.arange(3, 3 + len(_LIMITED))
POWER_CAP = 5
_ROUNDING = 4e-15  # relative error of a sum


def _exponents(*terms: str) -> FloatArray:
    """One row per monomial, such as ``"+x-r"``: its exponents of (e^x, b, R, p, clock, T)."""
    table = np.zeros((len(terms), 6))
    for row, term in zip(table, terms, strict=True):
        for sign, name in zip(term[::2], term[1::2], strict=True):
            row["xbrpft".index(name)] += 1.0 if sign == "+" else -1.0
    return table


_TIME_TERMS = _exponents("-t", "+x-t", "-f-t", "+x-f-t", "-r-t", "+x-r-t")
_ENERGY_TERMS = _exponents("+f+f", "+x+f+f", "-r+p", "+x-r+p")
_TIME_OUTER, _ENERGY_OUTER = (np.einsum("ti,tj->tij", a, a).reshape(-1, 36) for a in (_TIME_TERMS, _ENERGY_TERMS))
_BENT = np.zeros((6, 6))  # Hessian of a function of pi - beta
_BENT[np.ix_([BAND, POWER], [BAND, POWER])] = [[1.0, -1.0], [-1.0, 1.0]]


@dataclass(frozen=True)
class Evaluation:
    """Cost and rows (all <= 0 where admissible) at a point, with slopes and what their Hessians are made of.

    ``rows`` (n, m) of the blocks, ``coupling`` (q,); ``cost_slope`` (n, 6), ``row_slope`` (n, m, 6), ``coupling_slope``
    (n, 6, q).
    """

    cost: float
    rows: FloatArray
    coupling: FloatArray
    cost_slope: FloatArray
    row_slope: FloatArray
    coupling_slope: FloatArray
    bound_bend: FloatArray  # (n,) second derivative of the bound in x
    time_share: FloatArray  # (n, 6) of the monomials of the time row
    energy_j: FloatArray  # (n, 4) monomials
    rate_bend: FloatArray  # (n,)
    band_share: FloatArray  # (n,) b/W
    deadline_s: float

    def slope(self, row_price: FloatArray, coupling_price: FloatArray, scale: float = 1.0) -> FloatArray:
        """Slope (n, 6) of the Lagrangian, ``scale`` times the cost plus rows at their prices."""
        rows = np.einsum("nm,nmi->ni", row_price, self.row_slope)
        return scale * self.cost_slope + rows + self.coupling_slope @ coupling_price


class GeometricProgram:
    """min sum_n bound_n + energy_weight_n energy_n + time_weight T over n blocks, one per device (and round).

    The problem is FDMA, one device per block, all take part and have something to send; its deadline is the longest T
    (a variable with ``free_time``), and clocks are variables where it gives their range. Weights cost joules (n,), but
    for circuit energy, and seconds of T. ``band_of`` and ``battery_of`` (n,) say which budget of W hertz and which
    battery of ``battery_j`` a block draws on: one budget and no battery if left out.
    """

    def __init__(
        self,
        problem: ResourceProblem,
        energy_weight_per_j: FloatArray,
        *,
        time_weight_per_s: float = 0.0,
        free_time: bool = True,
        band_of: IntArray | None = None,
        battery_of: IntArray | None = None,
        battery_j: FloatArray | None = None,
    ) -> None:
        count, one = problem.num_devices, np.ones(problem.num_devices)
        self.problem, self.energy_weight, self.time_weight = problem, energy_weight_per_j, time_weight_per_s
        clock = problem.cpu_hz if problem.min_cpu_hz is None else one
        owner = np.zeros(count, dtype=np.int64) if band_of is None else band_of
        self.in_band = (owner[:, None] == np.unique(owner)).astype(np.float64)
        self.on_battery = np.zeros((count, 0))
        if battery_of is not None and battery_j is not None:
            used = np.unique(battery_of)
            self.on_battery = (battery_of[:, None] == used) / battery_j[used]
        self.bands = slice(self.in_band.shape[1])  # among coupling rows; then batteries, then the longest T
        self.batteries = slice(self.bands.stop, self.bands.stop + self.on_battery.shape[1])
        down = [part / problem.downlink_rate_bps for part in problem.downlink_payload]
        work, sent = [problem.fixed_cycles, problem.adapter_cycles], [problem.fixed_bits, problem.droppable_bits]
        joules = problem.capacitance * clock**2
        with np.errstate(divide="ignore"):
            self.log_time = np.log(np.stack([*down, *(part / clock for part in work), *sent], axis=1))
            self.log_energy = np.log(np.stack([*(joules * part for part in work), *sent], axis=1))
            self.log_budget = np.log(problem.energy_left_j)
            self.log_snr = np.log(problem.channel_gain) - np.log(problem.noise_psd_w_per_hz)
        self.low, self.high = _box(problem, free_time)
        self.ends = np.where(_SIGN > 0, self.high[:, _LIMITED], self.low[:, _LIMITED])
        self.moves = self.low < self.high  # (n, 6)
        self.free_time = bool(self.moves[:, TIME].all())

    def evaluate(self, point: FloatArray) -> Evaluation:
        """Return cost, rows and derivatives at ``point`` (n, 6)."""
        p, count = self.problem, self.problem.num_devices
        with np.errstate(over="ignore"):
            seconds = np.exp(self.log_time + point @ _TIME_TERMS.T)
            joules = np.exp(self.log_energy + point @ _ENERGY_TERMS.T)
        used, spent = seconds.sum(axis=1), joules.sum(axis=1)
        bound, slope, bend = _bound_in_log(p, point[:, X])
        snr = point[:, POWER] + self.log_snr - point[:, BAND]
        soft = np.logaddexp(0.0, snr)
        share = np.exp(np.minimum(snr - soft, 0.0))  # the logistic function
        tilt = share / soft
        rows, row_slope = np.empty((count, 3 + len(_LIMITED))), np.zeros((count, 3 + len(_LIMITED), 6))
        rows[:, 0], rows[:, 1] = np.log(used), np.log(spent) - self.log_budget
        rows[:, 2] = point[:, RATE] - point[:, BAND] - np.log(soft) + np.log(LN2)
        row_slope[:, 0] = seconds @ _TIME_TERMS / used[:, None]
        row_slope[:, 1] = joules @ _ENERGY_TERMS / spent[:, None]
        row_slope[:, 2, [RATE, BAND, POWER]] = np.stack([np.ones(count), tilt - 1.0, -tilt], axis=1)
        free = self.moves[:, _LIMITED]
        rows[:, _LIMITS] = np.where(free, _SIGN * (point[:, _LIMITED] - self.ends), -1.0)
        row_slope[:, _LIMITS, _LIMITED] = np.where(free, _SIGN, 0.0)
        if p.access == "tdma":  # what is radiated on average is at most its share of time, p <= P b/W
            rows[:, POWER_CAP] += np.where(self.moves[:, POWER], np.log(p.total_bandwidth_hz) - point[:, BAND], 0.0)
            row_slope[:, POWER_CAP, BAND] = np.where(self.moves[:, POWER], -1.0, 0.0)
        band_share = np.exp(point[:, BAND]) / p.total_bandwidth_hz
        deadline = float(np.exp(point[0, TIME]))
        late = [point[0, TIME] - self.high[0, TIME]] if self.free_time else []
        coupling = np.concatenate([band_share @ self.in_band - 1.0, spent @ self.on_battery - 1.0, late])
        energy_slope = joules @ _ENERGY_TERMS
        coupling_slope = np.zeros((count, 6, coupling.size))
        coupling_slope[:, BAND, self.bands] = band_share[:, None] * self.in_band
        coupling_slope[:, :, self.batteries] = energy_slope[:, :, None] * self.on_battery[:, None, :]
        if self.free_time:
            coupling_slope[:, TIME, -1] = 1.0 / count  # summed over the blocks it is 1
        cost_slope = self.energy_weight[:, None] * energy_slope
        cost_slope[:, X] += slope
        cost_slope[:, TIME] += self.time_weight * deadline / count
        return Evaluation(
            cost=float(bound.sum() + self.energy_weight @ spent + self.time_weight * deadline),
            rows=rows,
            coupling=coupling,
            cost_slope=cost_slope,
            row_slope=row_slope,
            coupling_slope=coupling_slope,
            bound_bend=bend,
            time_share=seconds / used[:, None],
            energy_j=joules,
            rate_bend=-tilt * np.minimum(1.0 - share - tilt, 0.0),
            band_share=band_share,
            deadline_s=deadline,
        )

    def hessian(self, at: Evaluation, row_price: FloatArray, coupling_price: FloatArray, scale: float) -> FloatArray:
        """Blocks (n, 6, 6) of the Lagrangian's Hessian, ``scale`` times the cost plus rows at their prices."""
        count = self.problem.num_devices
        price_j = scale * self.energy_weight + self.on_battery @ coupling_price[self.batteries]
        spent = at.energy_j.sum(axis=1)
        weight = at.energy_j * (price_j + row_price[:, 1] / spent)[:, None]
        blocks = (weight @ _ENERGY_OUTER + (at.time_share * row_price[:, :1]) @ _TIME_OUTER).reshape(count, 6, 6)
        slopes = at.row_slope[:, :2] * np.sqrt(row_price[:, :2])[:, :, None]
        blocks -= np.swapaxes(slopes, 1, 2) @ slopes  # what the logarithm of a sum bends less
        blocks += (row_price[:, 2] * at.rate_bend)[:, None, None] * _BENT
        blocks[:, X, X] += scale * at.bound_bend
        blocks[:, BAND, BAND] += at.band_share * (self.in_band @ coupling_price[self.bands])
        blocks[:, TIME, TIME] += scale * self.time_weight * at.deadline_s / count
        return blocks

    def lower_bound(self, point: FloatArray, row_price: FloatArray, coupling_price: FloatArray) -> float:
        """Bound that the prices prove: the least value over the box of the Lagrangian's tangent at ``point``."""
        at = self.evaluate(point)
        slope = at.slope(row_price, coupling_price)
        slope[:, TIME] = slope[:, TIME].sum() / self.problem.num_devices  # one variable, shared out evenly
        parts = [np.array([at.cost]), (row_price * at.rows).ravel(), coupling_price * at.coupling]
        parts.append(np.minimum(slope * (self.low - point), slope * (self.high - point)).ravel())
        size = sum(float(np.abs(part).sum()) for part in parts)
        return float(sum(part.sum() for part in parts)) - _ROUNDING * (size + float(np.abs(slope).sum()))


def _box(problem: ResourceProblem, free_time: bool) -> tuple[FloatArray, FloatArray]:
    """Least and largest value of every variable of any admissible plan, (n, 6) each, in logarithms."""
    p, one = problem, np.ones(problem.num_devices)
    kept, noise, rate = 1.0 - p.max_dropout_rate, p.noise_psd_w_per_hz, p.uplink_bits(p.highest_rates) / p.deadline_s
    clocks = (one, one) if p.min_cpu_hz is None else p.clock_range_hz
    with np.errstate(divide="ignore", invalid="ignore"):  # a device with nothing to send
        margin = np.log(p.max_tx_power_w * p.channel_gain) - np.log(noise * LN2 * rate)
        band = rate * LN2 / spectral_efficiency_nats(margin)
    power = tx_power_for_rate_w(rate, p.total_bandwidth_hz, p.channel_gain, noise)
    most = fdma_rate_bps(p.total_bandwidth_hz, p.max_tx_power_w, p.channel_gain, noise)
    earliest = max(float(p.shortest_s.max()), 1e-9 * p.deadline_s) if free_time else p.deadline_s
    low = [kept * one, band, rate, power, clocks[0], earliest * one]
    high = [one, p.total_bandwidth_hz * one, most, p.max_tx_power_w, clocks[1], p.deadline_s * one]
    with np.errstate(divide="ignore"):
        return np.log(np.stack(low, axis=1)), np.log(np.stack(high, axis=1))


def _bound_in_log(problem: ResourceProblem, x: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Weighted bound of each block with its first two derivatives in x = ln(1 - gamma)."""
    c, kept = problem.bound, np.exp(x)
    twice = 2.0 * c.sparsity_regularization * kept**2
    curvature = c.curvature_min + 2.0 * c.sparsity_regularization - twice
    strength = 12.0 * c.loss_bound * c.lipschitz**2 / (problem.num_examples * c.confidence)
    gap = bound_value(1.0 - kept, problem.num_examples, c) - c.empirical_scale * (1.0 - kept) / kept
    rise = 2.0 * strength * twice / curvature**2
    bend = 2.0 * rise + 8.0 * strength * twice**2 / curvature**3
    with np.errstate(divide="ignore", invalid="ignore"):
        first = np.where(gap > 0, rise / (2.0 * gap), 0.0)
        second = np.where(gap > 0, bend / (2.0 * gap) - rise**2 / (4.0 * gap**3), 0.0)
    under = c.empirical_scale * (1.0 if problem.noise is None else 1.0 + problem.noise) / kept
    weight = problem.weights
    return weight * (under - c.empirical_scale + gap), weight * (first - under), weight * (second + under)
