"""Any method with a free CPU clock: clocks and the method's own decision in turns, with a certificate over all clocks.

Under FDMA the first clocks are those of the joint optimum (`optimizer.multi_round.interior_point`); under OFDMA those
that suit an even share of the band. Given what the method then grants, every device takes the clock that leaves it
most room,

    max over t = C/f of  tau(t) R(min(P, eps(t)/tau(t))) - S,    eps = E - kappa C^3/t^2,    concave in t,

and the method is asked again. What was granted stays feasible at such a clock, so keeping the better of two answers
never loses; it stops when nothing is gained. docs/formulation.md says what the certificate under OFDMA is.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np

from optimizer.certificate import HEAVIEST, NOT_PROVEN, Certificate, can_be_verified, free_proof, price_certificate
from optimizer.fdma.admission import admit_fdma, rank
from optimizer.fdma.bandwidth_curve import BandwidthCurve, best_clock_hz
from optimizer.fdma.exact import solve_box
from optimizer.multi_round.geometric import CLOCK, GeometricProgram
from optimizer.multi_round.interior_point import minimise
from optimizer.objective import SeparableObjective, is_convex
from optimizer.ofdma.dual_bound import maximise_bound, root_box
from optimizer.ofdma.model import OfdmaModel
from optimizer.ofdma.waterfilling import list_members, owned_mask, sort_members, waterfill_rate
from optimizer.problem import BoolArray, FloatArray, ResourceProblem, Solution, SolverStatus
from optimizer.solver_interface import Arguments
from optimizer.timing import OutOfTime, remaining_s, time_is_up, time_limit

_ROUNDS, _HALVINGS = 4, 80
_SHARE, _GAP = 0.9, 1e-10  # of the time left for the first clocks; relative gap that is asked of them
_GAIN = 1e-7  # relative gain below which no further round is tried


@dataclass(frozen=True)
class JointOptimum:
    """Clocks (K,) [Hz] and, where they are proven, for whom (K,), a lower bound over all clocks, and its proof."""

    clock_hz: FloatArray
    scheduled: BoolArray
    lower_bound: float = -np.inf
    certificate: Certificate | None = None


def allocate_with_clock(
    problem: ResourceProblem, method: Callable[[ResourceProblem, Arguments], Solution], arguments: Arguments
) -> Solution:
    """Let a method decide, and choose the clocks within the problem's range; the bound holds for every clock in it."""
    joint, best = first_clocks(problem, arguments.objective), None
    clock = joint.clock_hz
    for _ in range(_ROUNDS):
        asked = replace(arguments, warm_start=best or arguments.warm_start)
        found = replace(method(problem.at_clock(clock), asked), cpu_hz=clock)
        if best is not None:
            lost, value = rank(problem, best)
            if rank(problem, found) >= (lost, value - _GAIN * abs(value)):
                break
        best = found
        near = found.objective - joint.lower_bound <= arguments.gap * abs(found.objective)
        if near or time_is_up() or not found.scheduled.any():
            break
        if np.allclose(moved := granted_clock_hz(problem, found), clock, rtol=1e-9):
            break
        clock = moved
    assert best is not None
    bound, proof = _bound(problem, arguments.objective, best, joint)
    bound, status = min(bound, best.objective), best.status
    if status in (SolverStatus.OPTIMAL, SolverStatus.FEASIBLE):
        close = best.objective - bound <= arguments.gap * max(abs(best.objective), 1e-12)
        status = SolverStatus.OPTIMAL if close else SolverStatus.FEASIBLE
    return replace(best, lower_bound=bound, status=status, certificate=proof, admission=_admission(problem, best))


