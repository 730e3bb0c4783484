"""What an allocation costs and is worth, and the checker that recomputes every constraint from its definition.

Solvers build their `Solution` here and the checker recomputes it here, from the same `wireless.cost` as the round's
ledger. It is run on every solution before it is shipped to a device; a violated solution is never shipped.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from optimizer.objective import GeneralizationBound, SeparableObjective
from optimizer.problem import BoolArray, FloatArray, ResourceProblem, Solution, SolverStatus
from wireless.cost import RoundCost, payload_bits, round_cost
from wireless.link import fdma_rate_bps, ofdma_rate_bps


@dataclass(frozen=True)
class Evaluation:
    """Uplink rate (K,) [bit/s], cost parts (K,) and weighted bound (K,) of an allocation, all devices taking part."""

    rate_bps: FloatArray
    cost: RoundCost
    value: FloatArray


RESOURCE_TOLERANCE = 1e-9  # excess of time, energy, power or bandwidth that counts as rounding, relative to its limit
DROPOUT_TOLERANCE = 1e-12  # distance outside [0, max_dropout_rate] that counts as rounding
REPORT_TOLERANCE = 1e-6  # relative difference allowed between a reported figure and the recomputed one
BOUND_TOLERANCE = 1e-9  # excess of a lower bound over the objective, relative to max(1, |objective|)


def evaluate(
    problem: ResourceProblem,
    dropout_rate: FloatArray,
    tx_power_w: FloatArray,
    bandwidth_hz: FloatArray | None = None,
    objective: SeparableObjective | None = None,
    cpu_hz: FloatArray | None = None,
) -> Evaluation:
    """Return rate, cost and value of (gamma, p, b), elementwise over the devices.

    Parameters
    ----------
    problem : ResourceProblem
        The round's data.
    dropout_rate : ndarray
        Shape (K,), in [0, 1).
    tx_power_w : ndarray
        Shape (K,) under FDMA, (K, M) under OFDMA (zero where a subcarrier is not owned) [W].
    bandwidth_hz : ndarray, optional
        Shape (K,) [Hz], needed under FDMA.
    objective : SeparableObjective, optional
        What to report as value, the generalization bound if left out.
    cpu_hz : ndarray, optional
        Shape (K,), clocks that replace the problem's [Hz].
    """
    noise, power = problem.noise_psd_w_per_hz, tx_power_w
    if problem.access == "fdma":
        assert bandwidth_hz is not None
        rate = fdma_rate_bps(bandwidth_hz, tx_power_w, problem.channel_gain, noise)
    else:
        rate = ofdma_rate_bps(tx_power_w, problem.channel_gain, problem.subcarrier_hz, noise)
        power = tx_power_w.sum(axis=1)  # (K, M) -> (K,)
    cost = round_cost(
        uplink_bits=problem.uplink_bits(dropout_rate),
        downlink_bits=payload_bits(*problem.downlink_payload, dropout_rate),
        cycles=problem.cycles(dropout_rate),
        cpu_hz=problem.cpu_hz if cpu_hz is None else cpu_hz,
        capacitance=problem.capacitance,
        downlink_rate_bps=problem.downlink_rate_bps,
        uplink_rate_bps=rate,
        tx_power_w=power,
        circuit_j=problem.circuit_j,
    )
    return Evaluation(rate, cost, (objective or GeneralizationBound()).value(problem, dropout_rate))


def make_solution(
    problem: ResourceProblem,
    *,
    scheduled: BoolArray,
    dropout_rate: FloatArray,
    tx_power_w: FloatArray,
    bandwidth_hz: FloatArray | None = None,
    lower_bound: float = -np.inf,
    objective: SeparableObjective | None = None,
    **others: Any,
) -> Solution:
    """Complete a solver's decision (arrays of the whole fleet) to a `Solution`; who sits out is blanked here.

    Latency, energy and objective are computed by `evaluate`; ``others`` are further fields of `Solution`. A bound above
    the objective by rounding only (1e-12 relative) is lowered to it; a larger excess is left for the checker to report.
    """
    on = np.asarray(scheduled, dtype=np.bool_)
    gamma = np.where(on, dropout_rate, 0.0)
    power = np.where(on if problem.access == "fdma" else on[:, None], tx_power_w, 0.0)
    band = None if bandwidth_hz is None else np.where(on, bandwidth_hz, 0.0)
    found = evaluate(problem, gamma, power, band, objective)
    total = float(found.value[on].sum())
    if total < lower_bound <= total + 1e-12 * max(1.0, abs(total)):
        lower_bound = total
    return Solution(
        scheduled=on,
        dropout_rate=np.where(on, gamma, np.nan),
        latency_s=np.where(on, found.cost.latency_s, np.nan),
        energy_j=np.where(on, found.cost.energy_j, np.nan),
        tx_power_w=power,
        objective=total,
        lower_bound=float(lower_bound),
        bandwidth_hz=band,
        **others | {"reasons": tuple(others.get("reasons", ())) or ("",) * problem.num_devices},
    )


def goal_value(problem: ResourceProblem, solution: Solution, bound: float) -> float:
    """What the problem's goal makes of an allocation with this total bound; the bound itself without a goal."""
    goal = problem.goal
    if goal is None or not solution.scheduled.any():
        return bound
    deadline = np.nan if solution.deadline_s is None else solution.deadline_s
    if goal.objective == "time":
        return deadline
    energy = float(solution.energy_j[solution.scheduled].sum())
    return bound + goal.energy_weight_per_j * energy + goal.time_weight_per_s * deadline


