"""P-SCA for FDMA: penalised successive convex approximation in the original variables (gamma, b, p).

With u = 1 - gamma the round reads (all time left is used, so the energy row is p tau <= e)

    min sum phi_k(gamma_k)
    s.t.  S/tau <= b log2(1 + p g/(N0 b))    rate row:  S/tau is linear-fractional, convex;  the right side is concave
          p <= e/tau                         power row: linear-fractional, convex or concave by the sign of its numerator
          p <= P,  sum b <= W,  0 <= gamma <= max_dropout_rate.

Only a convex e/tau stands in the way: it is replaced by its tangent at the current point, an inner approximation. Slacks on
the rate and power rows carry a penalty rho that grows while they are in use, so any start works. phi_k is replaced by its
quadratic model, for any objective; a step is accepted on the true merit

    M(gamma, b, p) = sum phi_k + rho sum (relative violations of the rate and power rows),

which never rises while rho stays. Variables are relative to the current point, and the compiled CVXPY problem is
parametrised (DPP) and kept per K, so only numbers change between iterations and rounds.
"""

from __future__ import annotations

import importlib
import logging
import time
import warnings
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from optimizer.admission import admit_fdma
from optimizer.bandwidth import BandwidthCurve
from optimizer.bound import GeneralizationBound, SeparableObjective
from optimizer.completion import finish, fit_dropout_rates
from optimizer.evaluation import nobody_scheduled
from optimizer.fdma import dual_bound
from optimizer.problem import BoolArray, FloatArray, ResourceProblem, Solution, SolverStatus
from optimizer.underestimator import free_bound, is_convex
from wireless.link import fdma_rate_bps

logger = logging.getLogger(__name__)

_START_PENALTY, _LARGEST_PENALTY = 1.0, 1e6
_LEAST_TAU = 0.05  # smallest uplink time of a step, relative to the current one