def first_clocks(problem: ResourceProblem, objective: SeparableObjective) -> JointOptimum:
    """Clocks to begin with: FDMA and TDMA those of the joint optimum over dropout rate, bandwidth and power as well.

    They are proven by the multipliers of the program in logarithms, or by a price with optimistic clocks where that
    program has no interior or does not know the objective. Under OFDMA, and where phi_k is not convex, nothing is: the
    clocks are as if everyone's best part of the band, an even share, were its own, or those with the widest choice.
    """
    top = problem.highest_rates
    if problem.access == "ofdma":
        each = max(problem.num_subcarriers // problem.num_devices, 1)
        return JointOptimum(roomiest_clock_hz(problem, top, OfdmaModel(problem).rank[:, :-1] < each), top < 0)
    clock = best_clock_hz(problem, top)
    on = admit_fdma(problem.at_clock(clock)).scheduled
    if not on.any() or not is_convex(problem, objective):
        return JointOptimum(clock, top < 0)
    part, known = problem.subset(on), can_be_verified(objective)
    with time_limit(_SHARE * remaining_s()):
        nothing = np.zeros(part.num_devices)
        optimum = minimise(GeometricProgram(part, nothing, free_time=False), gap=_GAP) if known else None
    if optimum is not None:
        clock[on] = np.clip(np.exp(optimum.point[:, CLOCK]), *part.clock_range_hz)
        return JointOptimum(clock, on, optimum.lower_bound, optimum.certificate())
    with suppress(OutOfTime), time_limit(_SHARE * remaining_s()):
        for _ in range(2):
            held = solve_box(BandwidthCurve(part.at_clock(clock[on])), objective)
            clock[on] = best_clock_hz(part, held.dropout_rate)
    bound = solve_box(BandwidthCurve(_optimistic(part)), objective)
    return JointOptimum(clock, on, bound.lower_bound, price_certificate(bound.price, bound.answer) if known else None)


def _optimistic(problem: ResourceProblem) -> ResourceProblem:
    """The time of the fastest clock with the energy of the slowest: kappa scales with what f^2 loses."""
    slowest, fastest = problem.clock_range_hz
    return replace(problem.at_clock(fastest), capacitance=problem.capacitance * (slowest / fastest) ** 2)


def _admission(problem: ResourceProblem, solution: Solution) -> str:
    """Whether no heavier set can be served at any clocks: proven where even the optimistic ones serve none."""
    if solution.scheduled.all():
        return solution.admission
    if problem.access == "ofdma" or solution.admission != HEAVIEST:
        return NOT_PROVEN
    widest = admit_fdma(_optimistic(problem))
    most, served = (float(problem.num_examples[on].sum()) for on in (widest.scheduled, solution.scheduled))
    return HEAVIEST if widest.exact and most <= served else NOT_PROVEN


def granted_clock_hz(problem: ResourceProblem, solution: Solution) -> FloatArray:
    """Best clock (K,) [Hz] of every scheduled device for what it holds; unchanged for the others."""
    assert solution.cpu_hz is not None
    on = solution.scheduled
    gamma = np.where(on, solution.dropout_rate, problem.max_dropout_rate)
    if solution.subcarrier_owner is None:
        best = best_clock_hz(problem, gamma)
    else:
        best = roomiest_clock_hz(problem, gamma, owned_mask(solution.subcarrier_owner, problem.num_devices))
    return np.where(on, best, solution.cpu_hz)


def roomiest_clock_hz(problem: ResourceProblem, gamma: FloatArray, owned: BoolArray) -> FloatArray:
    """Clock (K,) [Hz] at which sets ``owned`` (K, M) carry most beyond ``gamma`` (K,), by golden section."""
    model, (slowest, fastest) = OfdmaModel(problem), problem.clock_range_hz
    sets = sort_members(model, np.arange(problem.num_devices), list_members(owned))
    cycles, download_s = problem.cycles(gamma), problem.download_s(gamma)

    def carried(busy_s: FloatArray) -> FloatArray:
        left_s = problem.deadline_s - download_s - busy_s
        with np.errstate(divide="ignore", invalid="ignore"):
            left_j = problem.energy_left_j - np.where(cycles > 0, problem.capacitance * cycles**3 / busy_s**2, 0.0)
        usable = (left_s > 0) & (left_j > 0)
        power = np.minimum(problem.max_tx_power_w, np.divide(left_j, left_s, out=np.zeros_like(left_s), where=usable))
        bits = np.where(usable, left_s * waterfill_rate(sets, power)[0], 0.0)
        return np.where(usable, bits, np.minimum(left_s, 0.0) + np.minimum(left_j, 0.0))  # towards what is usable

    ratio = 0.5 * (np.sqrt(5.0) - 1.0)
    shortest, longest = cycles / fastest, cycles / slowest
    low, high = shortest, longest
    for _ in range(_HALVINGS):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        rising = carried(left) < carried(right)
        low, high = np.where(rising, left, low), np.where(rising, high, right)
    busy = np.stack([shortest, 0.5 * (low + high), longest])  # ends are often best
    values = np.stack([carried(row) for row in busy])
    best = np.take_along_axis(busy, values.argmax(axis=0)[None], axis=0)[0]
    clock = np.divide(cycles, best, out=problem.cpu_hz.copy(), where=best > 0)
    return np.clip(clock, slowest, fastest)


def _bound(
    problem: ResourceProblem, objective: SeparableObjective, solution: Solution, joint: JointOptimum
) -> tuple[float, Certificate | None]:
    """Certified for the scheduled devices over all clocks in the range, and what proves it."""
    on = solution.scheduled
    if not on.any():
        return 0.0, None
    part = problem.subset(on)
    best = free_proof(part, objective)
    if np.array_equal(joint.scheduled, on) and joint.lower_bound > best[0]:
        return joint.lower_bound, joint.certificate
    if problem.access != "ofdma":
        return best
    model = OfdmaModel(_optimistic(part), objective)
    box = root_box(model)
    if len(box.unserved) or (leaf := maximise_bound(model, box).leaf).bound <= best[0]:
        return best
    return leaf.bound, leaf.certificate() if can_be_verified(objective) else None
