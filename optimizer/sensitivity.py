"""Why a device got what it got: which limits it touches, and what one more unit of each would change.

FDMA. At price mu on bandwidth the objective changes with any resource theta by mu db_min/dtheta at fixed dropout rates
(the envelope theorem), and by -mu per hertz. With b = S ln2/(tau L) and F'(L) dL = d ln epsilon - d ln S,

    d ln b/dE = -1/(epsilon F' L)  where the energy budget binds,   d ln b/dP = -1/(P F' L)  where the power cap binds,
    d ln b/dT = -1/tau  (and -1/(tau F' L) more where the power cap binds).

A rule that grants bandwidth without a common price leaves every device a price of its own, phi'/(-b_min'). Under OFDMA
a device's set stays what it is, and its rate follows h_A(gamma; theta) = 0: d gamma = -dh/h'
(`optimizer.ofdma.waterfilling`).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from optimizer.fdma.bandwidth_curve import BandwidthCurve
from optimizer.fdma.exact import solve_box
from optimizer.objective import GeneralizationBound, SeparableObjective, free_rates
from optimizer.ofdma.admission import admit_ofdma
from optimizer.ofdma.model import OfdmaModel, build_model, power_budget, uplink_time
from optimizer.ofdma.waterfilling import list_members, set_rates, set_values, sort_members, surplus_of, waterfill_rate
from optimizer.problem import BoolArray, FloatArray, ResourceProblem, Solution
from wireless.link import log_mean_exp, spectral_efficiency_nats

_TOUCH = 1e-6  # relative distance at which a limit counts as reached
OPTIMAL_METHODS = frozenset({"exact", "bnb", "psca", "scip"})


@dataclass(frozen=True)
class Sensitivity:
    """Changes of the objective per unit of a resource, and the limits reached; all arrays have shape (K,)."""

    # What one more hertz for this device is worth: minus the change of the objective [1/Hz]; equal for all under an
    # optimal method. Under OFDMA the value of the best subcarrier it does not own, per hertz.
    bandwidth_price: FloatArray
    per_joule: FloatArray  # change of the objective with E_k,
    per_watt: FloatArray  # with P_k,
    per_second: FloatArray  # and the part of device k in that with the deadline T; never positive
    best_rate: FloatArray  # unconstrained minimiser of phi_k
    at_best: BoolArray  # gamma at that minimiser
    at_most: BoolArray  # gamma at max_dropout_rate
    on_deadline: BoolArray
    on_energy: BoolArray
    on_power: BoolArray


def sensitivity(
    problem: ResourceProblem, solution: Solution, objective: SeparableObjective | None = None
) -> Sensitivity:
    """Say which limits an allocation touches and what they cost; entries of devices that sit out are zero.

    Under FDMA the methods `OPTIMAL_METHODS` share one price; others have one per device. ``objective`` is convex, the
    generalization bound when left out.
    """
    chosen, on, count = objective or GeneralizationBound(), solution.scheduled, problem.num_devices
    fixed = problem if solution.cpu_hz is None else problem.at_clock(solution.cpu_hz)
    gamma = np.where(on, solution.dropout_rate, 0.0)
    best = free_rates(problem, chosen)
    parts = np.zeros((4, count))
    if on.any():
        compute = _ofdma if problem.access == "ofdma" else _fdma
        parts[:, on] = compute(fixed.subset(on), solution, gamma[on], best[on], chosen)
    power = solution.tx_power_w.reshape(count, -1).sum(axis=1)

    def reached(value: FloatArray, limit: FloatArray | float) -> BoolArray:
        return on & (np.where(on, value, 0.0) >= limit * (1 - _TOUCH))

    price, per_joule, per_watt, per_second = parts
    return Sensitivity(
        *(price, per_joule, per_watt, per_second),
        best_rate=best,
        at_best=on & (gamma <= best + 1e-9),
        at_most=on & (gamma >= problem.max_dropout_rate - 1e-9),
        on_deadline=reached(solution.latency_s, problem.deadline_s),
        on_energy=reached(solution.energy_j, problem.energy_budget_j),
        on_power=reached(power, problem.max_tx_power_w),
    )


def _fdma(
    part: ResourceProblem, solution: Solution, gamma: FloatArray, best: FloatArray, objective: SeparableObjective
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Price per hertz, and changes per joule, watt and second, of the devices that take part."""
    curve = BandwidthCurve.of(part)
    band, band_slope = curve.bandwidth_and_slope(gamma)
    zeros, common = np.zeros(part.num_devices), solution.method in OPTIMAL_METHODS
    if common and curve.bandwidth_hz(zeros + part.max_dropout_rate).sum() <= part.total_bandwidth_hz:
        price = np.full(part.num_devices, solve_box(part, objective, zeros, zeros + part.max_dropout_rate).price)
    else:
        assert solution.bandwidth_hz is not None
        tight = solution.bandwidth_hz[solution.scheduled] <= band * (1 + _TOUCH)
        slope = objective.derivative(part, gamma)
        pays = tight & (gamma > best + 1e-9) & (band_slope < 0)
        price = np.divide(slope, -band_slope, out=np.zeros_like(slope), where=pays)
    time, bits = curve.uplink_time_s(gamma), curve.uplink_bits(gamma)
    left, cap = curve.energy_j - curve.energy_slope_j * (1 - gamma), curve.cap_j(gamma)[0]
    sends = bits > 0
    energy = np.where(sends, np.minimum(left, cap), 1.0)
    with np.errstate(divide="ignore"):
        margin = np.log(energy) - np.log(np.where(sends, bits, 1.0)) - np.log(curve.noise_to_gain * np.log(2.0))
    efficiency = np.maximum(spectral_efficiency_nats(np.where(sends, margin, 1.0)), 1e-300)
    share = 1.0 / (log_mean_exp(efficiency)[1] * efficiency)  # -d ln b / d ln epsilon
    paid = np.where(sends, price * band, 0.0)
    by_budget = left < cap
    per_joule = np.where(by_budget, -paid * share / energy, 0.0)
    per_watt = np.where(by_budget, 0.0, -paid * share / np.maximum(part.max_tx_power_w, 1e-300))
    if curve.shared_hz is not None:  # the cap bounds the rate of a share, however long that is
        snr = np.expm1(curve.full_nats)
        per_watt = np.where(by_budget, 0.0, -paid * snr / ((1 + snr) * curve.full_nats * part.max_tx_power_w))
        share = np.zeros_like(share)
    per_second = -paid * (1.0 + np.where(by_budget, 0.0, share)) / np.maximum(time, 1e-300)
    return price, per_joule, per_watt, per_second


