"""What an allocation costs and is worth, and the checker that recomputes every constraint from its definition.

Solvers build their `Solution` here and the checker recomputes it here, from the same `wireless.cost` as the round's
ledger. It is run on every solution before it is shipped to a device; a violated solution is never shipped.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from optimizer.objective import GeneralizationBound, SeparableObjective
from optimizer.problem import BoolArray, FloatArray, ResourceProblem, Solution, SolverStatus
from wireless.cost import RoundCost, payload_bits, round_cost
from wireless.link import fdma_rate_bps, ofdma_rate_bps


class Evaluation(NamedTuple):
    """Uplink rate [bit/s], cost and weighted bound of an allocation, (K,) each, all devices taking part."""

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

    Power is (K,) while sending; under OFDMA, which has no ``bandwidth_hz``, (K, M), zero off the owned subcarriers; all
    else is (K,). ``objective`` is what to report as value (the generalization bound if left out), ``cpu_hz`` takes the
    place of the problem's clocks.
    """
    noise, power = problem.noise_psd_w_per_hz, problem.radiated_w(tx_power_w, bandwidth_hz)
    if problem.access == "ofdma":
        rate = ofdma_rate_bps(tx_power_w, problem.channel_gain, problem.subcarrier_hz, noise)
    else:
        assert bandwidth_hz is not None  # p over the share b/W of time at W hertz carries what p b/W does over b hertz
        rate = fdma_rate_bps(bandwidth_hz, power, problem.channel_gain, noise)
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
    power = np.where(on if problem.access != "ofdma" else on[:, None], tx_power_w, 0.0)
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
    problem: ResourceProblem, method: str = "", reasons: Sequence[str] = (), **others: Any
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
        choice=np.full(problem.num_devices, -1) if problem.choices else None,
        lower_bound=0.0,
        reasons=tuple(reasons) or ("no device can be served",) * problem.num_devices,
        **others,
    )


def relaxed(problem: ResourceProblem) -> ResourceProblem:
    """FDMA with every device's best subcarrier over the whole band, which carries as much or more; else itself."""
    if problem.access != "ofdma":
        return problem
    return replace(problem, access="fdma", channel_gain=problem.channel_gain.max(axis=1))


def each_way(problem: ResourceProblem) -> list[ResourceProblem]:
    """The problem with one way to send for all devices, for each of its ways."""
    return [problem.chosen(np.full(problem.num_devices, way)) for way in range(len(problem.choices))]


def favourable(problem: ResourceProblem) -> ResourceProblem:
    """A plain problem that bounds this one: `relaxed`, and every device has the best of all its ways at once."""
    names, ways = set[str]().union(*problem.choices.values()), each_way(problem)
    parts: dict[str, Any] = {name: np.min([getattr(way, name) for way in ways], axis=0) for name in names}
    return replace(relaxed(problem), choices={}, shared_downlink=False, **parts)


class Violation(NamedTuple):
    """One broken rule: its name, and what was found against which limit."""

    constraint: str
    message: str


def check_solution(
    problem: ResourceProblem, solution: Solution, objective: SeparableObjective | None = None
) -> list[Violation]:
    """Return everything that is wrong with ``solution``, an empty list when it may be shipped.

    Shapes come first (nothing else is looked at when they are wrong), then allocation, resources and reported figures.
    ``objective`` is what the solution minimised, the generalization bound if left out.
    """
    found = list(_shapes(problem, solution)) or list(_choices(problem, solution))
    if found:
        return found
    problem = problem.decided(solution.scheduled, solution.choice)
    for rows in (_ranges, _ownership if problem.access == "ofdma" else _bandwidth):
        found += [broken for row in rows(problem, solution) for broken in _each(*row)]
    if any(item.constraint == "finite" for item in found):
        return found
    gamma = np.clip(np.where(solution.scheduled, solution.dropout_rate, 0.0), 0.0, problem.max_dropout_rate)
    power = np.maximum(solution.tx_power_w, 0.0)
    real = evaluate(problem, gamma, power, solution.bandwidth_hz, objective, solution.cpu_hz)
    found += [Violation(name, text) for wrong, name, text in _whole(problem, solution, real) if wrong]
    return found + [broken for row in _costs(problem, solution, real) for broken in _each(*row)]