def nobody_scheduled(
    problem: ResourceProblem,
    method: str,
    reasons: Sequence[str] = (),
    solve_time_s: float = 0.0,
    admission: str = "not proven",
) -> Solution:
    """Return the solution in which every device sits the round out (status INFEASIBLE, objective and bound 0)."""
    zeros, ofdma = np.zeros(problem.num_devices), problem.access == "ofdma"
    return make_solution(
        problem,
        method=method,
        status=SolverStatus.INFEASIBLE,
        scheduled=zeros > 0,
        dropout_rate=zeros,
        tx_power_w=np.zeros_like(problem.channel_gain),
        bandwidth_hz=None if ofdma else zeros,
        subcarrier_owner=np.full(problem.num_subcarriers, -1) if ofdma else None,
        lower_bound=0.0,
        solve_time_s=solve_time_s,
        reasons=tuple(reasons) or ("no device can be served",) * problem.num_devices,
        admission=admission,
    )


@dataclass(frozen=True)
class Violation:
    """One broken rule: its name, the device (None for the whole fleet), the value found and the limit."""

    constraint: str
    device: int | None
    value: float
    limit: float
    message: str

    def __str__(self) -> str:
        """Return the message."""
        return self.message


def check_solution(
    problem: ResourceProblem, solution: Solution, objective: SeparableObjective | None = None
) -> list[Violation]:
    """Return everything that is wrong with ``solution``, an empty list when it may be shipped.

    Shapes come first (nothing else is looked at when they are wrong), then allocation, resources and reported figures.
    ``objective`` is what the solution minimised, the generalization bound if left out.
    """
    if shapes := list(_shapes(problem, solution)):
        return shapes
    broken = list(_allocation(problem, solution))
    if any(item.constraint == "finite" for item in broken):
        return broken
    gamma = np.clip(np.where(solution.scheduled, solution.dropout_rate, 0.0), 0.0, problem.max_dropout_rate)
    power = np.maximum(solution.tx_power_w, 0.0)
    found = evaluate(problem, gamma, power, solution.bandwidth_hz, objective, solution.cpu_hz)
    broken += [*_resources(problem, solution, found), *_goal(problem, solution, found)]
    return [*broken, *_reported(problem, solution, found)]