def _ofdma(
    part: ResourceProblem, solution: Solution, gamma: FloatArray, best: FloatArray, objective: SeparableObjective
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """As `_fdma`, with every device's set held fixed; the price is that of its best subcarrier elsewhere."""
    model, count = build_model(part, objective), part.num_devices
    device = np.arange(count)
    assert solution.subcarrier_owner is not None
    owned = solution.subcarrier_owner[None, :] == np.flatnonzero(solution.scheduled)[:, None]  # (K, M)
    sets = sort_members(model, device, list_members(owned))
    _, slope = surplus_of(model, sets, gamma)
    power, tau = power_budget(model, gamma), uplink_time(model, gamma)
    rate, per_watt = waterfill_rate(sets, power)
    capped = power >= model.power
    # Only where the set decides the rate; at the minimiser of phi more of anything changes nothing.
    pays = (gamma > np.maximum(best, model.rate_low) + 1e-9) & (slope > 0)
    per_surplus = np.divide(-model.slope(gamma), slope, out=np.zeros(count), where=pays)
    per_joule = per_surplus * np.where(capped, 0.0, per_watt)
    per_cap = per_surplus * np.where(capped, tau * per_watt, 0.0)
    per_second = per_surplus * (rate - np.where(capped, 0.0, power * per_watt))
    return _best_addition(model, owned, gamma) / part.subcarrier_hz, per_joule, per_cap, per_second


def _best_addition(model: OfdmaModel, owned: BoolArray, gamma: FloatArray) -> FloatArray:
    """How much each device's phi falls when the subcarrier that helps it most joins its set, (K,)."""
    gain = np.zeros(model.num_devices)
    for k in range(model.num_devices):
        free = np.flatnonzero(~owned[k])
        if free.size:
            trial = np.repeat(owned[k : k + 1], free.size, axis=0)
            trial[np.arange(free.size), free] = True
            values = set_values(model, np.full(free.size, k), trial)
            now = float(model.value(gamma[k : k + 1], np.array([k]))[0])
            gain[k] = max(now - float(values.min()), 0.0)
    return gain


def served_alone(problem: ResourceProblem) -> BoolArray:
    """Whether each device could be served with the whole band to itself at max_dropout_rate, (K,)."""
    if problem.access != "ofdma":
        return np.asarray(BandwidthCurve.of(problem).bandwidth_hz(problem.highest_rates) <= problem.total_bandwidth_hz)
    everything = np.ones((problem.num_devices, problem.num_subcarriers), dtype=np.bool_)
    return np.isfinite(set_rates(build_model(problem), np.arange(problem.num_devices), everything))


def least_needed(problem: ResourceProblem, device: int, field: str) -> float:
    """Smallest ``deadline_s``, ``energy_budget_j`` or ``max_tx_power_w`` at which a device can be served alone.

    ``field`` names the resource; everything else stays as it is. To six digits; infinite when even a million times as
    much does not help.
    """
    alone = problem.subset(np.array([device]))
    now = float(np.ravel(getattr(alone, field))[0])

    def serves(value: float) -> bool:
        changed: Any = value if field == "deadline_s" else np.array([value])
        return bool(served_alone(replace(alone, **{field: changed}))[0])

    return now if serves(now) else _least(serves, max(now, 1e-9), 1e-6)


def most_served(problem: ResourceProblem) -> int:
    """Return how many devices can be served together: FDMA exactly, OFDMA as many as the admission rule finds."""
    if problem.access == "ofdma":
        return int(admit_ofdma(build_model(problem)).admission.scheduled.sum())
    need_hz = np.sort(BandwidthCurve.of(problem).bandwidth_hz(problem.highest_rates))
    return int(np.sum(np.cumsum(need_hz) <= problem.total_bandwidth_hz))


def least_cell(problem: ResourceProblem, count: int) -> list[dict[str, float]]:
    """Return what serves ``count`` devices: the least deadline [s], bandwidth [Hz] or energy of every device [J].

    First each alone with everything else as it is, then all three: raised by one factor, then lowered one after the
    other as far as they go. To one per cent; what even a million times as much does not reach is infinite.
    """
    band = "subcarrier_hz" if problem.access == "ofdma" else "total_bandwidth_hz"
    start = {"energy_budget_j": float(problem.energy_budget_j.max()), band: getattr(problem, band)}
    start["deadline_s"] = problem.deadline_s

    def scaled(values: dict[str, float], fields: Iterable[str]) -> dict[str, float]:
        """Scale some of the values by the least factor that serves."""

        def serves(factor: float) -> bool:
            tried: dict[str, Any] = values | {field: factor * values[field] for field in fields}
            if "energy_budget_j" in tried:
                tried["energy_budget_j"] = np.full(problem.num_devices, tried["energy_budget_j"])
            return most_served(replace(problem, **tried)) >= count

        factor = _least(serves, 1.0, 0.01)
        return values | {field: factor * values[field] for field in fields}

    found = [scaled({field: value}, (field,)) for field, value in start.items()]
    together = scaled(start, tuple(start))
    if np.isfinite(list(together.values())).all():
        for field in start:
            together = scaled(together, (field,))
    size = problem.num_subcarriers if problem.access == "ofdma" else 1

    def hertz(cell: dict[str, float]) -> dict[str, float]:
        return {key: value * (size if key == band else 1) for key, value in cell.items()}

    return [hertz(cell) for cell in (*found, together)]


def _least(serves: Callable[[float], bool], start: float, tolerance: float) -> float:
    """Return the smallest value that serves, to a relative tolerance from above; infinite beyond a million times."""
    low, high = 0.0, start
    while not serves(high):
        low, high = high, 2.0 * high
        if high > 1e6 * max(start, 1e-3):
            return float("inf")
    while low == 0.0 and high > 1e-6 * start and serves(0.5 * high):
        high *= 0.5
    low = max(low, 0.5 * high)
    while high - low > tolerance * high:
        middle = 0.5 * (low + high)
        low, high = (low, middle) if serves(middle) else (middle, high)
    return high
