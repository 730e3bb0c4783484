"""OFDMA: the continuous relaxation as one convex program, shared subcarriers instead of owned ones.

With t = 1/tau(gamma), mapped to u in [0, 1] between gamma_max (u = 0) and the least rate within reach (u = 1), the rate
needed r and the energy-limited power m = eps/tau are affine in u, and phi is convex in u (docs/ofdma.md). With shares x
and powers p

    min sum_k phi_k(u_k) + <cost, x> + rho sum_k (late_k + loud_k)
    s.t. r_k(u) <= sum_m x_km log2(1 + p_km/(inv_km x_km)) + late_k     (deadline, relative)
         sum_m p_km <= min(P_k, m_k(u)) + loud_k                        (energy, relative)
         sum_k x_km <= 1,   0 <= x,   0 <= p,   0 <= u <= 1,

a convex program: no row is linear-fractional any more. With cost = 0 and no slack its value is the bound of
`dual_bound`. phi is replaced by the largest of its tangents. Nothing here certifies anything: `psca` uses the point,
not the value.

References
----------
[Xie2026] FedLoDrop, arXiv 2510.12078 (the problem in words).
"""

from __future__ import annotations

import importlib
import warnings
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from optimizer.ofdma.model import LN2, OfdmaModel, uplink_time
from optimizer.ofdma.waterfilling import set_rates
from optimizer.problem import FloatArray
from optimizer.timing import remaining_s

_TANGENTS = 14


@dataclass(frozen=True)
class SharedPoint:
    """A point of the relaxation: u (K,), shares x (K, M), powers p (K, M) relative to P_k K/M."""

    u: FloatArray
    share: FloatArray
    power: FloatArray

    def towards(self, other: SharedPoint, step: float) -> SharedPoint:
        """Return the point a share ``step`` of the way to ``other``."""
        mine, theirs = (self.u, self.share, self.power), (other.u, other.share, other.power)
        return SharedPoint(*(a + step * (b - a) for a, b in zip(mine, theirs, strict=True)))


@dataclass(frozen=True)
class SharedRows:
    """The affine data of the relaxation: (K,) at u = 0 and their change up to u = 1.

    ``rate`` is relative to the rate needed at u = 1, ``power`` to P K/M; ``snr`` (K, M) is P K/(M inv); ``unit`` (K,)
    is that rate [bit/s/Hz].
    """

    low: FloatArray
    high: float
    rate: tuple[FloatArray, FloatArray]
    power: tuple[FloatArray, FloatArray]
    cap: float
    snr: FloatArray
    unit: FloatArray


def shared_rows(model: OfdmaModel) -> SharedRows:
    """Affine data of `OfdmaModel`; every device must be served by the whole band."""
    device = np.arange(model.num_devices)
    low = set_rates(model, device, np.ones(model.inv_snr.shape, dtype=bool))
    ends = []
    for gamma in (np.full_like(low, model.rate_high), low):
        tau = np.maximum(uplink_time(model, gamma, device), 1e-12)
        energy = np.maximum(model.joule0 + model.joule1 * gamma, 0.0)
        ends.append(((model.bits0 - model.bits1 * gamma) / tau, energy / tau))
    each = model.num_subcarriers / model.num_devices
    scale = np.maximum(model.power, 1e-30) / each
    unit = np.maximum(ends[1][0], 1e-12)
    power = [np.minimum(end[1] / scale, 1e3 * each) for end in ends]
    return SharedRows(
        low=low,
        high=model.rate_high,
        rate=(ends[0][0] / unit, (ends[1][0] - ends[0][0]) / unit),
        power=(power[0], power[1] - power[0]),
        cap=each,
        snr=np.clip(scale[:, None] / model.inv_snr, 1e-9, 1e12),
        unit=unit,
    )


def rates_at(model: OfdmaModel, rows: SharedRows, u: FloatArray) -> FloatArray:
    """Dropout rates (K,) at u: 1/tau is linear between its ends."""
    device = np.arange(model.num_devices)
    first = 1.0 / np.maximum(uplink_time(model, np.full_like(rows.low, rows.high), device), 1e-12)
    last = 1.0 / np.maximum(uplink_time(model, rows.low, device), 1e-12)
    tau = 1.0 / (first + (last - first) * np.clip(u, 0.0, 1.0))
    gamma = np.divide(tau - model.tau0, model.tau1, out=rows.low.copy(), where=model.tau1 > 0)
    return np.clip(gamma, rows.low, rows.high)