def _shapes(problem: ResourceProblem, solution: Solution) -> Iterator[Violation]:
    per_device, gains = (problem.num_devices,), problem.channel_gain.shape
    expected = dict.fromkeys(("scheduled", "dropout_rate", "latency_s", "energy_j"), per_device) | {"tx_power_w": gains}
    expected |= {} if solution.cpu_hz is None else {"cpu_hz": per_device}
    expected |= {"subcarrier_owner": gains[1:]} if problem.access == "ofdma" else {"bandwidth_hz": per_device}
    for name, shape in expected.items():
        found = np.shape(getattr(solution, name)) if getattr(solution, name) is not None else None
        if found != shape:
            yield Violation("shape", None, np.nan, np.nan, f"{name} must have shape {shape}, found {found}")


def _each(name: str, bad: BoolArray, value: FloatArray, limit: FloatArray | float, rule: str) -> Iterator[Violation]:
    """One violation per marked device."""
    limits = np.broadcast_to(np.asarray(limit, dtype=np.float64), value.shape)
    for k in np.flatnonzero(bad):
        text = f"device {k}: {rule}, found {value[k]:.12g} against {limits[k]:.12g}"
        yield Violation(name, int(k), float(value[k]), float(limits[k]), text)


def _allocation(problem: ResourceProblem, solution: Solution) -> Iterator[Violation]:
    """Yield what is wrong with the decision variables: ranges, ownership, power and bandwidth."""
    on, gamma, top, slack = solution.scheduled, solution.dropout_rate, problem.max_dropout_rate, RESOURCE_TOLERANCE
    rows, cap = solution.tx_power_w.reshape(problem.num_devices, -1), problem.max_tx_power_w
    power, lowest = rows.sum(axis=1), rows.min(axis=1)
    yield from _each("finite", on & ~np.isfinite(gamma), gamma, top, "dropout rate must be finite")
    yield from _each("finite", ~np.isfinite(power), power, cap, "transmit power must be finite")
    outside = on & ((gamma < -DROPOUT_TOLERANCE) | (gamma > top + DROPOUT_TOLERANCE))
    yield from _each("dropout_rate", outside, gamma, top, "dropout rate must lie in [0, max_dropout_rate]")
    yield from _each("tx_power_w", lowest < 0, lowest, 0.0, "transmit power must be >= 0")
    over = power > cap * (1 + slack)
    yield from _each("tx_power_w", over, power, cap, "transmit power must stay within its cap [W]")
    if solution.cpu_hz is not None:
        clock, (low, high) = solution.cpu_hz, problem.clock_range_hz
        yield from _each("cpu_hz", ~(clock >= low * (1 - slack)), clock, low, "clock must not be below its range [Hz]")
        yield from _each("cpu_hz", ~(clock <= high * (1 + slack)), clock, high, "clock must not exceed its range [Hz]")
    yield from _each("scheduled", ~on & (power > 0), power, 0.0, "a device that sits out must not transmit")
    yield from _fdma_bandwidth(problem, solution) if problem.access == "fdma" else _ofdma_ownership(problem, solution)


def _fdma_bandwidth(problem: ResourceProblem, solution: Solution) -> Iterator[Violation]:
    band, limit = np.asarray(solution.bandwidth_hz), problem.total_bandwidth_hz
    yield from _each("finite", ~np.isfinite(band), band, limit, "bandwidth must be finite")
    yield from _each("bandwidth_hz", band < 0, band, 0.0, "bandwidth must be >= 0")
    idle = ~solution.scheduled & (band > 0)
    yield from _each("scheduled", idle, band, 0.0, "a device that sits out must not hold bandwidth")
    total = float(band.sum())
    if total > limit * (1 + RESOURCE_TOLERANCE):
        text = f"bandwidths sum to {total:.12g} Hz of {limit:.12g} Hz"
        yield Violation("total_bandwidth_hz", None, total, limit, text)


def _ofdma_ownership(problem: ResourceProblem, solution: Solution) -> Iterator[Violation]:
    owner = np.asarray(solution.subcarrier_owner)
    for m in np.flatnonzero((owner < -1) | (owner >= problem.num_devices)):
        text = f"subcarrier {m}: owner must be -1 or a device index below {problem.num_devices}, found {owner[m]}"
        yield Violation("subcarrier_owner", None, float(owner[m]), float(problem.num_devices), text)
    owned = owner[None, :] == np.arange(problem.num_devices)[:, None]  # (K, M)
    foreign = np.where(owned, 0.0, solution.tx_power_w).max(axis=1)
    yield from _each("subcarrier_owner", foreign > 0, foreign, 0.0, "power is allowed on owned subcarriers only")
    held = owned.sum(axis=1).astype(np.float64)
    idle = ~solution.scheduled & (held > 0)
    yield from _each("scheduled", idle, held, 0.0, "a device that sits out must not own subcarriers")


