"""OFDMA: prices for the set bound, from a linear program over the sets listed so far.

    min sum_A V_A lambda_A + sum_m (mu_m^+ u_m - mu_m^- w_m)
    s.t. sum_{A of k} lambda_A = 1,   sum_{A owning m} lambda_A - u_m + w_m <= 1,   lambda, u, w >= 0.

Its duals propose prices mu in [mu^-, mu^+], a trust region around the best ones so far (the boxstep method,
[Marsten1975] in docs/ofdma.md): it grows when the bound rises as the program promised and shrinks when it does not. The
bound itself is computed from the prices in `pricing`, so an inexact linear program costs tightness, never validity. The
weights lambda say how the continuous problem mixes the sets, which is what branching looks at.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import csc_array, eye_array, hstack

from optimizer.certificate import Leaf
from optimizer.ofdma.dual_bound import OwnershipBox
from optimizer.ofdma.model import OfdmaModel
from optimizer.ofdma.set_bound.pricing import Columns, Pricing, merge_columns
from optimizer.problem import FloatArray
from optimizer.solver_interface import Limits
from optimizer.timing import remaining_s, time_is_up


class Mix(NamedTuple):
    """Solution of a linear program: sets with positive lambda, lambda, and the value.

    The bound cannot exceed ``value`` once all cheap sets are listed.
    """

    sets: Columns
    weight: FloatArray
    value: float

    def shares(self, model: OfdmaModel) -> FloatArray:
        """How much of each subcarrier each device owns, (K, M)."""
        share = np.zeros(model.inv_snr.shape)
        np.add.at(share, self.sets.device, self.weight[:, None] * self.sets.owned)
        return share


@dataclass
class SetBound:
    """Column generation on one box: the sets listed so far, and the best bound with the prices that certify it."""

    model: OfdmaModel
    box: OwnershipBox
    limits: Limits
    columns: Columns
    leaf: Leaf  # in the beginning one that `dual_bound` found, or no bound at a parent's prices
    mix: Mix | None = None  # of the last linear program
    programs: int = 0  # solved

    def generate(self, upper: float, tolerance: float) -> None:
        """Alternate linear programs and pricing until the bound meets the program's value, or exceeds ``upper``.

        ``upper`` is the value of a known assignment, and ``tolerance`` a difference between the linear program and the
        bound that is good enough.
        """
        self._certify(self.leaf.price, max(upper - self.leaf.bound, tolerance) / 2)
        radius = max(0.05 * float(self.leaf.price.mean()), 0.1 * (upper - self.leaf.bound) / len(self.leaf.price))
        for _ in range(self.limits.rounds):
            if self.leaf.bound >= upper or time_is_up():
                break
            self._discard(upper)
            solved = self._solve_program(radius)
            if solved is None:
                break
            self.mix, price = solved
            self.programs += 1
            before, missing = self.leaf.bound, self.mix.value - self.leaf.bound
            if missing <= tolerance:
                if not np.any(np.abs(price - self.leaf.price) >= 0.999 * radius):
                    break
                radius *= 4.0
                continue
            risen = self._certify(price, 2 * missing) - before
            if radius < 1e-4 * float(price.mean()):
                break  # lists were cut short, the model promises what pricing cannot certify: branching helps more
            radius *= 2.0 if risen > 0.5 * missing else 1.0 if risen > 0 else 0.5

    def _certify(self, price: FloatArray, slack: float) -> float:
        """Price all sets at ``price``: keep the better bound, add the cheapest sets, and return the bound found.

        The cheapest known set of each device plus ``slack`` is the ceiling below which sets are listed: if nothing
        cheaper exists, the cheapest known one is L_k.
        """
        pricing, known = Pricing(self.model, self.box, price), np.full(self.model.num_devices, np.inf)
        np.minimum.at(known, self.columns.device, pricing.costs(self.columns))
        ceiling = np.where(np.isfinite(known), known, self.model.value(self.model.rate_high) + price.sum())
        least, found = pricing.cheapest_sets(ceiling, slack, self.limits)
        self.columns = merge_columns(self.columns, found)
        leaf = Leaf(float(least.sum() - price.sum()), price, least)
        self.leaf = leaf if leaf.bound > self.leaf.bound else self.leaf
        return leaf.bound

    def _discard(self, upper: float) -> None:
        """Drop sets that no assignment better than ``upper`` can use: their excess over L_k exceeds the whole gap."""
        cost = Pricing(self.model, self.box, self.leaf.price).costs(self.columns)
        excess = cost - self.leaf.floor[self.columns.device]
        self.columns = self.columns.take(~(excess > (upper - self.leaf.bound) * (1 + 1e-6) + 1e-12))

    def _solve_program(self, radius: float) -> tuple[Mix, FloatArray] | None:
        """Solve the linear program; returns its mix and mu (M,), None where the solver gave no answer."""
        columns, center, size, width = self.columns, self.leaf.price, len(self.columns.device), len(self.leaf.price)
        if size == 0:
            return None
        value = Pricing(self.model, self.box, np.zeros(width)).costs(columns)
        # Tolerances of the solver are absolute: solve in units of a price.
        unit = max(float(center.mean()), 1e-6 * float(np.abs(value).mean()), 1e-12)
        who = csc_array((np.ones(size), (columns.device, np.arange(size))), shape=(self.model.num_devices, size))
        slots = eye_array(width, format="csc")
        result = linprog(  # type: ignore[call-overload]
            np.concatenate([value, center + radius, -np.maximum(center - radius, 0.0)]) / unit,
            A_ub=hstack([columns.membership().T, -slots, slots], format="csc"),
            b_ub=np.ones(width),
            A_eq=hstack([who, csc_array((self.model.num_devices, 2 * width))], format="csc"),
            b_eq=np.ones(self.model.num_devices),
            method="highs-ds",
            options={"time_limit": max(remaining_s(), 0.01)},
        )
        if result.x is None or result.status != 0:
            return None
        weight, price = result.x[:size], np.maximum(-result.ineqlin.marginals, 0.0) * unit
        used = weight > 1e-7
        return Mix(columns.take(used), weight[used], float(result.fun) * unit), price
