"""FDMA: from a decision to a full allocation; spare bandwidth and all the time left save energy."""

from collections.abc import Callable

import numpy as np
from scipy.special import lambertw

from optimizer.fdma.admission import Admission, admit_fdma
from optimizer.fdma.bandwidth_curve import BandwidthCurve
from optimizer.problem import FloatArray, ResourceProblem, Solution
from optimizer.rootfinding import increasing_root
from optimizer.solver_interface import Arguments, Decision
from optimizer.timing import time_is_up
from wireless.link import LN2, tx_power_for_rate_w

Decide = Callable[[ResourceProblem, Arguments, FloatArray | None], Decision]


def spend_bandwidth(problem: ResourceProblem, dropout_rate: FloatArray, least_hz: FloatArray) -> FloatArray:
    """Spend the bandwidth left over ``least_hz`` (K,) on the least total transmit energy, dropout rates (K,) fixed.

        min sum_k tau_k p_k(b_k)   s.t.   sum b_k <= W,  b_k >= least_k,   p = N0 b (e^L - 1)/g,  L = S ln2/(tau b).

    The energy is convex and falling in b; at price lambda, L = 1 + W_0((lambda g/(tau N0) - 1)/e). Returns the
    bandwidth (K,) [Hz].
    """
    curve = BandwidthCurve(problem)
    time_s, bits = curve.uplink_time_s(dropout_rate), curve.uplink_bits(dropout_rate)
    total, band = problem.total_bandwidth_hz, least_hz.copy()
    spare, sends = total - float(band.sum()), (bits > 0) & (band > 0)
    if spare <= 1e-12 * total or not sends.any():
        return band
    if time_is_up():  # every device in proportion, without the search for a price
        return band * (total / float(band.sum()) * (1 - 1e-15))
    scale = time_s[sends] * curve.noise_to_gain[sends]  # tau N0 / g [J]
    nats = bits[sends] * LN2 / time_s[sends]
    log_price = _energy_price(nats, scale, band[sends], total - float(band[~sends].sum()))
    wanted = _energy_demand(log_price, nats, scale, band[sends])[0] - band[sends]
    extra = float(wanted.sum())
    # What rounding left is handed out in proportion; never more than the spare.
    band[sends] += wanted * min(1.0, spare * (1 - 1e-15) / extra) if extra > 0 else 0.0
    return band


def _energy_demand(
    log_price: float, nats: FloatArray, scale: FloatArray, least_hz: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Bandwidth (K,) [Hz] that saves energy at a price lambda, at least ``least_hz``; its derivative in ln lambda."""
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

    low, high = np.array([np.log(scale.min()) - 60.0]), np.array([np.log(scale.max()) + 700.0])
    return float(increasing_root(surplus, low, high, tolerance=1e-12).high[0])


def power_for(problem: ResourceProblem, dropout_rate: FloatArray, bandwidth_hz: FloatArray) -> FloatArray:
    """Least power (K,) [W] with which ``bandwidth_hz`` serves ``dropout_rate``, by using all the time left."""
    curve = BandwidthCurve(problem)
    bits, time_s = curve.uplink_bits(dropout_rate), curve.uplink_time_s(dropout_rate)
    rate = np.divide(bits, time_s, out=np.zeros_like(bits), where=bits > 0)
    power = tx_power_for_rate_w(rate, bandwidth_hz, problem.channel_gain, problem.noise_psd_w_per_hz)
    if problem.access == "tdma":  # what is radiated on average, while sending
        power = np.divide(power * problem.total_bandwidth_hz, bandwidth_hz, out=power, where=bandwidth_hz > 0)
    return np.minimum(power, problem.max_tx_power_w)  # b_min puts it at the cap up to rounding


def fit_dropout_rates(problem: ResourceProblem, dropout_rate: FloatArray) -> FloatArray:
    """Raise dropout rates (K,), all by one share of their way to max_dropout_rate, where they fit, until they do."""
    top, gamma = problem.max_dropout_rate, np.clip(dropout_rate, 0.0, problem.max_dropout_rate)
    curve = BandwidthCurve(problem)

    def slack(share: FloatArray) -> FloatArray:
        with np.errstate(divide="ignore"):
            needed = curve.bandwidth_hz(gamma + share * (top - gamma)).sum()
            return np.array([1.0 / needed - 1.0 / problem.total_bandwidth_hz])

    share = increasing_root(slack, np.zeros(1), np.ones(1)).high
    # At the end of the way the formula may miss the limit by rounding.
    return np.full_like(gamma, top) if share[0] >= 1 else np.minimum(gamma + share * (top - gamma), top)


def on_admitted(problem: ResourceProblem, arguments: Arguments, decide: Decide) -> Solution:
    """Admit the heaviest fleet that fits and complete what ``decide`` (fleet, arguments, earlier rates) says about it.

    The earlier rates (K,) are those of the warm start, NaN for devices that it did not serve; None without one.
    """
    admission, warm, earlier = admit_fdma(problem), arguments.warm_start, None
    on = admission.scheduled
    if not on.any():
        return admission.nobody(problem)
    if warm is not None and warm.scheduled.shape == on.shape:
        earlier = np.clip(warm.dropout_rate[on], 0.0, problem.max_dropout_rate)
    return finish(problem, admission, decide(problem.subset(on), arguments, earlier), arguments)


def finish(problem: ResourceProblem, admission: Admission, decision: Decision, arguments: Arguments) -> Solution:
    """Complete a decision about the admitted devices (in their order) to a `Solution` of the whole fleet.

    Every device gets at least b_min, spare bandwidth goes where it saves most energy, and the power is the least that
    meets the deadline.
    """
    on = admission.scheduled
    part, gamma, band = problem.subset(on), decision.dropout_rate, decision.bandwidth_hz
    assert gamma is not None
    if band is None:
        band = spend_bandwidth(part, gamma, BandwidthCurve(part).bandwidth_hz(gamma))
    rate, bandwidth, power = np.zeros((3, problem.num_devices))
    rate[on], bandwidth[on], power[on] = gamma, band, power_for(part, gamma, band)
    return admission.complete(problem, decision, arguments, rate=rate, bandwidth_hz=bandwidth, tx_power_w=power)
