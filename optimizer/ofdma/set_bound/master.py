"""OFDMA: prices for the set bound, from a linear program over the sets listed so far.

    min sum_A V_A lambda_A + sum_m (mu_m^+ u_m - mu_m^- w_m)
    s.t. sum_{A of k} lambda_A = 1,   sum_{A owning m} lambda_A - u_m + w_m <= 1,   lambda, u, w >= 0.

Its duals propose prices mu in [mu^-, mu^+], a trust region around the best ones so far (the boxstep method of
[Marsten1975]): it grows when the bound rises as the program promised and shrinks when it does not. The bound itself is
computed from the prices in `columns`, so an inexact linear program costs tightness, never validity. The weights lambda
say how the continuous problem mixes the sets, which is what branching looks at.

References
----------
[Marsten1975] Marsten, Hogan and Blankenship, The Boxstep Method for Large-Scale Optimization, Operations Research
23(3), 1975.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import csc_array, eye_array, hstack

from optimizer.certificate import Leaf
from optimizer.ofdma.dual_bound import OwnershipBox
from optimizer.ofdma.model import OfdmaModel
from optimizer.ofdma.set_bound.columns import Columns, merge_columns, price_sets, set_costs
from optimizer.problem import FloatArray
from optimizer.solver_interface import Limits
from optimizer.timing import remaining_s, time_is_up


@dataclass(frozen=True)
class MasterState:
    """Progress of column generation on one box.

    The best certified bound so far, its prices mu (M,) and L_k (K,) at them; the sets listed so far, restricted to the
    box; those with positive lambda in the last linear program, and these lambda; its value ``relaxed``, which the bound
    cannot exceed once all cheap sets are listed; linear programs solved; the best bound with all that proves it.
    """

    bound: float
    price: FloatArray
    least: FloatArray
    columns: Columns
    active: Columns
    weight: FloatArray
    relaxed: float
    iterations: int
    leaf: Leaf | None = None


def solve_master(
    model: OfdmaModel, columns: Columns, value: FloatArray, center: FloatArray, radius: float
) -> tuple[FloatArray, FloatArray, float] | None:
    """Solve the linear program; returns lambda (N,), mu (M,) and its value, None where the solver gave no answer."""
    count, size, width = model.num_devices, len(columns.device), model.num_subcarriers
    if size == 0:
        return None
    # Tolerances of the solver are absolute: solve in units of a price.
    unit = max(float(center.mean()), 1e-6 * float(np.abs(value).mean()), 1e-12)
    who = csc_array((np.ones(size), (columns.device, np.arange(size))), shape=(count, size))
    owns = columns.membership().T
    slots = eye_array(width, format="csc")
    cost = np.concatenate([value, center + radius, -np.maximum(center - radius, 0.0)]) / unit
    result = linprog(  # type: ignore[call-overload]
        cost,
        A_ub=hstack([owns, -slots, slots], format="csc"),
        b_ub=np.ones(width),
        A_eq=hstack([who, csc_array((count, 2 * width))], format="csc"),
        b_eq=np.ones(count),
        method="highs-ds",
        options={"time_limit": max(remaining_s(), 0.01)},
    )
    if result.x is None or result.status != 0:
        return None
    return result.x[:size], np.maximum(-result.ineqlin.marginals, 0.0) * unit, float(result.fun) * unit


def start_master(
    model: OfdmaModel, box: OwnershipBox, columns: Columns, price: FloatArray, bound: float
) -> MasterState:
    """State before the first linear program; ``price`` and ``bound`` come from `dual_bound` or from a parent."""
    own = columns.take(columns.inside(box))
    nothing = own.take(np.zeros(len(own.device), dtype=bool))
    return MasterState(bound, price, np.full(model.num_devices, -np.inf), own, nothing, np.empty(0), np.inf, 0)


def certify(
    model: OfdmaModel,
    box: OwnershipBox,
    state: MasterState,
    price: FloatArray,
    slack: float,
    limits: Limits,
) -> tuple[MasterState, float]:
    """Price all sets at ``price``: keeps the better bound and adds the cheapest listed sets.

    The cheapest known set of each device plus ``slack`` is the ceiling below which sets are listed: if nothing cheaper
    exists, the cheapest known one is L_k. Also returns the bound found here.
    """
    known = np.full(model.num_devices, np.inf)
    np.minimum.at(known, state.columns.device, set_costs(model, box, state.columns, price))
    fallback = model.value(np.full(model.num_devices, model.rate_high), np.arange(model.num_devices)) + price.sum()
    outcome = price_sets(model, box, price, np.where(np.isfinite(known), known, fallback), slack, limits)
    bound = float(outcome.least.sum() - price.sum())
    if state.leaf is None or bound > state.leaf.bound:
        state = replace(state, leaf=Leaf(bound, price, outcome.least))
    state = replace(state, columns=merge_columns(state.columns, outcome.found))
    if bound > state.bound or not np.all(np.isfinite(state.least)):
        state = replace(state, bound=max(bound, state.bound), price=price, least=outcome.least)
    return state, bound


def discard(model: OfdmaModel, box: OwnershipBox, state: MasterState, upper: float) -> MasterState:
    """Drop columns that no assignment better than ``upper`` can use: their excess over L_k exceeds the whole gap."""
    if not np.all(np.isfinite(state.least)):
        return state
    excess = set_costs(model, box, state.columns, state.price) - state.least[state.columns.device]
    own = float(state.least.sum() - state.price.sum())  # the bound of these prices, not the best one known
    keep = ~(excess > (upper - own) * (1 + 1e-6) + 1e-12)
    return replace(state, columns=state.columns.take(keep))


def generate(
    model: OfdmaModel,
    box: OwnershipBox,
    state: MasterState,
    *,
    upper: float,
    tolerance: float,
    limits: Limits,
) -> MasterState:
    """Alternate linear programs and pricing until the bound meets the program's value, or exceeds ``upper``.

    ``upper`` is the value of a known assignment, and ``tolerance`` a difference between the linear program and the
    bound that is good enough.
    """
    state = discard(model, box, state, upper)
    state, _ = certify(model, box, state, state.price, max(upper - state.bound, tolerance) / 2, limits)
    radius = max(0.05 * float(state.price.mean()), 0.1 * (upper - state.bound) / model.num_subcarriers)
    for _ in range(limits.rounds):
        if state.bound >= upper or time_is_up():
            break
        state = discard(model, box, state, upper)
        value = set_costs(model, box, state.columns, np.zeros_like(state.price))
        solved = solve_master(model, state.columns, value, state.price, radius)
        if solved is None:
            break
        weight, price, promised = solved
        used = weight > 1e-7
        active = state.columns.take(used)
        state = replace(state, active=active, weight=weight[used], relaxed=promised, iterations=state.iterations + 1)
        if promised - state.bound <= tolerance:
            if not np.any(np.abs(price - state.price) >= 0.999 * radius):
                break
            radius *= 4.0
            continue
        before, slack = state.bound, 2 * (promised - state.bound)
        state, found = certify(model, box, state, price, slack, limits)
        if radius < 1e-4 * float(price.mean()):
            break  # lists were cut short, the model promises what pricing cannot certify: branching helps more
        radius *= 2.0 if found - before > 0.5 * (promised - before) else 1.0 if found > before else 0.5
    return state
