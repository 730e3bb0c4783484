"""Benchmark schemes for FDMA: simple rules behind the same interface as the solvers.

    none          no dropout, the bandwidth each device needs       fixed   one given dropout rate, equal bandwidth
    equal         equal bandwidth, the best dropout rate for it     common  one common dropout rate, the best bandwidths
    proportional  bandwidth by channel, the best dropout rate       random  random shares and dropout rates

Devices that a rule cannot serve sit out with a reason. The certificate of a scheme is the sum of the unconstrained minima,
valid for any allocation. Whatever bandwidth a rule grants, the power is the least that meets the deadline.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from optimizer.admission import admit_fdma, individual_reasons
from optimizer.bandwidth import BandwidthCurve
from optimizer.bound import GeneralizationBound, SeparableObjective
from optimizer.evaluation import make_solution, nobody_scheduled
from optimizer.fdma import complete, power_for
from optimizer.problem import BoolArray, FloatArray, ResourceProblem, Solution, SolverStatus
from optimizer.rootfinding import increasing_root
from optimizer.underestimator import free_bound

Choice = Callable[[ResourceProblem, BandwidthCurve, FloatArray], FloatArray]


def best_dropout_rate(problem: ResourceProblem, objective: SeparableObjective, low: FloatArray) -> FloatArray:
    """Minimiser (K,) of each convex phi_k on [low_k, max_dropout_rate]."""
    top = np.full(problem.num_devices, problem.max_dropout_rate)
    return increasing_root(lambda gamma: objective.derivative(problem, gamma), np.minimum(low, top), top).high


def none(problem: ResourceProblem, *, objective: SeparableObjective | None = None) -> Solution:
    """No dropout: the heaviest set that fits at gamma = 0, each with the bandwidth it needs, the rest saves energy."""
    start = time.perf_counter()
    gamma = np.zeros(problem.num_devices)
    admission = admit_fdma(problem, gamma)
    least = BandwidthCurve.of(problem).bandwidth_hz(gamma)
    return _finish(problem, "none", admission.scheduled, gamma, least, admission.reasons, objective, start, spend=True)


def fixed(problem: ResourceProblem, *, dropout_rate: float = 0.5, objective: SeparableObjective | None = None) -> Solution:
    """One given dropout rate (at most max_dropout_rate) and equal bandwidth for everyone who can be served that way."""
    rate = min(dropout_rate, problem.max_dropout_rate)
    ones = np.ones(problem.num_devices)
    return _by_shares(problem, "fixed", ones, rate * ones, lambda part, curve, band: np.full(part.num_devices, rate), objective)


def equal(problem: ResourceProblem, *, objective: SeparableObjective | None = None) -> Solution:
    """Equal bandwidth, and the best dropout rate that it allows each device."""
    return _by_shares(problem, "equal", np.ones(problem.num_devices), None, _best_for(objective), objective)


def proportional(problem: ResourceProblem, *, objective: SeparableObjective | None = None) -> Solution:
    """Bandwidth in proportion to what a bit takes at full power, 1/log2(1 + P g/(N0 W/K)): weak channels get more."""
    even_hz = problem.total_bandwidth_hz / problem.num_devices
    snr = problem.max_tx_power_w * problem.channel_gain / (problem.noise_psd_w_per_hz * even_hz)
    share = 1.0 / np.maximum(np.log1p(snr), 1e-12)
    return _by_shares(problem, "proportional", share, None, _best_for(objective), objective)


def random(
    problem: ResourceProblem, *, rng: np.random.Generator | None = None, objective: SeparableObjective | None = None
) -> Solution:
    """Random bandwidth shares, then a random dropout rate among those that fit; without ``rng`` seed 0 is used."""
    generator = rng or np.random.default_rng(0)
    share, position = generator.exponential(size=problem.num_devices), generator.random(problem.num_devices)

    def draw(part: ResourceProblem, curve: BandwidthCurve, band: FloatArray) -> FloatArray:
        low = curve.smallest_dropout_rate(band)
        return low + position[: part.num_devices] * (part.max_dropout_rate - low)

    return _by_shares(problem, "random", share, None, draw, objective)


def common(problem: ResourceProblem, *, objective: SeparableObjective | None = None) -> Solution:
    """One dropout rate for all admitted devices, the best one, with the bandwidth each needs."""
    start = time.perf_counter()
    chosen = objective or GeneralizationBound()
    admission = admit_fdma(problem)
    gamma, least = np.zeros(problem.num_devices), np.zeros(problem.num_devices)
    if admission.scheduled.any():
        part = problem.subset(admission.scheduled)
        curve = BandwidthCurve.of(part)
        ones, top = np.ones(part.num_devices), np.array([part.max_dropout_rate])

        def spare(rate: FloatArray) -> FloatArray:
            with np.errstate(divide="ignore"):
                return 1.0 / part.total_bandwidth_hz - 1.0 / np.array([curve.bandwidth_hz(rate * ones).sum()])

        # -1/sum b is increasing; at the root the bandwidths just fit.
        low = np.array([min(max(float(curve.feasible_from().max()), 0.0), part.max_dropout_rate)])
        fitting = increasing_root(lambda rate: -spare(rate), low, top).high
        best = increasing_root(lambda rate: np.array([chosen.derivative(part, rate * ones).sum()]), fitting, top).high
        gamma[admission.scheduled] = best[0]
        least[admission.scheduled] = curve.bandwidth_hz(best * ones)
    return _finish(problem, "common", admission.scheduled, gamma, least, admission.reasons, objective, start, spend=True)


def _best_for(objective: SeparableObjective | None) -> Choice:
    def choose(part: ResourceProblem, curve: BandwidthCurve, band: FloatArray) -> FloatArray:
        return best_dropout_rate(part, objective or GeneralizationBound(), curve.smallest_dropout_rate(band))

    return choose


def _by_shares(
    problem: ResourceProblem,
    method: str,
    share: FloatArray,
    required: FloatArray | None,
    choose: Choice,
    objective: SeparableObjective | None,
) -> Solution:
    """Split the bandwidth by ``share`` among as many devices as can live with it at ``required`` (max_dropout_rate if None)."""
    start = time.perf_counter()
    worst = np.full(problem.num_devices, problem.max_dropout_rate) if required is None else required
    need = BandwidthCurve.of(problem).bandwidth_hz(worst)
    on = fit_shares(need, share, problem.total_bandwidth_hz)
    reasons = individual_reasons(problem, worst)
    band, gamma = np.zeros(problem.num_devices), np.zeros(problem.num_devices)
    if on.any():
        part = problem.subset(on)
        band[on] = problem.total_bandwidth_hz * share[on] / share[on].sum()
        gamma[on] = choose(part, BandwidthCurve.of(part), band[on])
    for k in np.flatnonzero(~on):
        reasons[k] = reasons[k] or f"needs {need[k]:.6g} Hz at dropout {worst[k]:.3g}, more than its share of the bandwidth"
    return _finish(problem, method, on, gamma, band, reasons, objective, start, spend=False)


def fit_shares(need_hz: FloatArray, share: FloatArray, total_hz: float) -> BoolArray:
    """Return a largest set in order of need per share such that need_k <= total share_k / (sum of the set's shares)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(need_hz <= 0, 0.0, need_hz / share)
    order = np.argsort(ratio, kind="stable")
    fits = ratio[order] * np.cumsum(share[order]) <= total_hz
    count = int(np.flatnonzero(fits)[-1]) + 1 if fits.any() else 0
    chosen = np.zeros(need_hz.shape, dtype=np.bool_)
    chosen[order[:count]] = True
    return chosen


def _finish(
    problem: ResourceProblem,
    method: str,
    on: BoolArray,
    gamma: FloatArray,
    band: FloatArray,
    reasons: list[str] | tuple[str, ...],
    objective: SeparableObjective | None,
    start: float,
    *,
    spend: bool,
) -> Solution:
    """Complete a rule's decision; ``spend`` hands out the bandwidth left over, a rule by shares keeps its shares."""
    if not on.any():
        return nobody_scheduled(problem, method, reasons, time.perf_counter() - start)
    part = problem.subset(on)
    if spend:
        band, power = complete(problem, on, gamma, band)
    else:
        power = np.zeros(problem.num_devices)
        power[on] = power_for(part, gamma[on], band[on])
    bound = free_bound(part, objective or GeneralizationBound())
    return make_solution(
        problem, method=method, status=SolverStatus.FEASIBLE, scheduled=on, dropout_rate=gamma, tx_power_w=power,
        bandwidth_hz=band, lower_bound=bound, solve_time_s=time.perf_counter() - start, reasons=reasons, objective=objective,
    )  # fmt: skip
