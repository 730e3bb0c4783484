"""Benchmark schemes for FDMA: simple rules behind the same interface as the solvers.

    none          no dropout, the bandwidth each device needs       fixed   one given dropout rate, equal bandwidth
    equal         equal bandwidth, the best dropout rate for it     common  one common dropout rate, the best bandwidths
    proportional  bandwidth by channel, the best dropout rate       random  random shares and dropout rates

Devices that a rule cannot serve sit out with a reason. The certificate of a scheme is the sum of the unconstrained
minima, valid for any allocation. Whatever bandwidth a rule grants, the power is the least that meets the deadline.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from optimizer.certificate import free_certificate
from optimizer.checker import nobody_scheduled
from optimizer.fdma.admission import Admission, admit_fdma, individual_reasons
from optimizer.fdma.bandwidth_curve import BandwidthCurve
from optimizer.fdma.completion import finish
from optimizer.objective import GeneralizationBound, SeparableObjective, free_bound
from optimizer.problem import BoolArray, FloatArray, ResourceProblem, Solution, SolverStatus
from optimizer.rootfinding import increasing_root

Choice = Callable[[ResourceProblem, BandwidthCurve, FloatArray], FloatArray]


def best_dropout_rate(problem: ResourceProblem, objective: SeparableObjective, low: FloatArray) -> FloatArray:
    """Minimiser (K,) of each convex phi_k on [low_k, max_dropout_rate]."""
    top = np.full(problem.num_devices, problem.max_dropout_rate)
    return increasing_root(lambda gamma: objective.derivative(problem, gamma), np.minimum(low, top), top).high


def none(problem: ResourceProblem, *, objective: SeparableObjective | None = None) -> Solution:
    """No dropout: the heaviest set that fits at gamma = 0, each with the bandwidth it needs, the rest saves energy."""
    began = time.perf_counter()
    gamma = np.zeros(problem.num_devices)
    admission = admit_fdma(problem, gamma)
    return _finish(problem, "none", admission, gamma[admission.scheduled], None, objective, began)


def fixed(
    problem: ResourceProblem, *, dropout_rate: float = 0.5, objective: SeparableObjective | None = None
) -> Solution:
    """One given dropout rate (at most max_dropout_rate) and equal bandwidth for everyone who can be served that way."""
    rate = min(dropout_rate, problem.max_dropout_rate)
    ones = np.ones(problem.num_devices)
    return _by_shares(
        problem, "fixed", ones, rate * ones, lambda part, curve, band: np.full(part.num_devices, rate), objective
    )


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
    began, chosen = time.perf_counter(), objective or GeneralizationBound()
    admission = admit_fdma(problem)
    if not admission.scheduled.any():
        return nobody_scheduled(problem, "common", admission.reasons, time.perf_counter() - began, admission.claim)
    part = problem.subset(admission.scheduled)
    curve, ones = BandwidthCurve.of(part), np.ones(part.num_devices)

    def slack(rate: FloatArray) -> FloatArray:
        with np.errstate(divide="ignore"):
            return 1.0 / np.array([curve.bandwidth_hz(rate * ones).sum()]) - 1.0 / part.total_bandwidth_hz

    top = np.array([part.max_dropout_rate])
    low = np.clip(curve.feasible_from().max(), 0.0, top)
    fitting = increasing_root(slack, low, top).high
    best = increasing_root(lambda rate: np.array([chosen.derivative(part, rate * ones).sum()]), fitting, top).high
    return _finish(problem, "common", admission, best * ones, None, objective, began)


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
    began = time.perf_counter()
    worst = np.full(problem.num_devices, problem.max_dropout_rate) if required is None else required
    need = BandwidthCurve.of(problem).bandwidth_hz(worst)
    on = fit_shares(need, share, problem.total_bandwidth_hz)
    reasons = individual_reasons(problem, worst)
    for k in np.flatnonzero(~on):
        reasons[k] = (
            reasons[k] or f"needs {need[k]:.6g} Hz at dropout {worst[k]:.3g}, more than its share of the bandwidth"
        )
    if not on.any():
        return nobody_scheduled(problem, method, reasons, time.perf_counter() - began)
    part = problem.subset(on)
    band = problem.total_bandwidth_hz * share[on] / share[on].sum()
    gamma = choose(part, BandwidthCurve.of(part), band)
    return _finish(problem, method, Admission(on, tuple(reasons), exact=False), gamma, band, objective, began)


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
    admission: Admission,
    gamma: FloatArray,
    band: FloatArray | None,
    objective: SeparableObjective | None,
    began: float,
) -> Solution:
    """Complete a rule's dropout rates; ``band`` None hands out the bandwidth left over, a rule by shares keeps its shares."""
    if not admission.scheduled.any():
        return nobody_scheduled(problem, method, admission.reasons, time.perf_counter() - began, admission.claim)
    part = problem.subset(admission.scheduled)
    bound = free_bound(part, objective or GeneralizationBound())
    return finish(
        problem,
        admission,
        gamma,
        method=method,
        status=SolverStatus.FEASIBLE,
        began=began,
        lower_bound=bound,
        objective=objective,
        bandwidth_hz=band,
        certificate=free_certificate(part, objective),
    )
