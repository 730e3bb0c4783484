"""Any method with a free CPU clock: clocks and the method's own decision in turns, with a certificate over all clocks.

Under FDMA the first clocks are those of the joint optimum (`optimizer.fdma.clock_curve`); under OFDMA those that suit
an even share of the band. Given what the method then grants, every device takes the clock that leaves it most room,

    max over t = C/f of  tau(t) R(min(P, eps(t)/tau(t))) - S,    concave in t: tau is affine, eps = E - kappa C^3/t^2
    concave,

and the method is asked again. What was granted stays feasible at such a clock, so keeping the better of two answers
never loses; it stops when nothing is gained. Under OFDMA the certificate is the dual bound of a fleet that has the time
of its fastest and the energy of its slowest clock at once: valid for every clock, and as loose as the range is wide.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from optimizer.fdma.clock_curve import ClockCurve, best_clocks
from optimizer.objective import GeneralizationBound, SeparableObjective, free_bound, is_convex
from optimizer.ofdma.dual_bound import maximise_bound, root_box, start_prices
from optimizer.ofdma.model import build_model
from optimizer.ofdma.waterfilling import list_members, sort_members, waterfill_rate
from optimizer.problem import BoolArray, FloatArray, ResourceProblem, Solution, SolverStatus
from optimizer.timing import time_is_up
from wireless.cost import compute_cycles, payload_bits

Solve = Callable[[ResourceProblem, Solution | None], Solution]
_ROUNDS, _HALVINGS = 4, 80
_GAIN = 1e-7  # relative gain below which no further round is tried


def allocate_with_clock(
    problem: ResourceProblem,
    solve: Solve,
    *,
    objective: SeparableObjective | None = None,
    gap: float = 1e-4,
    warm_start: Solution | None = None,
) -> Solution:
    """Choose clocks, too.

    Parameters
    ----------
    problem : ResourceProblem
        With ``min_cpu_hz`` and ``max_cpu_hz``.
    solve : callable
        (problem at fixed clocks, earlier answer) -> solution of the method.
    objective : SeparableObjective, optional
        phi; the generalization bound when left out.
    gap : float
        Relative gap to the certificate over all clocks at which the status is OPTIMAL.
    warm_start : Solution, optional
        Handed to the method.

    Returns
    -------
    Solution
        With ``cpu_hz``; ``lower_bound`` holds for every clock in the range.
    """
    began, chosen = time.perf_counter(), objective or GeneralizationBound()
    assert problem.min_cpu_hz is not None and problem.max_cpu_hz is not None
    clock, certificate = _first_clocks(problem, chosen)
    best: Solution | None = None
    for _ in range(_ROUNDS):
        found = replace(solve(problem.at_clock(clock), best or warm_start), cpu_hz=clock)
        if best is not None and not _better(problem, found, best):
            break
        best = found
        moved = granted_clock_hz(problem, found)
        if not found.scheduled.any() or np.allclose(moved, clock, rtol=1e-9):
            break
        if certificate is not None and found.objective - certificate[1] <= gap * abs(found.objective):
            break
        if time_is_up():
            break
        clock = moved
    assert best is not None
    bound = _bound(problem, chosen, best, certificate)
    done = best.objective - bound <= gap * max(abs(best.objective), 1e-12)
    status = best.status
    if best.scheduled.any() and status in (SolverStatus.OPTIMAL, SolverStatus.FEASIBLE):
        status = SolverStatus.OPTIMAL if done else SolverStatus.FEASIBLE
    return replace(
        best, lower_bound=min(bound, best.objective), status=status, solve_time_s=time.perf_counter() - began
    )


def _better(problem: ResourceProblem, found: Solution, best: Solution) -> bool:
    """Whether ``found`` serves more weight, or the same for less."""
    weight = [float(problem.weights[one.scheduled].sum()) for one in (found, best)]
    if abs(weight[0] - weight[1]) > 1e-12:
        return weight[0] > weight[1]
    return found.objective < best.objective - _GAIN * abs(best.objective)


def _first_clocks(
    problem: ResourceProblem, objective: SeparableObjective
) -> tuple[FloatArray, tuple[BoolArray, float] | None]:
    """Clocks (K,) to begin with, and under FDMA the joint optimum's devices with their certificate."""
    low, high = problem.min_cpu_hz, problem.max_cpu_hz
    assert low is not None and high is not None
    if problem.access == "fdma" and is_convex(problem, objective):
        clock, admission, bound = best_clocks(problem, low, high, objective)
        return clock, (admission.scheduled, bound)
    top = np.full(problem.num_devices, problem.max_dropout_rate)
    if problem.access == "fdma":
        return ClockCurve(problem, low, high).best_clock_hz(top), None
    # Everyone's best part of the band, as if an even share were its own.
    model = build_model(problem, objective)
    each = max(problem.num_subcarriers // problem.num_devices, 1)
    return roomiest_clock_hz(problem, top, model.rank[:, :-1] < each), None


def granted_clock_hz(problem: ResourceProblem, solution: Solution) -> FloatArray:
    """Best clock (K,) [Hz] of every scheduled device for what it holds; unchanged for the others."""
    assert solution.cpu_hz is not None and problem.min_cpu_hz is not None and problem.max_cpu_hz is not None
    on = solution.scheduled
    gamma = np.where(on, solution.dropout_rate, problem.max_dropout_rate)
    if solution.subcarrier_owner is None:
        best = ClockCurve(problem, problem.min_cpu_hz, problem.max_cpu_hz).best_clock_hz(gamma)
    else:
        owned = solution.subcarrier_owner[None, :] == np.arange(problem.num_devices)[:, None]
        best = roomiest_clock_hz(problem, gamma, owned)
    return np.where(on, best, solution.cpu_hz)


def roomiest_clock_hz(problem: ResourceProblem, gamma: FloatArray, owned: BoolArray) -> FloatArray:
    """Clock (K,) [Hz] at which the sets ``owned`` (K, M) carry most beyond the payload of ``gamma`` (K,), by golden section."""
    assert problem.min_cpu_hz is not None and problem.max_cpu_hz is not None
    model = build_model(problem)
    sets = sort_members(model, np.arange(problem.num_devices), list_members(owned))
    cycles = compute_cycles(problem.fixed_cycles, problem.adapter_cycles, gamma)
    download_s = payload_bits(*problem.downlink_payload, gamma) / problem.downlink_rate_bps

    def carried(busy_s: FloatArray) -> FloatArray:
        left_s = problem.deadline_s - download_s - busy_s
        with np.errstate(divide="ignore", invalid="ignore"):
            left_j = problem.energy_budget_j - np.where(cycles > 0, problem.capacitance * cycles**3 / busy_s**2, 0.0)
        usable = (left_s > 0) & (left_j > 0)
        power = np.minimum(problem.max_tx_power_w, np.divide(left_j, left_s, out=np.zeros_like(left_s), where=usable))
        bits = np.where(usable, left_s * waterfill_rate(sets, power)[0], 0.0)
        return np.where(usable, bits, np.minimum(left_s, 0.0) + np.minimum(left_j, 0.0))  # towards what is usable

    ratio = 0.5 * (np.sqrt(5.0) - 1.0)
    low, high = cycles / problem.max_cpu_hz, cycles / problem.min_cpu_hz
    for _ in range(_HALVINGS):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        rising = carried(left) < carried(right)
        low, high = np.where(rising, left, low), np.where(rising, high, right)
    busy = np.stack(
        [cycles / problem.max_cpu_hz, 0.5 * (low + high), cycles / problem.min_cpu_hz]
    )  # ends are often best
    values = np.stack([carried(row) for row in busy])
    best = np.take_along_axis(busy, values.argmax(axis=0)[None], axis=0)[0]
    clock = np.divide(cycles, best, out=problem.cpu_hz.copy(), where=best > 0)
    return np.clip(clock, problem.min_cpu_hz, problem.max_cpu_hz)


def _bound(
    problem: ResourceProblem,
    objective: SeparableObjective,
    solution: Solution,
    certificate: tuple[BoolArray, float] | None,
) -> float:
    """Certified for the scheduled devices over all clocks in the range."""
    on = solution.scheduled
    if not on.any():
        return 0.0
    part = problem.subset(on)
    trivial = free_bound(part, objective)
    if certificate is not None and np.array_equal(certificate[0], on):
        return max(trivial, certificate[1])
    if problem.access == "fdma":
        return trivial
    assert part.min_cpu_hz is not None and part.max_cpu_hz is not None
    # The time of the fastest clock with the energy of the slowest: kappa scales with what f^2 loses.
    optimistic = replace(
        part.at_clock(part.max_cpu_hz), capacitance=part.capacitance * (part.min_cpu_hz / part.max_cpu_hz) ** 2
    )
    model = build_model(optimistic, objective)
    box = root_box(model)
    if box.is_empty:
        return trivial
    return max(trivial, maximise_bound(model, box, start_prices(model, box))[0].bound)
