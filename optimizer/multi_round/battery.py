"""Batteries over several rounds: one price per joule and device, one per hertz and round.

A device that sits a round out counts as if it dropped everything it may, a_k = w_k J_k(max_dropout_rate). Over R rounds

    min sum_kr min(a_k, phi_k(gamma_kr))   s.t.   sum_k b_kr <= W in every round,   sum_r E_kr <= B_k for every device.

Whatever the prices theta_k on joules and mu_r on hertz, the sum over devices and rounds of the cheaper of a_k and
min phi + theta E + mu b, less what battery and band cost, bounds every plan from below. The plan serves where serving
is cheaper at the best prices; the online policy is the certainty-equivalent form of [Neely2010] (docs/multi_round.md).
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, lambertw

from optimizer.fdma.bandwidth_curve import BandwidthCurve
from optimizer.multi_round.geometric import GeometricProgram, X
from optimizer.multi_round.interior_point import minimise
from optimizer.objective import GeneralizationBound
from optimizer.problem import BoolArray, FloatArray, ResourceProblem
from optimizer.rootfinding import increasing_root
from wireless.link import LN2

_BOUND = GeneralizationBound()
_SEEN = 10  # rounds that stand for those to come
_SOFT = 0.003  # how far from the cheaper choice, relative to the cost of absence, the smoothed dual still looks


class Rounds:
    """R rounds of a problem without subcarriers, one gain (R, K) each, as one problem of R K ``blocks``.

    ``weight`` (R,) repeats rounds; ``absence`` (R, K) is the cost of sitting out, a_k.
    """

    def __init__(self, problem: ResourceProblem, channel_gain: FloatArray, weight: FloatArray | None = None) -> None:
        count, self.num_devices = channel_gain.shape
        tiled = problem.subset(np.tile(np.arange(self.num_devices), count))
        self.blocks = replace(tiled, channel_gain=channel_gain.ravel())
        self.weight = np.ones(count) if weight is None else weight
        self.absence = _BOUND.value(self.blocks, self.blocks.highest_rates).reshape(channel_gain.shape)


@dataclass(frozen=True)
class Answer:
    """What blocks do at prices, (R, K) each: least cost of serving, what that spends and holds, at which rate."""

    cost: FloatArray
    energy_j: FloatArray
    bandwidth_hz: FloatArray
    dropout_rate: FloatArray


def answer(rounds: Rounds, price_per_j: FloatArray, price_per_hz: FloatArray) -> Answer:
    """Return every block's answer to theta (K,) and mu (R,), both above 0; an impossible one costs inf."""
    p, shape = rounds.blocks, (rounds.weight.size, rounds.num_devices)
    joule, hertz = np.tile(price_per_j, shape[0]), np.repeat(price_per_hz, shape[1])
    curve, top = BandwidthCurve(p), p.highest_rates
    possible = np.isfinite(curve.bandwidth_hz(top))

    def parts(gamma: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Band, energy radiated, and slope in gamma of what is paid: on b_min, else at a free band."""
        least, least_slope = curve.bandwidth_and_slope(gamma)
        left, bits = curve.uplink_time_s(gamma), curve.uplink_bits(gamma)
        unit = left * curve.noise_to_gain
        ratio = np.minimum(hertz / (joule * unit), 1e300)
        nats = np.maximum(1.0 + np.real(lambertw((ratio - 1.0) / np.e, 0)), 1e-12)
        free = bits * LN2 / (left * nats)
        band = np.maximum(free, least)
        load = np.minimum(bits * LN2 / (left * band), 700.0)
        radiated = unit * band * np.expm1(load)
        cap_j, cap_slope_j = curve.cap_j(gamma)
        left_j, left_slope_j = curve.energy_left_j(gamma)
        tight = joule * np.where(left_j < cap_j, left_slope_j, cap_slope_j)
        load_slope = -load * (curve.droppable_bits / bits + curve.time_slope_s / left)
        loose = joule * (curve.time_slope_s / left * radiated + unit * band * np.exp(load) * load_slope)
        slope = np.where(free > least, loose, tight + hertz * least_slope) - joule * curve.energy_slope_j
        return band, radiated, slope

    def slope(gamma: FloatArray) -> FloatArray:
        with np.errstate(all="ignore"):
            found = (_BOUND.derivative(p, gamma) + parts(gamma)[2]) * (1 - gamma)
        return np.where(np.isnan(found), -np.inf, found)

    start = np.clip(curve.feasible_from(), 0.0, top)
    found = increasing_root(slope, np.where(possible, start, top), top, tolerance=1e-12)
    gamma = np.where(possible, found.high, top)
    with np.errstate(all="ignore"):
        band, radiated, _ = parts(gamma)
        computing = p.energy_left_j - curve.energy_j + curve.energy_slope_j * (1 - gamma)
        energy = p.circuit_j + computing + radiated
        cost = _BOUND.value(p, gamma) + joule * energy + hertz * band
        rest = np.abs(np.nan_to_num(slope(gamma), posinf=0.0, neginf=0.0))  # to the minimum within the bracket
        cost -= rest * (found.high - found.low) / (1 - gamma)
    cost = np.where(possible & np.isfinite(cost), cost, np.inf)
    return Answer(*(part.reshape(shape) for part in (cost, energy, band, gamma)))


@dataclass(frozen=True)
class Prices:
    """Prices theta (K,) [1/J] and mu (R,) [1/Hz], the answers to them, and the lower bound that they prove."""

    per_j: FloatArray
    per_hz: FloatArray
    answer: Answer
    lower_bound: float


def best_prices(rounds: Rounds, battery_j: FloatArray) -> Prices:
    """Maximise the smoothed dual for batteries (K,) [J]; the bound is that of the dual itself."""
    absence, count, width = rounds.absence, rounds.num_devices, rounds.blocks.total_bandwidth_hz
    unit_j = absence.max() / np.maximum(rounds.blocks.energy_budget_j.reshape(absence.shape).mean(axis=0), 1e-12)
    unit_hz, soft = absence.sum(axis=1) / width, _SOFT * absence

    def loss(scaled: FloatArray) -> tuple[float, FloatArray]:
        theta, mu = scaled[:count] * unit_j, scaled[count:] * unit_hz
        found = answer(rounds, theta, mu)
        share = expit((absence - found.cost) / soft) * rounds.weight[:, None]
        value = -soft * np.logaddexp(-absence / soft, -np.minimum(found.cost, 1e300) / soft)
        energy, band = (np.where(share > 0, part, 0.0) for part in (found.energy_j, found.bandwidth_hz))
        slope_j = (share * energy).sum(axis=0) - battery_j
        slope_hz = (share * band).sum(axis=1) - rounds.weight * width
        dual = float((value * rounds.weight[:, None]).sum() - theta @ battery_j - width * (rounds.weight @ mu))
        return -dual, -np.concatenate([slope_j * unit_j, slope_hz * unit_hz])

    first = np.full(count + rounds.weight.size, 0.1)
    found = minimize(loss, first, jac=True, method="L-BFGS-B", bounds=[(1e-9, None)] * first.size)
    theta, mu = found.x[:count] * unit_j, found.x[count:] * unit_hz
    answers = answer(rounds, theta, mu)
    least = np.minimum(answers.cost, absence) * rounds.weight[:, None]
    total, paid = float(least.sum()), float(theta @ battery_j + width * (rounds.weight @ mu))
    return Prices(theta, mu, answers, total - paid - 1e-14 * (total + paid))


@dataclass(frozen=True)
class Plan:
    """Who is served when, at which rate, for which energy, (R, K) each (0 where absent); cost of all rounds."""

    served: BoolArray
    dropout_rate: FloatArray
    energy_j: FloatArray
    cost: float
    lower_bound: float


def offline_plan(rounds: Rounds, battery_j: FloatArray) -> Plan:
    """Best plan found when all channels are known, with a certified bound on every plan.

    Serves where serving is cheaper at the best prices, drops what the batteries do not carry (least gain first), and
    solves the convex program that is left.
    """
    prices = best_prices(rounds, battery_j)
    gain = rounds.absence - prices.answer.cost
    served = gain > 0
    for _ in range(served.size):
        plan = _plan_of(rounds, battery_j, served, prices.lower_bound)
        if plan is not None:
            return plan
        spent = np.where(served, prices.answer.energy_j, 0.0).sum(axis=0) / np.maximum(battery_j, 1e-300)
        wide = np.where(served, prices.answer.bandwidth_hz, 0.0).sum(axis=1) / rounds.blocks.total_bandwidth_hz
        pressed = np.maximum(spent[None, :] / spent.max(initial=1e-300), wide[:, None] / wide.max(initial=1e-300))
        candidates = np.where(served & (pressed > 0.999), gain, np.inf)
        served.ravel()[int(candidates.argmin())] = False
    raise AssertionError("an empty plan is always possible")


def _plan_of(rounds: Rounds, battery_j: FloatArray, served: BoolArray, lower_bound: float) -> Plan | None:
    """Optimum for a choice of who is served when; None where it has no room."""
    absent = float((rounds.absence * rounds.weight[:, None])[~served].sum())
    rate, energy = np.zeros(served.shape), np.zeros(served.shape)
    if not served.any():
        return Plan(served, rate, energy, absent, min(lower_bound, absent))
    blocks, (row, device) = rounds.blocks.subset(served.ravel()), np.nonzero(served)
    left_j, free = battery_j - np.bincount(device, blocks.circuit_j, battery_j.size), np.zeros(row.size)
    if (left_j[device] <= 0).any():
        return None
    program = GeometricProgram(blocks, free, free_time=False, band_of=row, battery_of=device, battery_j=left_j)
    found = minimise(program, gap=1e-6)
    if found is None:
        return None
    rate[served] = -np.expm1(found.point[:, X])
    energy[served] = program.evaluate(found.point).energy_j.sum(axis=1) + blocks.circuit_j
    return Plan(served, rate, energy, found.cost + absent, lower_bound)


def allowances(
    now: ResourceProblem, seen_gain: FloatArray, charge_j: FloatArray, rounds_left: int
) -> tuple[FloatArray, FloatArray]:
    """What each device may spend in this round (K,) [J], knowing no future channel, and the price per joule (K,).

    That is what it would spend at prices that empty its battery ``charge_j`` (K,) just in time if the rounds to come
    were like those seen; 0 for who should sit out. ``now`` is this round (not OFDMA), ``seen_gain`` (N, K) those seen
    so far, which need not hold this one; ``rounds_left`` counts this round.
    """
    gains = np.vstack([now.channel_gain[None, :], seen_gain[-_SEEN:]])
    weight = np.full(gains.shape[0], max(rounds_left - 1, 0) / max(gains.shape[0] - 1, 1))
    weight[0] = 1.0 if gains.shape[0] > 1 else float(rounds_left)
    rounds = Rounds(now, gains[weight > 0], weight[weight > 0])
    prices = best_prices(rounds, charge_j)
    found = prices.answer
    spend = np.where(found.cost[0] < rounds.absence[0], found.energy_j[0], 0.0)
    return np.minimum(np.minimum(spend, charge_j), now.energy_budget_j), prices.per_j