def _each(bad: BoolArray, name: str, value: FloatArray, limit: FloatArray | float, rule: str) -> Iterator[Violation]:
    limits = np.broadcast_to(limit, value.shape)
    for k in np.flatnonzero(bad):
        yield Violation(name, f"device {k}: {rule}, found {value[k]:.12g} against {limits[k]:.12g}")


def _shapes(problem: ResourceProblem, solution: Solution) -> Iterator[Violation]:
    per_device, gains = (problem.num_devices,), problem.channel_gain.shape
    expected = dict.fromkeys(("scheduled", "dropout_rate", "latency_s", "energy_j"), per_device) | {"tx_power_w": gains}
    expected |= {} if solution.cpu_hz is None else {"cpu_hz": per_device}
    expected |= {"choice": per_device} if problem.choices else {}
    expected |= {"subcarrier_owner": gains[1:]} if problem.access == "ofdma" else {"bandwidth_hz": per_device}
    for name, shape in expected.items():
        given = getattr(solution, name)
        size = None if given is None else np.shape(given)
        if size != shape:
            yield Violation("shape", f"{name} must have shape {shape}, found {size}")


def _choices(problem: ResourceProblem, solution: Solution) -> Iterator[Violation]:
    count, choice = len(problem.choices), solution.choice
    if choice is not None and not count:
        yield Violation("choice", "this problem leaves nothing to choose")
    elif choice is not None:
        bad = (choice < np.where(solution.scheduled, 0, -1)) | (choice >= count)
        rule = "choice must be an index into the problem's choices"
        yield from _each(bad, "choice", choice.astype(float), count, rule)


def _ranges(problem: ResourceProblem, solution: Solution) -> Iterator[Any]:
    on, gamma, top, slack = solution.scheduled, solution.dropout_rate, problem.max_dropout_rate, RESOURCE_TOLERANCE
    rows, cap = solution.tx_power_w.reshape(problem.num_devices, -1), problem.max_tx_power_w
    power, lowest = rows.sum(axis=1), rows.min(axis=1)
    yield on & ~np.isfinite(gamma), "finite", gamma, top, "dropout rate must be finite"
    yield ~np.isfinite(power), "finite", power, cap, "transmit power must be finite"
    outside = on & ((gamma < -DROPOUT_TOLERANCE) | (gamma > top + DROPOUT_TOLERANCE))
    yield outside, "dropout_rate", gamma, top, "dropout rate must lie in [0, max_dropout_rate]"
    yield lowest < 0, "tx_power_w", lowest, 0.0, "transmit power must be >= 0"
    yield power > cap * (1 + slack), "tx_power_w", power, cap, "transmit power must stay within its cap [W]"
    if solution.cpu_hz is not None:
        clock, (low, high) = solution.cpu_hz, problem.clock_range_hz
        yield ~(clock >= low * (1 - slack)), "cpu_hz", clock, low, "clock must not be below its range [Hz]"
        yield ~(clock <= high * (1 + slack)), "cpu_hz", clock, high, "clock must not exceed its range [Hz]"
    yield ~on & (power > 0), "scheduled", power, 0.0, "a device that sits out must not transmit"


def _bandwidth(problem: ResourceProblem, solution: Solution) -> Iterator[Any]:
    band, limit = np.asarray(solution.bandwidth_hz), problem.total_bandwidth_hz
    yield ~np.isfinite(band), "finite", band, limit, "bandwidth must be finite"
    yield band < 0, "bandwidth_hz", band, 0.0, "bandwidth must be >= 0"
    yield ~solution.scheduled & (band > 0), "scheduled", band, 0.0, "a device that sits out must not hold bandwidth"


def _ownership(problem: ResourceProblem, solution: Solution) -> Iterator[Any]:
    owner, count = np.asarray(solution.subcarrier_owner), problem.num_devices
    owned = owner[None, :] == np.arange(count)[:, None]  # (K, M)
    foreign, held = np.where(owned, 0.0, solution.tx_power_w).max(axis=1), owned.sum(axis=1).astype(np.float64)
    yield foreign > 0, "subcarrier_owner", foreign, 0.0, "power is allowed on owned subcarriers only"
    yield ~solution.scheduled & (held > 0), "scheduled", held, 0.0, "a device that sits out must not own subcarriers"