@dataclass(frozen=True)
class _Point:
    """Current gamma, b [Hz] and p [W], shape (K,) each."""

    gamma: FloatArray
    band: FloatArray
    power: FloatArray

    def towards(self, other: _Point, step: float) -> _Point:
        return _Point(*(a + step * (b - a) for a, b in zip(self._parts(), other._parts(), strict=True)))

    def _parts(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        return self.gamma, self.band, self.power


@dataclass
class PscaTrace:
    """What happened, one entry per accepted step: merit after it, penalty during it; price is the last bandwidth multiplier."""

    merit: list[float] = field(default_factory=list)
    penalty: list[float] = field(default_factory=list)
    price: float = 0.0


# Parameters of the compiled subproblem; DPP needs to know which of them are never negative.
_NON_NEGATIVE = (
    "curvature", "rate_inverse", "power_inverse", "size", "snr_share", "one_share", "weight", "tau_slope", "band_share",
)  # fmt: skip
_OF_ANY_SIGN = (
    "slope", "rate_constant", "rate_slope", "log_shift", "power_constant", "power_slope", "cap", "low", "high",
)  # fmt: skip


@lru_cache(maxsize=16)
def _compile(count: int) -> tuple[Any, dict[str, Any], dict[str, Any], Any]:
    """Build the parametrised convex subproblem for ``count`` devices: problem, variables, parameters, bandwidth row.

    Bandwidth and power are relative to the current point (beta, pi), tau to its current value; d = gamma - gamma_i.
    """
    cp: Any = importlib.import_module("cvxpy")  # takes half a second: only when a subproblem is built

    par = {name: cp.Parameter(count, nonneg=name in _NON_NEGATIVE) for name in (*_NON_NEGATIVE, *_OF_ANY_SIGN)}
    var = {name: cp.Variable(count) for name in ("d", "beta", "pi", "v")}
    var |= {name: cp.Variable(count, nonneg=True) for name in ("late", "loud")}
    tau = 1 + cp.multiply(par["tau_slope"], var["d"])
    received = cp.multiply(par["one_share"], var["beta"]) + cp.multiply(par["snr_share"], var["pi"])
    entropy = cp.rel_entr(cp.multiply(par["size"], var["beta"]), received) / np.log(2.0)
    carried = cp.multiply(par["log_shift"], var["beta"]) - entropy
    needed = par["rate_constant"] + cp.multiply(par["rate_slope"], var["d"]) + cp.multiply(par["rate_inverse"], var["v"])
    allowed = par["power_constant"] + cp.multiply(par["power_slope"], var["d"]) - cp.multiply(par["power_inverse"], var["v"])
    bandwidth_row = par["band_share"] @ var["beta"] <= 1
    rows = [
        var["v"] >= cp.inv_pos(tau), needed <= carried + var["late"], var["pi"] <= allowed + var["loud"],
        var["pi"] <= par["cap"], bandwidth_row, var["d"] >= par["low"], var["d"] <= par["high"],
        var["beta"] >= 1e-6, var["pi"] >= 0, var["beta"] <= 1e4,
    ]  # fmt: skip
    model = par["slope"] @ var["d"] + cp.sum(cp.multiply(par["curvature"], cp.square(var["d"])))
    problem = cp.Problem(cp.Minimize(model + par["weight"] @ (var["late"] + var["loud"])), rows)
    return problem, var, par, bandwidth_row


class _Subproblem:
    """Fills the compiled problem with numbers and takes steps."""

    def __init__(self, problem: ResourceProblem, objective: SeparableObjective) -> None:
        self.problem, self.objective, self.curve = problem, objective, BandwidthCurve.of(problem)
        self.compiled = _compile(problem.num_devices)

    def violation(self, point: _Point) -> FloatArray:
        """Relative violations of the rate and power rows, (2, K)."""
        curve = self.curve
        tau = np.maximum(curve.uplink_time_s(point.gamma), 1e-9)
        needed = curve.uplink_bits(point.gamma) / tau
        carried = fdma_rate_bps(point.band, point.power, self.problem.channel_gain, self.problem.noise_psd_w_per_hz)
        allowed = (curve.energy_j - curve.energy_slope_j * (1 - point.gamma)) / tau
        late = (needed - carried) / np.maximum(needed, 1e-9)
        loud = (point.power - allowed) / np.maximum(point.power, 1e-12)
        return np.maximum(np.stack([late, loud]), 0.0)

    def merit(self, point: _Point, penalty: float) -> float:
        """Objective plus penalised violations."""
        value = self.objective.value(self.problem, point.gamma)
        return float(value.sum() + penalty * (self.problem.weights * self.violation(point)).sum())

    def solve(self, at: _Point, penalty: float) -> tuple[_Point, float] | None:
        """Minimise the convex model around ``at``; return its minimiser and the bandwidth price [1/Hz], None on failure."""
        model, var, par, bandwidth_row = self.compiled
        for name, value in (self._rows(at) | self._objective(at, penalty)).items():
            par[name].value = value
        # gamma stays where tau keeps a share of itself: the tangent model would not know a vanishing tau.
        par["low"].value = np.maximum(par["low"].value, (_LEAST_TAU - 1) / np.maximum(par["tau_slope"].value, 1e-12))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an inaccurate subproblem is caught by the merit
            try:
                model.solve(solver="CLARABEL", warm_start=False)  # a reused solver object would make results depend on history
            except importlib.import_module("cvxpy.error").SolverError as error:
                logger.warning("psca stops at its current point, the convex subproblem failed: %s", error)
                return None
        if var["d"].value is None:
            logger.warning("psca stops at its current point, the convex subproblem ended with status %s", model.status)
            return None
        price = max(float(bandwidth_row.dual_value), 0.0) / self.problem.total_bandwidth_hz
        gamma = np.clip(at.gamma + var["d"].value, 0.0, self.problem.max_dropout_rate)
        power = np.maximum(at.power * var["pi"].value, _least_power_w(self.problem))
        return _Point(gamma, at.band * var["beta"].value, power), price

    def _objective(self, at: _Point, penalty: float) -> dict[str, FloatArray]:
        """Quadratic model of phi_k: slope and half the curvature (never negative) by central differences of the slope."""
        step = 1e-5
        left, right = (np.clip(at.gamma + side, 0.0, self.problem.max_dropout_rate) for side in (-step, step))
        rise = self.objective.derivative(self.problem, right) - self.objective.derivative(self.problem, left)
        curvature = np.divide(rise, right - left, out=np.zeros_like(rise), where=right > left)
        slope, weight = self.objective.derivative(self.problem, at.gamma), self.problem.weights
        return {"slope": slope, "curvature": 0.5 * np.maximum(curvature, 1e-3 * weight), "weight": penalty * weight}

    def _rows(self, at: _Point) -> dict[str, FloatArray]:
        """Numbers of the rate and power rows, relative to the current point."""
        curve, u = self.curve, 1.0 - at.gamma
        tau = curve.uplink_time_s(at.gamma)
        relative_slope = curve.time_slope_s / tau
        # S/tau = (S_i - s1 d)/(tau_i (1 + r d)) = [-s1/r + (S_i + s1/r)/(1 + r d)]/tau_i; affine where r is negligible.
        bends = relative_slope > 1e-6
        ratio = np.divide(curve.droppable_bits, relative_slope, out=np.zeros_like(tau), where=bends)
        scale = np.maximum(curve.uplink_bits(at.gamma) / tau, 1e-3 * at.band)  # bit/s, makes the size of the row 1
        rate_inverse = np.where(bends, curve.uplink_bits(at.gamma) + ratio, 0.0) / tau / scale
        rate_constant = np.where(bends, -ratio, curve.uplink_bits(at.gamma)) / tau / scale
        # e/tau in the same way; the part that is convex is replaced by its tangent 1/(1 + r d) >= 1 - r d.
        left_j = curve.energy_j - curve.energy_slope_j * u
        gain_j = np.divide(curve.energy_slope_j, relative_slope, out=np.zeros_like(tau), where=bends)
        inverse = np.where(bends, left_j - gain_j, 0.0) / tau / at.power
        snr = at.power * self.problem.channel_gain / (self.problem.noise_psd_w_per_hz * at.band)
        shift, size = np.maximum(snr, 1.0), at.band / scale
        tangent = np.maximum(inverse, 0.0)
        return {
            "tau_slope": relative_slope, "rate_inverse": rate_inverse, "rate_constant": rate_constant,
            "rate_slope": np.where(bends, 0.0, -curve.droppable_bits) / tau / scale,
            "size": size, "log_shift": size * np.log2(shift), "one_share": size / shift, "snr_share": size * snr / shift,
            "power_constant": np.where(bends, gain_j, left_j) / tau / at.power + tangent,
            "power_slope": np.where(bends, 0.0, curve.energy_slope_j) / tau / at.power - tangent * relative_slope,
            "power_inverse": np.maximum(-inverse, 0.0), "cap": self.problem.max_tx_power_w / at.power,
            "band_share": at.band / self.problem.total_bandwidth_hz, "low": -at.gamma,
            "high": self.problem.max_dropout_rate - at.gamma,
        }  # fmt: skip


def start_point(problem: ResourceProblem, gamma: FloatArray | None = None, band: FloatArray | None = None) -> _Point:
    """A point to start from, violated rows or not: given dropout rates and bandwidths, or the middle and equal shares."""
    curve, count = BandwidthCurve.of(problem), problem.num_devices
    top, cap = np.full(count, problem.max_dropout_rate), problem.max_tx_power_w
    gamma = 0.5 * (np.maximum(curve.feasible_from(), 0.0) + top) if gamma is None else gamma
    band = np.full(count, problem.total_bandwidth_hz / count) if band is None else band
    # tau must be positive for the relative variables; a share of what the largest dropout rate leaves is.
    least = 0.02 * curve.uplink_time_s(top)
    raised = 1.0 - np.divide(curve.time_s - least, curve.time_slope_s, out=np.full(count, np.inf), where=curve.time_slope_s > 0)
    gamma = np.clip(np.maximum(gamma, raised), 0.0, top)
    power = np.clip(curve.uplink_energy_j(gamma) / curve.uplink_time_s(gamma), 1e-3 * cap, cap)
    return _Point(gamma, band, np.maximum(power, _least_power_w(problem)))


def _least_power_w(problem: ResourceProblem) -> FloatArray:
    """Power that stands for none (K,) [W]: variables are relative to the current power, which must not vanish."""
    return np.maximum(1e-6 * problem.max_tx_power_w, 1e-12)


def _warm_point(problem: ResourceProblem, warm_start: Solution | None, on: BoolArray) -> _Point:
    """Start from an earlier answer for the devices it served, from the middle for the others."""
    middle = start_point(problem)
    if warm_start is None or warm_start.bandwidth_hz is None or warm_start.scheduled.shape != on.shape:
        return middle
    known = warm_start.scheduled[on]
    gamma = np.where(known, np.nan_to_num(warm_start.dropout_rate[on]), middle.gamma)
    band = np.where(known, np.maximum(warm_start.bandwidth_hz[on], 1e-3 * middle.band), middle.band)
    return start_point(problem, gamma, band * problem.total_bandwidth_hz / max(band.sum(), problem.total_bandwidth_hz))


def psca(
    problem: ResourceProblem,
    objective: SeparableObjective,
    start: _Point,
    *,
    time_limit_s: float = 10.0,
    max_iterations: int = 60,
    tolerance: float = 1e-8,
) -> tuple[FloatArray, PscaTrace]:
    """Run P-SCA on an admitted fleet from a `start_point`; return dropout rates (K,), feasible to rounding, and the trace.

    Stops when a step with no row violated lowers the merit by less than ``tolerance`` relative to max(1, |merit|).
    """
    subproblem = _Subproblem(problem, objective)
    point, trace, penalty, began = start, PscaTrace(), _START_PENALTY, time.perf_counter()
    merit = subproblem.merit(point, penalty)
    for _ in range(max_iterations):
        solved = subproblem.solve(point, penalty)
        if solved is None:
            break
        target, trace.price = solved
        step, found = 1.0, subproblem.merit(target, penalty)
        while found > merit and step > 1e-4:
            step *= 0.5
            found = subproblem.merit(point.towards(target, step), penalty)
        change = merit - found
        if change > 0:
            point, merit = point.towards(target, step), found
            trace.merit.append(merit)
            trace.penalty.append(penalty)
        violated = float(subproblem.violation(point).max())
        small = change <= tolerance * max(1.0, abs(merit))
        if small and (violated <= 1e-7 or penalty >= _LARGEST_PENALTY) or time.perf_counter() - began > time_limit_s:
            break
        if violated > 1e-7 and penalty < _LARGEST_PENALTY:
            penalty *= 10.0
            merit = subproblem.merit(point, penalty)
    return point.gamma, trace


def solve_psca_fdma(
    problem: ResourceProblem,
    *,
    objective: SeparableObjective | None = None,
    time_limit_s: float = 10.0,
    gap: float = 1e-4,
    warm_start: Solution | None = None,
) -> Solution:
    """Admit the heaviest fleet that fits and allocate it by P-SCA.

    The certificate is our own dual value at the last subproblem's bandwidth price, so the solver need not be trusted.

    Parameters
    ----------
    problem : ResourceProblem
        FDMA.
    objective : SeparableObjective, optional
        Any smooth phi_k; the generalization bound if left out. Only a convex one gets a certificate.
    time_limit_s : float
        Wall time after which the current point is repaired and returned [s].
    gap : float
        Relative gap at or below which the status is OPTIMAL.
    warm_start : Solution, optional
        An earlier answer to start from; devices it did not serve start in the middle.

    Returns
    -------
    Solution
        Feasible; OPTIMAL if its certificate is within ``gap``, else FEASIBLE.
    """
    began = time.perf_counter()
    admission = admit_fdma(problem)
    on = admission.scheduled
    if not on.any():
        return nobody_scheduled(problem, "psca", admission.reasons, time.perf_counter() - began)
    part, chosen = problem.subset(on), objective or GeneralizationBound()
    rates, trace = psca(part, chosen, _warm_point(part, warm_start, on), time_limit_s=time_limit_s)
    rates = fit_dropout_rates(part, rates)
    bound = dual_bound(part, chosen, trace.price) if is_convex(part, chosen) else free_bound(part, chosen)
    value = float(chosen.value(part, rates).sum())
    certified = value - bound <= gap * max(abs(value), 1e-12)
    return finish(
        problem, admission, rates, method="psca", status=SolverStatus.OPTIMAL if certified else SolverStatus.FEASIBLE,
        began=began, lower_bound=bound, iterations=len(trace.merit), objective=objective,
    )  # fmt: skip
