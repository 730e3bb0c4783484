"""OFDMA: penalised successive convex approximation with rounding and repair.

Shares x_km in [0, 1] stand in for ownership. In t = 1/tau(gamma) and shares and powers p the merit

    M(gamma, x, p) = sum_k phi_k + rho sum (relative violations of deadline, power rows) + theta sum_km x_km (1 - x_km)

has one concave part, x (1 - x), replaced by its tangent at the current point. What remains is the convex relaxation
with a cost theta (1 - 2 x) on the shares, and is solved by its dual (`optimizer.ofdma.dual_bound`). A step is shortened
until the merit does not rise; theta grows until the shares are almost whole. They are then rounded, and repaired and
improved by moves and swaps. The certificate is that of the first dual, at theta = 0 (docs/ofdma.md, [Scutari2014]).
"""

from typing import NamedTuple

import numpy as np

from optimizer.ofdma.completion import on_admitted
from optimizer.ofdma.dual_bound import (
    OwnershipBox,
    Relaxation,
    SoftBound,
    alone_bound,
    carrier_values,
    device_minima,
    maximise_bound,
    root_box,
)
from optimizer.ofdma.local_search import local_search, owner_values, restart, round_shares
from optimizer.ofdma.model import OfdmaModel, power_budget, required_rate, uplink_time
from optimizer.problem import FloatArray, IntArray, ResourceProblem, Solution
from optimizer.solver_interface import DEFAULTS, Arguments, Decision
from optimizer.timing import remaining_s, time_is_up, time_limit

_STEPS, _COLD = 8, 1e-3  # convex programs, and their temperature relative to the mean price of a subcarrier
_SHORTER = (1.0, 0.5, 0.25, 0.1, 0.03, 0.01)  # lengths of a step that are tried
_RESTART_SHARES, _FEWEST_RESTARTS, _MOST_RESTARTS = 2000, 1, 40
_WHOLE = 1e-3  # mean of x (1 - x) per subcarrier that counts as whole


class SharedPoint(NamedTuple):
    """Dropout rates (K,), shares x (K, M), and powers p (K, M) [W]."""

    gamma: FloatArray
    share: FloatArray
    power: FloatArray

    def towards(self, model: OfdmaModel, other: "SharedPoint", step: float) -> "SharedPoint":
        """Return the point a share ``step`` of the way to ``other``: straight in x, p and 1/tau."""
        mine, theirs = (1.0 / uplink_time(model, gamma) for gamma in (self.gamma, other.gamma))
        straight, share, power = (own + step * (aim - own) for own, aim in zip(self, other, strict=True))
        tau = 1.0 / (mine + step * (theirs - mine))
        gamma = np.divide(tau - model.tau0, model.tau1, out=straight, where=model.tau1 > 0)
        ends = np.minimum(self.gamma, other.gamma), np.maximum(self.gamma, other.gamma)
        return SharedPoint(np.clip(gamma, *ends), share, power)

    @property
    def fraction(self) -> float:
        """Sum of x (1 - x)."""
        return float(np.sum(self.share * (1.0 - self.share)))


def excess(model: OfdmaModel, point: SharedPoint) -> FloatArray:
    """Relative violation of the deadline rows and of the power rows, (2, K), zero where they hold."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(point.share > 1e-12, point.power / (model.inv_snr * point.share), 0.0)
    carried = np.sum(point.share * np.log2(1.0 + ratio), axis=1)
    needed, allowed = required_rate(model, point.gamma), power_budget(model, point.gamma)
    late = (needed - carried) / np.maximum(needed, 1e-300)
    loud = (point.power.sum(axis=1) - allowed) / np.maximum(allowed, 1e-300)
    return np.maximum(np.stack([late, loud]), 0.0)


def solve_shared(soft: SoftBound, log_prices: FloatArray) -> tuple[SharedPoint, FloatArray]:
    """Solve the convex program by its dual; returns the point and the log prices (2 K,) at which it was found."""
    log_prices = soft.climb(log_prices, 60)
    prices = np.exp(log_prices.reshape(2, -1))
    worth, _, power = carrier_values(soft.model, prices)
    share = soft.share(worth)[0]
    return SharedPoint(device_minima(soft.model, soft.box, prices)[1], share, share * power), log_prices


def approximate(
    model: OfdmaModel, box: OwnershipBox, first: Relaxation
) -> tuple[SharedPoint, list[tuple[float, float]]]:
    """Run the steps from the relaxation ``first``; theta begins at a fifth of a subcarrier's worth.

    Returns the point, and the merit before and after every accepted step.
    """
    unit, convex = max(float(first.leaf.price.mean()), 1e-10), model.convex_on(box.low, box.high)
    penalty, integrality = 10.0 * float(np.abs(model.value(box.high)).sum()), 0.2 * unit

    def merit(at: SharedPoint) -> float:
        violated = penalty * excess(model, at).sum()
        return float(convex.value(at.gamma).sum() + violated + integrality * at.fraction)

    merits: list[tuple[float, float]] = []
    point, log_prices = solve_shared(SoftBound(model, box, unit, _COLD), np.log(first.prices).ravel())
    for _ in range(_STEPS):
        if time_is_up() or point.fraction < _WHOLE * model.num_subcarriers:
            break
        soft = SoftBound(model, box, unit, _COLD, integrality * (1.0 - 2.0 * point.share))
        aim, log_prices = solve_shared(soft, log_prices)
        before = merit(point)
        for step in _SHORTER:
            trial = point.towards(model, aim, step)
            after = merit(trial)
            if after <= before:
                merits.append((before, after))
                point = trial
                break
        integrality *= 2.0
    return point, merits


def _decide(model: OfdmaModel, owner: IntArray, arguments: Arguments) -> Decision:
    """P-SCA from the relaxation, whose bound is the certificate; then rounding, repair and restarts."""
    box = root_box(model)
    first = maximise_bound(model, box)
    leaf = max(first.leaf, alone_bound(model, box), key=lambda leaf: leaf.bound)
    with time_limit(remaining_s() / 2):  # the rest is for rounding and repair
        point, merits = approximate(model, box, first)
    starts = round_shares(point.share), round_shares(first.share), owner
    found = [(owner, owner_values(model, owner)), *(local_search(model, start) for start in starts)]
    owner = min(found, key=lambda one: float(one[1].sum()))[0]  # the first one serves everyone, whatever the time
    # Cells of a few dozen shares are where one local optimum is far from the next; there restarts cost least, too.
    restarts = int(np.clip(_RESTART_SHARES // model.inv_snr.size, _FEWEST_RESTARTS, _MOST_RESTARTS))
    target = leaf.bound * (1 + arguments.gap)
    owner, _ = restart(model, owner, np.random.default_rng(0), restarts, target, shuffle=True)
    return Decision(leaf.bound, leaf.certificate(), owner=owner, iterations=len(merits))


def solve_psca_ofdma(problem: ResourceProblem, arguments: Arguments = DEFAULTS) -> Solution:
    """Admit devices and share the subcarriers by P-SCA, then round and repair; ``iterations`` are accepted steps."""
    return on_admitted(problem, arguments, _decide)