def _costs(problem: ResourceProblem, solution: Solution, real: Evaluation) -> Iterator[Any]:
    on, deadline_s, budget_j = solution.scheduled, solution.deadline_s or problem.deadline_s, problem.energy_budget_j
    for name, spent, limit_name, limit, rule in (
        ("latency_s", real.cost.latency_s, "deadline_s", deadline_s, "latency must stay within the deadline [s]"),
        ("energy_j", real.cost.energy_j, "energy_budget_j", budget_j, "energy must stay within the budget [J]"),
    ):
        yield on & ~(spent <= limit * (1 + RESOURCE_TOLERANCE)), limit_name, spent, limit, rule  # also catches NaN
        told = getattr(solution, name)
        wrong = on & ~(np.abs(told - spent) <= REPORT_TOLERANCE * np.maximum(np.abs(spent), 1e-12))
        yield wrong, f"reported {name}", told, spent, f"reported {name} must be what the allocation costs"


def _whole(problem: ResourceProblem, solution: Solution, real: Evaluation) -> Iterator[tuple[bool, str, str]]:
    """Rules for the fleet as a whole: band or owners, goal, and the reported objective, bound and status."""
    on, said, bound, slack = solution.scheduled, solution.objective, solution.lower_bound, RESOURCE_TOLERANCE
    if problem.access == "ofdma":
        owner, count = np.asarray(solution.subcarrier_owner), problem.num_devices
        for m in np.flatnonzero((owner < -1) | (owner >= count)):
            text = f"subcarrier {m}: owner must be -1 or a device index below {count}, found {owner[m]}"
            yield True, "subcarrier_owner", text
    else:
        used, limit = float(np.asarray(solution.bandwidth_hz).sum()), problem.total_bandwidth_hz
        yield used > limit * (1 + slack), "total_bandwidth_hz", f"bandwidths sum to {used:.12g} Hz of {limit:.12g} Hz"
    yield from _goal(problem, solution, float(real.value[on].sum()))
    total = goal_value(problem, replace(solution, energy_j=real.cost.energy_j), float(real.value[on].sum()))
    scale = max(1.0, abs(total))
    text = f"reported objective {said:.12g} must be the allocation's {total:.12g}"
    yield not abs(said - total) <= REPORT_TOLERANCE * scale, "reported objective", text
    text = f"lower bound {bound:.12g} is above the objective {total:.12g}: not a certificate"
    yield not bound <= total + BOUND_TOLERANCE * scale, "lower_bound", text
    text = f"status {solution.status.value!r} contradicts {int(on.sum())} scheduled devices"
    yield (solution.status is SolverStatus.INFEASIBLE) == bool(on.any()), "status", text


def _goal(problem: ResourceProblem, solution: Solution, value: float) -> Iterator[tuple[bool, str, str]]:
    """Rules for the deadline that was chosen for the problem's goal, and what the goal asks of it."""
    goal, on, chosen, slack = problem.goal, solution.scheduled, solution.deadline_s, RESOURCE_TOLERANCE
    if goal is None:
        yield chosen is not None, "deadline_s", "this problem fixes the deadline"
    if goal is None or not on.any():
        return
    text = f"the chosen deadline must lie in (0, {problem.deadline_s:.12g}] s, found {chosen}"
    yield not 0 < (chosen or 0.0) <= problem.deadline_s * (1 + slack), "deadline_s", text
    if goal.max_bound is None:
        return
    weight, needed = float(problem.weights[on].sum()), goal.min_weight * float(problem.weights.sum())
    text = f"the served devices' mean bound must stay within {goal.max_bound:.12g}, found {value / weight:.12g}"
    yield value / weight > goal.max_bound * (1 + slack), "max_bound", text
    text = f"devices of weight {needed:.12g} must be served, found {weight:.12g}"
    yield weight < needed * (1 - slack), "min_weight", text