def row_excess(rows: SharedRows, point: SharedPoint) -> FloatArray:
    """Relative violation of the deadline rows and of the power rows, (2, K), zero where they hold."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(point.share > 1e-12, point.power * rows.snr / point.share, 0.0)
    carried = np.sum(point.share * np.log2(1.0 + ratio), axis=1) / rows.unit
    late = rows.rate[0] + rows.rate[1] * point.u - carried
    limit = np.minimum(rows.cap, rows.power[0] + rows.power[1] * point.u)
    loud = (point.power.sum(axis=1) - limit) / rows.cap
    return np.maximum(np.stack([late, loud]), 0.0)


@lru_cache(maxsize=8)
def _compile(count: int, width: int) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """Build the parametrised problem for K devices and M subcarriers: problem, variables, parameters."""
    cp: Any = importlib.import_module("cvxpy")  # takes half a second: only when a relaxation is built
    wide, tall = (count, width), (_TANGENTS, count)
    par = {name: cp.Parameter(wide, nonneg=True) for name in ("size", "size_one", "size_snr", "log_part")}
    par |= {name: cp.Parameter(count) for name in ("rate0", "rate1", "power0", "power1")}
    par |= {"cost": cp.Parameter(wide), "weight": cp.Parameter(nonneg=True), "cap": cp.Parameter(nonneg=True)}
    par |= {"height": cp.Parameter(tall), "slope": cp.Parameter(tall)}
    var = {name: cp.Variable(wide, nonneg=True) for name in ("share", "power")}
    var |= {name: cp.Variable(count, nonneg=True) for name in ("u", "late", "loud")}
    var["phi"] = cp.Variable(count)
    received = cp.multiply(par["size_one"], var["share"]) + cp.multiply(par["size_snr"], var["power"])
    entropy = cp.rel_entr(cp.multiply(par["size"], var["share"]), received)
    carried = cp.sum(cp.multiply(par["log_part"], var["share"]) - entropy, axis=1)
    used = cp.sum(var["power"], axis=1)
    rows = [
        par["rate0"] + cp.multiply(par["rate1"], var["u"]) <= carried + var["late"],
        used <= par["power0"] + cp.multiply(par["power1"], var["u"]) + par["cap"] * var["loud"],
        used <= par["cap"] + par["cap"] * var["loud"],
        cp.sum(var["share"], axis=0) <= 1,
        var["u"] <= 1,
    ]
    rows += [var["phi"] >= par["height"][j] + cp.multiply(par["slope"][j], var["u"]) for j in range(_TANGENTS)]
    aim = cp.sum(var["phi"]) + cp.sum(cp.multiply(par["cost"], var["share"]))
    problem = cp.Problem(cp.Minimize(aim + par["weight"] * cp.sum(var["late"] + var["loud"])), rows)
    return problem, var, par


def compile_relaxation(model: OfdmaModel) -> None:
    """Build (and cache) the parametrised problem for this size ahead of time, down to the solver's matrices."""
    rows = shared_rows(model)
    even = np.full(model.inv_snr.shape, 1.0 / model.num_devices)
    solve_shared(
        model, rows, SharedPoint(np.zeros(model.num_devices), even, even), np.zeros_like(even), 1.0, max_iter=1
    )


def _tangents(model: OfdmaModel, rows: SharedRows, u: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Heights at u = 0 and slopes of phi's tangents, (J, K): evenly spaced in u, the first one at the current point."""
    device = np.arange(model.num_devices)
    at = np.vstack([u, np.linspace(0.0, 1.0, _TANGENTS - 1)[:, None] * np.ones_like(u)])  # (J, K)
    gamma = np.stack([rates_at(model, rows, row) for row in at])
    who = np.broadcast_to(device, gamma.shape)
    tau = uplink_time(model, gamma, who)
    first = 1.0 / np.maximum(uplink_time(model, np.full_like(rows.low, rows.high), device), 1e-12)
    last = 1.0 / np.maximum(uplink_time(model, rows.low, device), 1e-12)
    # d gamma / d u = d gamma / d tau * d tau / d t * d t / d u
    chain = np.divide(-(tau**2) * (last - first), model.tau1, out=np.zeros_like(tau), where=model.tau1 > 0)
    model = model.convex_on(rows.low, np.full_like(rows.low, rows.high))
    slope = model.slope(gamma, who) * chain
    return model.value(gamma, who) - slope * at, slope


def solve_shared(
    model: OfdmaModel, rows: SharedRows, point: SharedPoint, cost: FloatArray, weight: float, *, max_iter: int = 200
) -> SharedPoint | None:
    """Solve the convex program; ``cost`` (K, M) on the shares, ``weight`` on the slacks, tangent of phi at ``point``.

    Returns
    -------
    SharedPoint or None
        The solver's point, whatever its accuracy (the caller judges it), None when there is none.
    """
    problem, var, par = _compile(model.num_devices, model.num_subcarriers)
    size = (1.0 / (LN2 * rows.unit))[:, None] * np.ones_like(rows.snr)
    height, slope = _tangents(model, rows, point.u)
    scale = 1.0 / max(float(np.abs(height).mean()), 1e-12)
    values = {
        "size": size,
        "size_one": size / (1 + rows.snr),
        "size_snr": size * rows.snr / (1 + rows.snr),
        "log_part": size * np.log1p(rows.snr),
        "rate0": rows.rate[0],
        "rate1": rows.rate[1],
        "power0": rows.power[0],
        "power1": rows.power[1],
        "cost": cost * scale,
        "weight": weight * scale,
        "cap": rows.cap,
        "height": height * scale,
        "slope": slope * scale,
    }
    for name, value in values.items():
        par[name].value = value
    cp: Any = importlib.import_module("cvxpy")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an inaccurate end is judged by the merit of its point
            tolerances = {"tol_gap_abs": 1e-5, "tol_gap_rel": 1e-5, "tol_feas": 1e-6}
            limit_s = max(remaining_s(), 0.01)
            problem.solve(solver=cp.CLARABEL, max_iter=max_iter, time_limit=limit_s, **tolerances)
    except cp.error.SolverError:
        return None
    if var["u"].value is None:
        return None
    found = SharedPoint(*(np.maximum(np.asarray(var[name].value), 0.0) for name in ("u", "share", "power")))
    return SharedPoint(np.minimum(found.u, 1.0), found.share / np.maximum(found.share.sum(axis=0), 1.0), found.power)
