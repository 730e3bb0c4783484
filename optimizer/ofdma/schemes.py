"""Benchmark schemes for OFDMA, the counterparts of `optimizer.fdma.schemes`.

Subcarriers are dealt in turns: every device picks its best free one until its quota is met. ``equal``, ``fixed`` and
``proportional`` differ in quotas and dropout rates, ``random`` deals by lot, ``none`` and ``common`` search an
ownership for one dropout rate for all. Devices that a rule cannot serve sit out with a reason.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from optimizer.certificate import free_proof
from optimizer.fdma.admission import Admission
from optimizer.objective import first_rise
from optimizer.ofdma.admission import Fit, admit_ofdma, greedy_owner, served_alone
from optimizer.ofdma.completion import finish
from optimizer.ofdma.local_search import local_search
from optimizer.ofdma.model import OfdmaModel
from optimizer.ofdma.waterfilling import fleet_rates, shortage
from optimizer.problem import FloatArray, IntArray, ResourceProblem, Solution, SolverStatus
from optimizer.solver_interface import DEFAULTS, Arguments, Decision
from optimizer.timing import time_is_up
from wireless.units import largest_remainder

Deal = Callable[[OfdmaModel], IntArray]
Rates = Callable[[OfdmaModel, IntArray], FloatArray]


def deal_in_turns(model: OfdmaModel, share: FloatArray | float = 1.0) -> IntArray:
    """Let devices pick their best free subcarrier in turns until each has its ``share`` (K,) of all M; owner (M,)."""
    owner = np.full(model.num_subcarriers, -1)
    left = largest_remainder(share * np.ones(model.num_devices), model.num_subcarriers)
    preference = np.argsort(model.inv_snr, axis=1, kind="stable")  # (K, M) best first
    while left.any():
        for k in np.flatnonzero(left):
            owner[preference[k][owner[preference[k]] < 0][0]] = k
            left[k] -= 1
    return owner


def none(problem: ResourceProblem, arguments: Arguments = DEFAULTS) -> Solution:
    """No dropout: as many examples as can be served at gamma = 0 by some ownership."""
    fit = admit_ofdma(OfdmaModel(replace(problem, max_dropout_rate=0.0), arguments.objective))
    return _finish(problem, fit, np.zeros(fit.model.num_devices), arguments)


def fixed(problem: ResourceProblem, arguments: Arguments = DEFAULTS) -> Solution:
    """One given dropout rate (at most max_dropout_rate), equally many subcarriers for all whom it can serve."""
    rate = min(arguments.dropout_rate, problem.max_dropout_rate)
    return _dealt(problem, arguments, deal_in_turns, lambda part, owner: np.full(part.num_devices, rate), rate)


def equal(problem: ResourceProblem, arguments: Arguments = DEFAULTS) -> Solution:
    """Equally many subcarriers, and the best dropout rate that they allow each device."""
    return _dealt(problem, arguments, deal_in_turns, _best_rates)


def proportional(problem: ResourceProblem, arguments: Arguments = DEFAULTS) -> Solution:
    """As many subcarriers as a bit takes at full power over an equal part of the band: weak channels get more."""

    def deal(part: OfdmaModel) -> IntArray:
        each = part.power * part.num_devices / part.num_subcarriers
        bits = np.log2(1.0 + each[:, None] / part.inv_snr).mean(axis=1)
        return deal_in_turns(part, 1.0 / np.maximum(bits, 1e-6))

    return _dealt(problem, arguments, deal, _best_rates)


def random(problem: ResourceProblem, arguments: Arguments = DEFAULTS) -> Solution:
    """Subcarriers by lot, then a random dropout rate among those that they allow."""
    generator = arguments.generator
    ticket, position = generator.random(problem.num_subcarriers), generator.random(problem.num_devices)

    def deal(part: OfdmaModel) -> IntArray:
        return np.minimum((ticket * part.num_devices).astype(np.int64), part.num_devices - 1)

    def rates(part: OfdmaModel, owner: IntArray) -> FloatArray:
        low = _best_rates(part, owner)
        return low + position[part.index] * (part.rate_high - low)

    return _dealt(problem, arguments, deal, rates)


def common(problem: ResourceProblem, arguments: Arguments = DEFAULTS) -> Solution:
    """One dropout rate for all admitted devices: the smallest for which local search finds an ownership, by halving."""
    fit = admit_ofdma(OfdmaModel(problem, arguments.objective))
    model, owner, high = fit.model, fit.owner, problem.max_dropout_rate
    if model.num_devices == 0:
        return fit.admission.nobody(problem)
    slope = lambda rate: np.array([model.slope(np.full(model.num_devices, rate[0])).sum()])  # noqa: E731
    rate = low = float(first_rise(slope, np.array([high]))[0])  # the best rate itself is tried first
    for _ in range(12):
        if time_is_up():
            break
        part = OfdmaModel(replace(problem, max_dropout_rate=rate), arguments.objective).subset(fit.admission.scheduled)
        trial, missing = local_search(part, greedy_owner(part, in_time=True), value=partial(shortage, part))
        if missing.max() <= 0:
            owner, high = trial, rate
        else:
            low = rate
        if high <= low:
            break
        rate = 0.5 * (low + high)
    rates = np.full(model.num_devices, _lowest_from(model, high))
    return _finish(problem, replace(fit, owner=owner), rates, arguments)


def _lowest_from(model: OfdmaModel, least: float) -> float:
    """Common rate at or above ``least`` with the smallest sum of phi_k: ``least`` itself where phi is convex."""
    if model.rising is None:
        return least
    grid = np.append(least, model.rising.grid[model.rising.grid > least])
    fleet = np.repeat(grid[:, None], model.problem.num_devices, axis=1)  # (N, K)
    total = model.objective.value(model.problem, fleet)[:, model.index].sum(axis=1)
    return float(grid[np.argmin(total)])


def _best_rates(part: OfdmaModel, owner: IntArray) -> FloatArray:
    return part.choose_rates(fleet_rates(part, owner))


def _dealt(
    problem: ResourceProblem, arguments: Arguments, deal: Deal, rates: Rates, highest: float | None = None
) -> Solution:
    """Deal, send away one device that is not served (the one with the worst channel), deal again, until everyone is."""
    high = problem.max_dropout_rate if highest is None else highest
    model = OfdmaModel(replace(problem, max_dropout_rate=high), arguments.objective)
    on = served_alone(model)
    alone = f"cannot be served by all subcarriers together at dropout {high:.3g}"
    reasons = ["" if able else alone for able in on]
    while on.any():
        part = model.subset(on)
        owner = deal(part)
        short = ~np.isfinite(fleet_rates(part, owner))
        if not short.any():
            fit = Fit(Admission(on, tuple(reasons), exact=False), part, owner)
            return _finish(problem, fit, rates(part, owner), arguments)
        worst = part.index[np.flatnonzero(short)[np.argmax(part.inv_snr[short].min(axis=1))]]
        on[worst], reasons[worst] = False, f"its part of the subcarriers carries too little at dropout {high:.3g}"
    return Admission(on, tuple(reasons), exact=False).nobody(problem)


def _finish(problem: ResourceProblem, fit: Fit, gamma: FloatArray, arguments: Arguments) -> Solution:
    """Least power for the rule's decision; it keeps its subcarriers, and proves no set of devices the heaviest."""
    admission = replace(fit.admission, exact=False)
    if not admission.scheduled.any():
        return admission.nobody(problem)
    proof = free_proof(problem.subset(fit.model.index), arguments.objective)  # over all rates, whatever the rule's are
    decision = Decision(*proof, gamma, owner=fit.owner, status=SolverStatus.FEASIBLE)
    return finish(fit.model, admission, decision, arguments)
