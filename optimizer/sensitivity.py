"""Why a device got what it got: which limits it touches, and what one more unit of each would change.

Under FDMA the objective changes with any resource theta by mu db_min/dtheta at fixed dropout rates (the envelope
theorem at the price mu on bandwidth), and by -mu per hertz. A rule that grants bandwidth without a common price leaves
every device a price of its own, phi'/(-b_min'). Under OFDMA a device's set stays what it is, and its best rate moves.
The derivatives are differences over a small step towards more.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from optimizer.fdma.bandwidth_curve import BandwidthCurve
from optimizer.fdma.exact import solve_box
from optimizer.objective import GeneralizationBound, free_rates
from optimizer.ofdma.admission import admit_ofdma
from optimizer.ofdma.model import OfdmaModel
from optimizer.ofdma.waterfilling import set_values
from optimizer.problem import BoolArray, FloatArray, ResourceProblem, Solution

_BOUND = GeneralizationBound()
_TOUCH = 1e-6  # relative distance at which a limit counts as reached
_STEP = 1e-6  # relative
_RESOURCES = ("energy_budget_j", "total_bandwidth_hz", "deadline_s")  # of the least cell
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


def sensitivity(problem: ResourceProblem, solution: Solution) -> Sensitivity:
    """Say which limits an allocation touches and what they cost the bound; entries of devices that sit out are zero.

    Under FDMA the methods `OPTIMAL_METHODS` share one price; others have one per device.
    """
    on, best = solution.scheduled, free_rates(problem, _BOUND)
    fixed = problem if solution.cpu_hz is None else problem.at_clock(solution.cpu_hz)
    gamma, parts = np.where(on, solution.dropout_rate, 0.0), np.zeros((4, on.size))
    if on.any():
        compute = _ofdma if problem.access == "ofdma" else _fdma
        parts[:, on] = compute(fixed.subset(on), solution, gamma[on], best[on])
    power = solution.tx_power_w.reshape(on.size, -1).sum(axis=1)

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


def _fdma(part: ResourceProblem, solution: Solution, gamma: FloatArray, best: FloatArray) -> tuple[FloatArray, ...]:
    """Price per hertz, and changes per joule, watt and second, of the devices that take part."""
    curve = BandwidthCurve(part)
    band, band_slope = curve.bandwidth_and_slope(gamma)
    if solution.method in OPTIMAL_METHODS and curve.bandwidth_hz(part.highest_rates).sum() <= part.total_bandwidth_hz:
        price = np.full(part.num_devices, solve_box(curve, _BOUND).price)
    else:
        assert solution.bandwidth_hz is not None
        tight = solution.bandwidth_hz[solution.scheduled] <= band * (1 + _TOUCH)
        slope = _BOUND.derivative(part, gamma)
        pays = tight & (gamma > best + 1e-9) & (band_slope < 0)
        price = np.divide(slope, -band_slope, out=np.zeros_like(slope), where=pays)
    return price, *_slopes(part, lambda problem: price * BandwidthCurve(problem).bandwidth_hz(gamma))


def _ofdma(part: ResourceProblem, solution: Solution, gamma: FloatArray, best: FloatArray) -> tuple[FloatArray, ...]:
    """As `_fdma`, with every device's set held fixed; the price is that of its best subcarrier elsewhere."""
    device, owner = np.arange(part.num_devices), np.asarray(solution.subcarrier_owner)
    owned = owner == np.flatnonzero(solution.scheduled)[:, None]  # (K, M)
    slopes = _slopes(part, lambda problem: set_values(OfdmaModel(problem), device, owned))
    return _best_addition(OfdmaModel(part), owned, gamma) / part.subcarrier_hz, *slopes


def _slopes(part: ResourceProblem, cost: Callable[[ResourceProblem], FloatArray]) -> list[FloatArray]:
    """Changes of what every device costs, per joule, watt and second, from a little more of each."""
    now, found = cost(part), []
    for field in ("energy_budget_j", "max_tx_power_w", "deadline_s"):
        value: Any = getattr(part, field)
        change = cost(replace(part, **{field: (1 + _STEP) * value})) - now
        found.append(np.where(np.abs(change) > 1e-12 * now, change, 0.0) / np.maximum(_STEP * value, 1e-300))
    return found


def _best_addition(model: OfdmaModel, owned: BoolArray, gamma: FloatArray) -> FloatArray:
    """How much each device's phi falls when the subcarrier that helps it most joins its set, (K,)."""
    gain = np.zeros(model.num_devices)
    now = model.value(gamma)
    for k in range(model.num_devices):
        free = np.flatnonzero(~owned[k])
        if free.size:
            trial = np.repeat(owned[k : k + 1], free.size, axis=0)
            trial[np.arange(free.size), free] = True
            gain[k] = max(float(now[k] - set_values(model, np.full(free.size, k), trial).min()), 0.0)
    return gain


def most_served(problem: ResourceProblem) -> int:
    """Return how many devices can be served together: FDMA exactly, OFDMA as many as the admission rule finds."""
    if problem.access == "ofdma":
        return int(admit_ofdma(OfdmaModel(problem)).admission.scheduled.sum())
    need_hz = np.sort(BandwidthCurve(problem).bandwidth_hz(problem.highest_rates))
    return int(np.sum(np.cumsum(need_hz) <= problem.total_bandwidth_hz))


def least_cell(problem: ResourceProblem, count: int) -> list[dict[str, float]]:
    """Return what serves ``count`` devices: the least deadline [s], bandwidth [Hz] or energy of every device [J].

    First each alone with everything else as it is, then all three: raised by one factor, then lowered one after the
    other as far as they go. To one per cent; what even a million times as much does not reach is infinite.
    """

    def scaled(values: dict[str, float], names: Iterable[str]) -> dict[str, float]:
        """Scale some of the values by the least factor that serves."""

        def by(factor: float) -> dict[str, float]:
            return values | {name: factor * values[name] for name in names}

        return by(_least(lambda factor: most_served(_changed(problem, by(factor))) >= count))

    now = {name: float(np.max(getattr(problem, name))) for name in _RESOURCES}
    together = scaled(now, _RESOURCES)
    if np.isfinite(list(together.values())).all():
        for name in _RESOURCES:
            together = scaled(together, (name,))
    return [*(scaled({name: value}, (name,)) for name, value in now.items()), together]


def _changed(problem: ResourceProblem, values: dict[str, float]) -> ResourceProblem:
    fields: dict[str, Any] = dict(values)
    if problem.access == "ofdma" and "total_bandwidth_hz" in fields:
        fields["subcarrier_hz"] = fields["total_bandwidth_hz"] / problem.num_subcarriers
    return replace(problem, **fields)


def _least(serves: Callable[[float], bool]) -> float:
    """Return the smallest factor that serves, to one per cent from above; infinite beyond a million."""
    low, high = 1e-6, 1.0
    while not serves(high):
        low, high = high, 2.0 * high
        if high > 1e6:
            return float("inf")
    while high > low * 1.01:
        middle = float(np.sqrt(low * high))
        low, high = (low, middle) if serves(middle) else (middle, high)
    return high
