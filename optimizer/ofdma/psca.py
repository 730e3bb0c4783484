"""OFDMA: penalised successive convex approximation with rounding and repair.

Shares x_km in [0, 1] stand in for ownership. In t = 1/tau(gamma) and shares and powers p the merit

    M(gamma, x, p) = sum_k phi_k + rho sum (relative violations of deadline, power rows) + theta sum_km x_km (1 - x_km)

has one concave part, x (1 - x), replaced by its tangent at the current point. What remains is the convex relaxation
with a cost theta (1 - 2 x) on the shares, and is solved by its dual (`optimizer.ofdma.dual_bound`). A step is shortened
until the merit does not rise; theta grows until the shares are almost whole. They are then rounded, and repaired and
improved by moves and swaps. The certificate is that of the first dual, at theta = 0 (docs/ofdma.md, [Scutari2014]).
"""

from dataclasses import dataclass, field

import numpy as np

from optimizer.ofdma.completion import on_admitted
from optimizer.ofdma.dual_bound import (
    DualPoint,
    OwnershipBox,
    SoftBound,
    alone_bound,
    carrier_values,
    device_minima,
    maximise_bound,
    root_box,
    start_prices,
)
from optimizer.ofdma.local_search import local_search, owner_values, restart, round_shares
from optimizer.ofdma.model import OfdmaModel, power_budget, required_rate, uplink_time
from optimizer.problem import FloatArray, IntArray, ResourceProblem, Solution
from optimizer.solver_interface import DEFAULTS, Arguments, Decision
from optimizer.timing import remaining_s, time_is_up, time_limit

_STEPS, _COLD = 8, 1e-3  # convex programs, and their temperature relative to the mean price of a subcarrier
_RESTART_SHARES, _FEWEST_RESTARTS, _MOST_RESTARTS = 2000, 1, 40
_WHOLE = 1e-3  # mean of x (1 - x) per subcarrier that counts as whole


@dataclass(frozen=True)
class SharedPoint:
    """Dropout rates (K,), shares x (K, M), and powers p (K, M) [W]."""

    gamma: FloatArray
    share: FloatArray
    power: FloatArray

    def towards(self, model: OfdmaModel, other: "SharedPoint", step: float) -> "SharedPoint":
        """Return the point a share ``step`` of the way to ``other``: straight in x, p and 1/tau."""
        mine, theirs = (1.0 / uplink_time(model, gamma) for gamma in (self.gamma, other.gamma))
        straight = self.gamma + step * (other.gamma - self.gamma)
        tau = 1.0 / (mine + step * (theirs - mine))
        gamma = np.divide(tau - model.tau0, model.tau1, out=straight, where=model.tau1 > 0)
        lowest, highest = np.minimum(self.gamma, other.gamma), np.maximum(self.gamma, other.gamma)
        return SharedPoint(
            np.clip(gamma, lowest, highest),
            self.share + step * (other.share - self.share),
            self.power + step * (other.power - self.power),
        )

    @property
    def fraction(self) -> float:
        """Sum of x (1 - x)."""
        return float(np.sum(self.share * (1.0 - self.share)))


@dataclass
class PscaTrace:
    """What happened, one entry per accepted step: merit before and after it, and theta during it."""

    before: list[float] = field(default_factory=list)
    after: list[float] = field(default_factory=list)
    integrality: list[float] = field(default_factory=list)


def excess(model: OfdmaModel, point: SharedPoint) -> FloatArray:
    """Relative violation of the deadline rows and of the power rows, (2, K), zero where they hold."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(point.share > 1e-12, point.power / (model.inv_snr * point.share), 0.0)
    carried = np.sum(point.share * np.log2(1.0 + ratio), axis=1)
    needed, allowed = required_rate(model, point.gamma), power_budget(model, point.gamma)
    late = (needed - carried) / np.maximum(needed, 1e-300)
    loud = (point.power.sum(axis=1) - allowed) / np.maximum(allowed, 1e-300)
    return np.maximum(np.stack([late, loud]), 0.0)


def merit(model: OfdmaModel, box: OwnershipBox, point: SharedPoint, penalty: float, integrality: float) -> float:
    """M at a point, see the module's formula."""
    value = model.convex_on(box.low, box.high).value(point.gamma)
    return float(value.sum() + penalty * excess(model, point).sum() + integrality * point.fraction)


