"""FDMA: from dropout rates to a full allocation; spare bandwidth and all the time left save energy."""

from __future__ import annotations

import time

import numpy as np
from scipy.special import lambertw

from optimizer.certificate import Certificate, can_be_verified
from optimizer.checker import make_solution
from optimizer.fdma.admission import Admission
from optimizer.fdma.bandwidth_curve import BandwidthCurve
from optimizer.objective import SeparableObjective
from optimizer.problem import FloatArray, ResourceProblem, Solution, SolverStatus
from optimizer.rootfinding import increasing_root
from wireless.link import LN2, tx_power_for_rate_w


def spend_bandwidth(problem: ResourceProblem, dropout_rate: FloatArray, least_hz: FloatArray) -> FloatArray:
    """Spend the bandwidth left over ``least_hz`` on the least total transmit energy, dropout rates fixed.

        min sum_k tau_k p_k(b_k)   s.t.   sum b_k <= W,  b_k >= least_k,   p = N0 b (e^L - 1)/g,  L = S ln2/(tau b).

    The energy is convex and falling in b; at price lambda, L = 1 + W_0((lambda g/(tau N0) - 1)/e).

    Parameters
    ----------
    problem : ResourceProblem
        FDMA, every device takes part.
    dropout_rate, least_hz : ndarray
        Shape (K,): gamma and a bandwidth that serves it [Hz].

    Returns
    -------
    ndarray
        Bandwidth (K,) [Hz], >= least_hz, summing to at most W.
    """
    curve = BandwidthCurve.of(problem)
    time_s, bits = curve.uplink_time_s(dropout_rate), curve.uplink_bits(dropout_rate)
    spare = problem.total_bandwidth_hz - float(least_hz.sum())
    sends = (bits > 0) & (least_hz > 0)
    if spare <= 1e-12 * problem.total_bandwidth_hz or not sends.any():
        return least_hz
    scale = time_s[sends] * curve.noise_to_gain[sends]  # tau N0 / g [J]
    nats = bits[sends] * LN2 / time_s[sends]

    spare_total = problem.total_bandwidth_hz - float(least_hz[~sends].sum())
    log_price = _energy_price(nats, scale, least_hz[sends], spare_total)
    band = least_hz.copy()
    wanted = _energy_demand(log_price, nats, scale, least_hz[sends])[0] - least_hz[sends]
    extra = float(wanted.sum())
    # What rounding left is handed out in proportion; never more than the spare.
    band[sends] += wanted * min(1.0, spare * (1 - 1e-15) / extra) if extra > 0 else 0.0
    return band


