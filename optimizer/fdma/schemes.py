"""Benchmark schemes for FDMA: simple rules behind the same interface as the solvers.

    none          no dropout, the bandwidth each device needs       fixed   one given dropout rate, equal bandwidth
    equal         equal bandwidth, the best dropout rate for it     common  one common dropout rate, the best bandwidths
    proportional  bandwidth by channel, the best dropout rate       random  random shares and dropout rates

Devices that a rule cannot serve sit out with a reason. The certificate of a scheme is the sum of the unconstrained
minima, valid for any allocation. Whatever bandwidth a rule grants, the power is the least that meets the deadline.
"""

from collections.abc import Callable

import numpy as np

from optimizer.certificate import free_proof
from optimizer.fdma.admission import Admission, admit_fdma, individual_reasons
from optimizer.fdma.bandwidth_curve import BandwidthCurve
from optimizer.fdma.completion import finish, fit_dropout_rates
from optimizer.objective import SeparableObjective
from optimizer.problem import BoolArray, FloatArray, ResourceProblem, Solution, SolverStatus
from optimizer.rootfinding import increasing_root
from optimizer.solver_interface import DEFAULTS, Arguments, Decision


def best_dropout_rate(problem: ResourceProblem, objective: SeparableObjective, low: FloatArray) -> FloatArray:
    """Minimiser (K,) of each convex phi_k on [low_k, max_dropout_rate]."""
    top = problem.highest_rates
    return increasing_root(lambda gamma: objective.derivative(problem, gamma), np.minimum(low, top), top).high


def none(problem: ResourceProblem, arguments: Arguments = DEFAULTS) -> Solution:
    """No dropout: the heaviest set that fits at gamma = 0, each with the bandwidth it needs, the rest saves energy."""
    admission = admit_fdma(problem, np.zeros(problem.num_devices))
    return by_rule(problem, admission, lambda part: np.zeros(part.num_devices), arguments)


def fixed(problem: ResourceProblem, arguments: Arguments = DEFAULTS) -> Solution:
    """One given dropout rate (at most max_dropout_rate) and equal bandwidth for everyone who can be served that way."""
    rate = min(arguments.dropout_rate, problem.max_dropout_rate)
    ones = np.ones(problem.num_devices)
    return _by_shares(problem, ones, arguments, lambda part, low: np.full(part.num_devices, rate), rate)


def equal(problem: ResourceProblem, arguments: Arguments = DEFAULTS) -> Solution:
    """Equal bandwidth, and the best dropout rate that it allows each device."""
    return _by_shares(problem, np.ones(problem.num_devices), arguments)


def proportional(problem: ResourceProblem, arguments: Arguments = DEFAULTS) -> Solution:
    """Bandwidth in proportion to what a bit takes at full power, 1/log2(1 + P g/(N0 W/K)): weak channels get more."""
    even_hz = problem.total_bandwidth_hz / problem.num_devices
    snr = problem.max_tx_power_w * problem.channel_gain / (problem.noise_psd_w_per_hz * even_hz)
    return _by_shares(problem, 1.0 / np.maximum(np.log1p(snr), 1e-12), arguments)


def random(problem: ResourceProblem, arguments: Arguments = DEFAULTS) -> Solution:
    """Random bandwidth shares, then a random dropout rate among those that fit."""
    generator = arguments.generator
    share, position = generator.exponential(size=problem.num_devices), generator.random(problem.num_devices)

    def draw(part: ResourceProblem, low: FloatArray) -> FloatArray:
        return low + position[: part.num_devices] * (part.max_dropout_rate - low)

    return _by_shares(problem, share, arguments, draw)


def common(problem: ResourceProblem, arguments: Arguments = DEFAULTS) -> Solution:
    """One dropout rate for all admitted devices, the best one, with the bandwidth each needs."""

    def choose(part: ResourceProblem) -> FloatArray:
        ones, top = np.ones(part.num_devices), np.array([part.max_dropout_rate])
        fitting = fit_dropout_rates(part, BandwidthCurve(part).feasible_from().max() * ones)[:1]
        slope = lambda rate: np.array([arguments.objective.derivative(part, rate * ones).sum()])  # noqa: E731
        return increasing_root(slope, fitting, top).high * ones

    return by_rule(problem, admit_fdma(problem), choose, arguments)


def _by_shares(
    problem: ResourceProblem,
    share: FloatArray,
    arguments: Arguments,
    choose: Callable[[ResourceProblem, FloatArray], FloatArray] | None = None,
    required: float | None = None,
) -> Solution:
    """Split the band by ``share`` among all that fit at ``required``; ``choose`` rates from the smallest, else best."""
    worst = np.full(problem.num_devices, problem.max_dropout_rate if required is None else required)
    need_hz = BandwidthCurve(problem).bandwidth_hz(worst)
    on = fit_shares(need_hz, share, problem.total_bandwidth_hz)
    reasons = individual_reasons(problem, worst)
    for k in np.flatnonzero(~on):
        need = f"needs {need_hz[k]:.6g} Hz at dropout {worst[k]:.3g}"
        reasons[k] = reasons[k] or f"{need}, more than its share of the bandwidth"
    band = problem.total_bandwidth_hz * share[on] / share[on].sum()

    def rates(part: ResourceProblem) -> FloatArray:
        low = BandwidthCurve(part).smallest_dropout_rate(band) if required is None else worst[on]
        return best_dropout_rate(part, arguments.objective, low) if choose is None else choose(part, low)

    return by_rule(problem, Admission(on, tuple(reasons), exact=False), rates, arguments, band)


def fit_shares(need_hz: FloatArray, share: FloatArray, total_hz: float) -> BoolArray:
    """Return a largest set in order of need per share such that need_k <= total share_k / (sum of the set's shares)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(need_hz <= 0, 0.0, need_hz / share)
    order = np.argsort(ratio, kind="stable")
    fits = ratio[order] * np.cumsum(share[order]) <= total_hz
    count = int(np.flatnonzero(fits).max(initial=-1)) + 1
    return np.isin(np.arange(order.size), order[:count])


def by_rule(
    problem: ResourceProblem,
    admission: Admission,
    rates: Callable[[ResourceProblem], FloatArray],
    arguments: Arguments,
    bandwidth_hz: FloatArray | None = None,
) -> Solution:
    """Complete a rule's dropout rates for those it serves; a rule by shares keeps its ``bandwidth_hz``."""
    if not admission.scheduled.any():
        return admission.nobody(problem)
    part = problem.subset(admission.scheduled)
    proof = free_proof(part, arguments.objective)
    decision = Decision(*proof, rates(part), bandwidth_hz, status=SolverStatus.FEASIBLE)
    return finish(problem, admission, decision, arguments)