def solve_shared(
    soft: SoftBound, log_prices: FloatArray, unit: float, max_steps: int = 60
) -> tuple[SharedPoint, FloatArray]:
    """Solve the convex program by its dual; returns the point and the log prices (2 K,) at which it was found."""
    log_prices = soft.climb(log_prices, unit, max_steps)
    prices = np.exp(log_prices.reshape(2, -1))
    worth, _, power = carrier_values(soft.model, *prices)
    share = soft.share(worth)[0]
    return SharedPoint(device_minima(soft.model, soft.box, *prices)[1], share, share * power), log_prices


def approximate(
    model: OfdmaModel, box: OwnershipBox, first: DualPoint, *, trace: PscaTrace | None = None
) -> SharedPoint:
    """Run the steps from the relaxation at the prices of ``first``; theta begins at a fifth of a subcarrier's worth."""
    trace = trace or PscaTrace()
    unit = max(float(first.price.mean()), 1e-10)
    penalty = 10.0 * float(np.abs(model.value(box.high)).sum())
    log_prices = np.log(np.concatenate([first.rate_price, first.power_price]))
    point, log_prices = solve_shared(SoftBound(model, box, _COLD * unit), log_prices, unit)
    integrality = 0.2 * unit
    for _ in range(_STEPS):
        if time_is_up() or point.fraction < _WHOLE * model.num_subcarriers:
            break
        soft = SoftBound(model, box, _COLD * unit, cost=integrality * (1.0 - 2.0 * point.share))
        aim, log_prices = solve_shared(soft, log_prices, unit)
        before = merit(model, box, point, penalty, integrality)
        for step in (1.0, 0.5, 0.25, 0.1, 0.03, 0.01):
            trial = point.towards(model, aim, step)
            after = merit(model, box, trial, penalty, integrality)
            if after <= before:
                trace.before.append(before)
                trace.after.append(after)
                trace.integrality.append(integrality)
                point = trial
                break
        integrality *= 2.0
    return point


def _decide(model: OfdmaModel, owner: IntArray, arguments: Arguments) -> Decision:
    """P-SCA from the relaxation, whose bound is the certificate; then rounding, repair and restarts."""
    box, trace = root_box(model), PscaTrace()
    first, share = maximise_bound(model, box, start_prices(model, box))
    trivial = float(model.value(box.low).sum())
    leaf = alone_bound(model, box) if trivial > first.bound else first.leaf()
    with time_limit(remaining_s() / 2):  # the rest is for rounding and repair
        point = approximate(model, box, first, trace=trace)
    owner = best_rounding(model, [round_shares(model, point.share), round_shares(model, share), owner])
    # Cells of a few dozen shares are where one local optimum is far from the next; there restarts cost least, too.
    restarts = int(np.clip(_RESTART_SHARES // model.inv_snr.size, _FEWEST_RESTARTS, _MOST_RESTARTS))
    target = leaf.bound * (1 + arguments.gap)
    owner, _ = restart(model, owner, np.random.default_rng(0), restarts, good_enough=target, shuffle=True)
    return Decision(leaf.bound, leaf.certificate(), owner=owner, iterations=len(trace.after))


def solve_psca_ofdma(problem: ResourceProblem, arguments: Arguments = DEFAULTS) -> Solution:
    """Admit devices and share the subcarriers by P-SCA, then round and repair; ``iterations`` are accepted steps."""
    return on_admitted(problem, arguments, _decide)


def best_rounding(model: OfdmaModel, owners: list[IntArray]) -> IntArray:
    """Improve every ownership by moves and swaps and keep the best; the last one serves everyone, whatever the time."""
    best, value = owners[-1], float(owner_values(model, owners[-1]).sum())
    for owner in owners:
        if time_is_up():
            break
        trial, found = local_search(model, owner)
        if found.sum() < value:
            best, value = trial, float(found.sum())
    return best