def _energy_demand(
    log_price: float, nats: FloatArray, scale: FloatArray, least_hz: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Bandwidth (K,) [Hz] that saves energy at a price lambda, and its derivative in ln lambda; never below ``least_hz``."""
    ratio = np.exp(np.minimum(log_price - np.log(scale), 700.0))
    efficiency = np.maximum(1.0 + np.real(lambertw((ratio - 1.0) / np.e, 0)), 1e-300)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        band = nats / efficiency
        # ratio = 1 + (L - 1) e^L, so d ratio = L e^L dL
        slope = -band * ratio / (efficiency**2 * np.exp(efficiency))
    return np.maximum(band, least_hz), np.where(band > least_hz, slope, 0.0)


def _energy_price(nats: FloatArray, scale: FloatArray, least_hz: FloatArray, total_hz: float) -> float:
    """Logarithm of the price at which the demand meets ``total_hz``: Newton's method on ln demand, else brackets."""
    # The first guess is the price at which `least_hz`, stretched to the total, would be the answer.
    efficiency = np.minimum(nats * (float(least_hz.sum()) / total_hz) / least_hz, 600.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        marginal = np.log(scale) + np.log1p((efficiency - 1.0) * np.exp(efficiency))
    log_price = float(np.median(marginal))
    for _ in range(10 if np.isfinite(log_price) else 0):
        band, slope = _energy_demand(log_price, nats, scale, least_hz)
        demand, change = float(band.sum()), float(slope.sum())
        if abs(demand - total_hz) <= 1e-12 * total_hz:
            return log_price
        log_price += float(np.log(total_hz / demand)) * demand / change if change < 0 else np.nan
        if not abs(log_price) < 600:
            break

    def surplus(log_price: FloatArray) -> FloatArray:
        return np.array([total_hz - float(_energy_demand(float(log_price[0]), nats, scale, least_hz)[0].sum())])

    ends = np.log(scale.min()) - 60.0, np.log(scale.max()) + 700.0
    return float(increasing_root(surplus, np.array([ends[0]]), np.array([ends[1]]), tolerance=1e-12).high[0])


def power_for(problem: ResourceProblem, dropout_rate: FloatArray, bandwidth_hz: FloatArray) -> FloatArray:
    """Least power (K,) [W] with which ``bandwidth_hz`` serves ``dropout_rate``, by using all the time left."""
    curve = BandwidthCurve.of(problem)
    bits, time_s = curve.uplink_bits(dropout_rate), curve.uplink_time_s(dropout_rate)
    rate = np.divide(bits, time_s, out=np.zeros_like(bits), where=bits > 0)
    power = tx_power_for_rate_w(rate, bandwidth_hz, problem.channel_gain, problem.noise_psd_w_per_hz)
    return np.minimum(power, problem.max_tx_power_w)  # b_min puts it at the cap up to rounding


def fit_dropout_rates(problem: ResourceProblem, dropout_rate: FloatArray) -> FloatArray:
    """Raise dropout rates (K,) towards max_dropout_rate, all by the same share of their way, until they fit together.

    The repair step of inexact methods; every device takes part, and they must fit at max_dropout_rate.
    """
    curve = BandwidthCurve.of(problem)
    gamma = np.clip(dropout_rate, 0.0, problem.max_dropout_rate)

    def raised(share: FloatArray) -> FloatArray:
        return gamma + share * (problem.max_dropout_rate - gamma)

    def slack(share: FloatArray) -> FloatArray:
        with np.errstate(divide="ignore"):
            return np.array([1.0 / curve.bandwidth_hz(raised(share)).sum() - 1.0 / problem.total_bandwidth_hz])

    share = increasing_root(slack, np.zeros(1), np.ones(1)).high
    if share[0] >= 1:  # at the end of the way the formula may miss the limit by rounding
        return np.full_like(gamma, problem.max_dropout_rate)
    return np.minimum(raised(share), problem.max_dropout_rate)


def finish(
    problem: ResourceProblem,
    admission: Admission,
    dropout_rate: FloatArray,
    *,
    method: str,
    status: SolverStatus,
    began: float,
    lower_bound: float,
    nodes: int = 0,
    iterations: int = 0,
    objective: SeparableObjective | None = None,
    least_hz: FloatArray | None = None,
    bandwidth_hz: FloatArray | None = None,
    certificate: Certificate | None = None,
) -> Solution:
    """Complete the dropout rates of the admitted devices (in their order) to a `Solution` of the whole fleet.

    Every device gets at least b_min, spare bandwidth goes where it saves most energy, and the power is the least that
    meets the deadline. A rule that grants ``bandwidth_hz`` itself keeps it; ``least_hz`` is b_min where it is known
    already. The ``certificate`` is left out where the verifier cannot know the objective.
    ``began`` is the `time.perf_counter` at which the solve started.
    """
    on = admission.scheduled
    part = problem.subset(on)
    band = bandwidth_hz
    if band is None:
        least = BandwidthCurve.of(part).bandwidth_hz(dropout_rate) if least_hz is None else least_hz
        band = spend_bandwidth(part, dropout_rate, least)

    def spread(values: FloatArray) -> FloatArray:
        fleet = np.zeros(problem.num_devices)
        fleet[on] = values
        return fleet

    return make_solution(
        problem,
        method=method,
        status=status,
        scheduled=on,
        dropout_rate=spread(dropout_rate),
        bandwidth_hz=spread(band),
        tx_power_w=spread(power_for(part, dropout_rate, band)),
        lower_bound=lower_bound,
        nodes=nodes,
        iterations=iterations,
        solve_time_s=time.perf_counter() - began,
        reasons=admission.reasons,
        objective=objective,
        certificate=certificate if can_be_verified(problem, objective) else None,
        admission=admission.claim,
    )