def _goal(problem: ResourceProblem, solution: Solution, found: Evaluation) -> Iterator[Violation]:
    """Yield what contradicts the problem's goal: the chosen deadline, and what the goal asks of it."""
    goal, on, chosen = problem.goal, solution.scheduled, solution.deadline_s
    if goal is None or not on.any():
        if chosen is not None and goal is None:
            yield Violation("deadline_s", None, chosen, problem.deadline_s, "this problem fixes the deadline")
        return
    if chosen is None or not 0 < chosen <= problem.deadline_s * (1 + RESOURCE_TOLERANCE):
        text = f"the chosen deadline must lie in (0, {problem.deadline_s:.12g}] s, found {chosen}"
        yield Violation("deadline_s", None, np.nan if chosen is None else chosen, problem.deadline_s, text)
    if goal.max_bound is None:
        return
    weight, mean = float(problem.weights[on].sum()), float(found.value[on].sum() / problem.weights[on].sum())
    if mean > goal.max_bound * (1 + RESOURCE_TOLERANCE):
        text = f"the served devices' mean bound must stay within {goal.max_bound:.12g}, found {mean:.12g}"
        yield Violation("max_bound", None, mean, goal.max_bound, text)
    needed = goal.min_weight * float(problem.weights.sum())
    if weight < needed * (1 - RESOURCE_TOLERANCE):
        text = f"devices of weight {needed:.12g} must be served, found {weight:.12g}"
        yield Violation("min_weight", None, weight, needed, text)


def _resources(problem: ResourceProblem, solution: Solution, found: Evaluation) -> Iterator[Violation]:
    on, chosen = solution.scheduled, solution.deadline_s
    deadline_s = problem.deadline_s if chosen is None else chosen
    latency, energy, slack = found.cost.latency_s, found.cost.energy_j, 1 + RESOURCE_TOLERANCE
    late = on & ~(latency <= deadline_s * slack)  # "not <=" also catches NaN
    yield from _each("deadline_s", late, latency, deadline_s, "latency must stay within the deadline [s]")
    over = on & ~(energy <= problem.energy_budget_j * slack)
    yield from _each("energy_budget_j", over, energy, problem.energy_budget_j, "energy must stay within the budget [J]")


def _reported(problem: ResourceProblem, solution: Solution, found: Evaluation) -> Iterator[Violation]:
    """Yield figures that do not say what the allocation is."""
    on = solution.scheduled
    for name, real in (("latency_s", found.cost.latency_s), ("energy_j", found.cost.energy_j)):
        said = getattr(solution, name)
        wrong = on & ~(np.abs(said - real) <= REPORT_TOLERANCE * np.maximum(np.abs(real), 1e-12))
        yield from _each(f"reported {name}", wrong, said, real, f"reported {name} must be what the allocation costs")
    total = goal_value(problem, replace(solution, energy_j=found.cost.energy_j), float(found.value[on].sum()))
    scale = max(1.0, abs(total))
    if not abs(solution.objective - total) <= REPORT_TOLERANCE * scale:
        text = f"reported objective {solution.objective:.12g} must be the allocation's {total:.12g}"
        yield Violation("reported objective", None, solution.objective, total, text)
    if not solution.lower_bound <= total + BOUND_TOLERANCE * scale:
        text = f"lower bound {solution.lower_bound:.12g} is above the objective {total:.12g}: not a certificate"
        yield Violation("lower_bound", None, solution.lower_bound, total, text)
    if (solution.status is SolverStatus.INFEASIBLE) != (not on.any()):
        text = f"status {solution.status.value!r} contradicts {int(on.sum())} scheduled devices"
        yield Violation("status", None, float(on.sum()), 0.0, text)
