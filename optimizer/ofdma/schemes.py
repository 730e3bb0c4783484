"""Benchmark schemes for OFDMA, the counterparts of `optimizer.fdma.schemes`.

Subcarriers are dealt in turns: every device picks its best free one until its quota is met. ``equal``, ``fixed`` and
``proportional`` differ in quotas and dropout rates, ``random`` deals by lot, ``none`` and ``common`` search an
ownership for one dropout rate for all. Devices that a rule cannot serve sit out with a reason.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from optimizer.certificate import free_certificate
from optimizer.checker import nobody_scheduled
from optimizer.fdma.admission import Admission
from optimizer.objective import SeparableObjective, free_bound
from optimizer.ofdma.admission import admit_ofdma, greedy_owner
from optimizer.ofdma.completion import finish
from optimizer.ofdma.local_search import local_search, owned_mask
from optimizer.ofdma.model import OfdmaModel, build_model
from optimizer.ofdma.waterfilling import set_rates, shortage
from optimizer.problem import FloatArray, IntArray, ResourceProblem, Solution, SolverStatus
from optimizer.timing import time_is_up

Deal = Callable[[OfdmaModel], IntArray]


def deal_in_turns(model: OfdmaModel, quota: IntArray) -> IntArray:
    """Let devices pick their best free subcarrier in turns until everyone has its quota; owner (M,), -1 for nobody."""
    owner = np.full(model.num_subcarriers, -1)
    left = quota.copy()
    preference = np.argsort(model.inv_snr, axis=1, kind="stable")  # (K, M) best first
    while (left > 0).any() and (owner < 0).any():
        for k in np.flatnonzero(left > 0):
            free = preference[k][owner[preference[k]] < 0]
            if free.size:
                owner[free[0]] = k
                left[k] -= 1
    return owner


def quotas(share: FloatArray, total: int) -> IntArray:
    """Split ``total`` subcarriers in proportion to ``share`` (K,) by largest remainder."""
    exact = share / share.sum() * total
    count = np.floor(exact).astype(np.int64)
    count[np.argsort(-(exact - count), kind="stable")[: total - int(count.sum())]] += 1
    return count


def none(problem: ResourceProblem, *, objective: SeparableObjective | None = None) -> Solution:
    """No dropout: as many examples as can be served at gamma = 0 by some ownership."""
    began = time.perf_counter()
    fit = admit_ofdma(build_model(replace(problem, max_dropout_rate=0.0), objective))
    if not fit.admission.scheduled.any():
        return nobody_scheduled(problem, "none", fit.admission.reasons, time.perf_counter() - began)
    zeros = np.zeros(fit.model.num_devices)
    return _finish(problem, fit.model, fit.owner, zeros, "none", replace(fit.admission, exact=False), began)


def fixed(
    problem: ResourceProblem, *, dropout_rate: float = 0.5, objective: SeparableObjective | None = None
) -> Solution:
    """One given dropout rate (at most max_dropout_rate), equally many subcarriers for everyone who can be served that way."""
    rate = min(dropout_rate, problem.max_dropout_rate)
    model = build_model(replace(problem, max_dropout_rate=rate), objective)
    return _dealt(problem, model, "fixed", _equal_deal, lambda part, owned: np.full(part.num_devices, rate))


def equal(problem: ResourceProblem, *, objective: SeparableObjective | None = None) -> Solution:
    """Equally many subcarriers, and the best dropout rate that they allow each device."""
    return _dealt(problem, build_model(problem, objective), "equal", _equal_deal, _best_rates)


def proportional(problem: ResourceProblem, *, objective: SeparableObjective | None = None) -> Solution:
    """As many subcarriers as a bit takes at full power over an equal part of the band: weak channels get more."""

    def deal(part: OfdmaModel) -> IntArray:
        each = part.power * part.num_devices / part.num_subcarriers
        bits = np.log2(1.0 + each[:, None] / part.inv_snr).mean(axis=1)
        return deal_in_turns(part, quotas(1.0 / np.maximum(bits, 1e-6), part.num_subcarriers))

    return _dealt(problem, build_model(problem, objective), "proportional", deal, _best_rates)


def random(
    problem: ResourceProblem, *, rng: np.random.Generator | None = None, objective: SeparableObjective | None = None
) -> Solution:
    """Subcarriers by lot, then a random dropout rate among those that they allow; without ``rng`` seed 0 is used."""
    generator = rng or np.random.default_rng(0)
    ticket, position = generator.random(problem.num_subcarriers), generator.random(problem.num_devices)

    def deal(part: OfdmaModel) -> IntArray:
        return np.minimum((ticket * part.num_devices).astype(np.int64), part.num_devices - 1)

    def rates(part: OfdmaModel, owned: np.ndarray) -> FloatArray:
        low = _best_rates(part, owned)
        return low + position[part.index] * (part.rate_high - low)

    return _dealt(problem, build_model(problem, objective), "random", deal, rates)


def common(problem: ResourceProblem, *, objective: SeparableObjective | None = None) -> Solution:
    """One dropout rate for all admitted devices: the smallest for which the local search finds an ownership, by halving."""
    began = time.perf_counter()
    fit = admit_ofdma(build_model(problem, objective))
    model, on = fit.model, fit.admission.scheduled
    if not on.any():
        return nobody_scheduled(
            problem, "common", fit.admission.reasons, time.perf_counter() - began, fit.admission.claim
        )
    owner, high = fit.owner, problem.max_dropout_rate
    low = _best_common(model)
    for step in range(12):  # the best rate itself is tried first
        if time_is_up():
            break
        rate = low if step == 0 else 0.5 * (low + high)
        part = build_model(replace(problem, max_dropout_rate=rate), objective).subset(on)
        trial, missing = local_search(part, greedy_owner(part, in_time=True), value=partial(shortage, part))
        if missing.max() <= 0:
            owner, high = trial, rate
        elif step > 0:
            low = rate
        if high <= low:
            break
    high = _lowest_from(model, high)
    return _finish(
        problem, model, owner, np.full(model.num_devices, high), "common", replace(fit.admission, exact=False), began
    )


def _best_common(model: OfdmaModel) -> float:
    """Minimiser of sum phi_k over one common rate, by halving on the slope."""
    low, high, device = 0.0, model.rate_high, np.arange(model.num_devices)
    for _ in range(50):
        middle = 0.5 * (low + high)
        falling = model.slope(np.full(model.num_devices, middle), device).sum() < 0
        low, high = (middle, high) if falling else (low, middle)
    return high


def _lowest_from(model: OfdmaModel, least: float) -> float:
    """Common rate at or above ``least`` with the smallest sum of phi_k: ``least`` itself where phi is convex."""
    if model.rising is None:
        return least
    grid = np.append(least, model.rising.grid[model.rising.grid > least])
    fleet = np.repeat(grid[:, None], model.problem.num_devices, axis=1)  # (N, K)
    total = model.objective.value(model.problem, fleet)[:, model.index].sum(axis=1)
    return float(grid[np.argmin(total)])


def _equal_deal(part: OfdmaModel) -> IntArray:
    return deal_in_turns(part, quotas(np.ones(part.num_devices), part.num_subcarriers))


def _best_rates(part: OfdmaModel, owned: np.ndarray) -> FloatArray:
    each = np.arange(part.num_devices)
    return part.choose_rates(set_rates(part, each, owned), each)


def _dealt(
    problem: ResourceProblem,
    model: OfdmaModel,
    method: str,
    deal: Deal,
    rates: Callable[[OfdmaModel, np.ndarray], FloatArray],
) -> Solution:
    """Deal, send away one device that is not served (the one with the worst channel), deal again, until everyone is."""
    began, count = time.perf_counter(), model.num_devices
    alone = np.isfinite(set_rates(model, np.arange(count), np.ones((count, model.num_subcarriers), dtype=np.bool_)))
    on = alone.copy()
    reasons = np.where(
        alone, "", f"cannot be served by all subcarriers together at dropout {model.rate_high:.3g}"
    ).astype(object)
    while on.any():
        part = model.subset(on)
        owner = deal(part)
        owned = owned_mask(owner, part.num_devices)
        short = ~np.isfinite(_best_rates(part, owned))
        if not short.any():
            return _finish(
                problem, part, owner, rates(part, owned), method, Admission(on, tuple(reasons), exact=False), began
            )
        worst = part.index[np.flatnonzero(short)[np.argmax(part.inv_snr[short].min(axis=1))]]
        on[worst], reasons[worst] = (
            False,
            f"its part of the subcarriers carries too little at dropout {model.rate_high:.3g}",
        )
    return nobody_scheduled(model.problem, method, tuple(reasons), time.perf_counter() - began)


def _finish(
    problem: ResourceProblem,
    model: OfdmaModel,
    owner: IntArray,
    gamma: FloatArray,
    method: str,
    admission: Admission,
    began: float,
) -> Solution:
    """Least power for the rule's decision; a rule keeps its subcarriers."""
    part = problem.subset(model.index)  # the bound is over all dropout rates, whatever the rule's own are
    solution = finish(
        model,
        owner,
        method=method,
        status=SolverStatus.FEASIBLE,
        lower_bound=free_bound(part, model.objective),
        gamma=gamma,
        admission=admission,
        save=False,
        certificate=free_certificate(part, model.objective),
    )
    return replace(solution, solve_time_s=time.perf_counter() - began)
