"""Other solvers on our problems, each in the form that serves it best; what `benchmarks.solvers` measures.

Under FDMA SCIP and Gurobi get the statement as it stands (`optimizer.reference.scip`) and the convex form below,
CVXPY's solvers the convex form, SciPy a smooth program with the power eliminated. Under OFDMA SCIP and Gurobi get the
statement.

Convex form. With t = T/tau, the inverse of the share of time left for the upload, and z = gamma t, everything is affine
in z: t = (1 - t1 z)/t0 where tau/T = t0 + t1 gamma. Device k, with bandwidth b in even shares W/K, power p in caps P
and r its signal-to-noise ratio at both:

    gamma >= t0 z/(1 - t1 z)                                   convex in z
    (n0 + n1) t - n1 z <= b ln r + b ln(1/r + p/b)             an exponential cone whose entries are of size one
    p <= e0 t + e1 z,   p <= 1,   sum b <= K,   0 <= gamma <= gamma_max

Without ln r on its own the cone holds numbers from 1 to 1e8, and Clarabel and ECOS lose their way from 100 devices on.
"""

import importlib
import math
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from optimizer.allocator import make_allocator
from optimizer.fdma.bandwidth_curve import BandwidthCurve
from optimizer.objective import GeneralizationBound
from optimizer.problem import ResourceProblem
from optimizer.reference.scip import bound_expression, build_model, dropout_range
from wireless.link import LN2

Build = Callable[[ResourceProblem], Any]  # returns a Pyomo model
Found = tuple[float, float]  # objective (infinite: no answer), lower bound (-infinite: the solver has none)
Options = dict[str, Any]  # of a solver; those called ``of_gap`` are multiples of the gap
Solve = Callable[[ResourceProblem, float, float], Found]  # problem, gap, time limit [s]


class Solver(NamedTuple):
    """How a solver is asked, beyond which sizes it does not end, and the package that it needs."""

    solve: Solve
    most_devices: int  # under FDMA
    most_cells: int  # devices times subcarriers under OFDMA
    package: str = "scipy"  # which is always there


def _convex_form(problem: ResourceProblem) -> SimpleNamespace:
    """Return the coefficients (K,) of the convex form; ``n0``, ``n1``: bits in nats per second and hertz of W/K."""
    curve, count, deadline = BandwidthCurve(problem), problem.num_devices, problem.deadline_s
    t0, t01 = (curve.uplink_time_s(np.full(count, rate)) / deadline for rate in (0.0, 1.0))
    even_hz, cap_j = problem.total_bandwidth_hz / count, problem.max_tx_power_w * deadline
    e1, nats = curve.energy_slope_j / cap_j, LN2 / (even_hz * deadline)
    snr = problem.max_tx_power_w * problem.channel_gain / (problem.noise_psd_w_per_hz * even_hz)
    n0, n1 = problem.fixed_bits * nats, problem.droppable_bits * nats
    return SimpleNamespace(t0=t0, t1=t01 - t0, e0=curve.energy_j / cap_j - e1, e1=e1, n0=n0, n1=n1, snr=snr)


def ours(problem: ResourceProblem, gap: float, limit_s: float) -> Found:
    """`exact` under FDMA, `bnb` under OFDMA."""
    solution = make_allocator("exact", gap=gap, time_limit_s=limit_s).allocate(problem)
    return solution.objective, solution.lower_bound


def _pyomo(how: tuple[str, str, Options], build: Build, problem: ResourceProblem, gap: float, limit_s: float) -> Found:
    module, limit, options = how
    where, name = module.split(":")
    solver = getattr(importlib.import_module("pyomo.contrib.solver.solvers." + where), name)()
    solver.config.time_limit, solver.config.rel_gap = 60 * limit_s, gap
    solver.config.solver_options = {limit: limit_s, **options}
    solver.config.load_solutions = solver.config.raise_exception_on_nonoptimal_result = False
    found = solver.solve(build(problem))
    incumbent, bound = found.incumbent_objective, found.objective_bound
    return math.inf if incumbent is None else incumbent, -math.inf if bound is None else bound


def _build_convex(problem: ResourceProblem) -> Any:
    """Return the convex form as a Pyomo model; the solvers branch on what they do not see to be convex."""
    pyo: Any = importlib.import_module("pyomo.environ")
    form, count, model = _convex_form(problem), problem.num_devices, pyo.ConcreteModel()
    low, high = dropout_range(problem)
    ends = np.sort([rate / (form.t0 + form.t1 * rate) for rate in (low, high)], axis=0)
    least = BandwidthCurve(problem).bandwidth_hz(high) * count / problem.total_bandwidth_hz
    rows = {name: getattr(form, name).tolist() for name in ("t0", "t1", "e0", "e1", "snr")}
    n0, n1 = (np.broadcast_to(nats, count).tolist() for nats in (form.n0, form.n1))
    model.K = pyo.RangeSet(0, count - 1)
    model.g = pyo.Var(model.K, bounds=lambda _, k: (float(low[k]), float(high[k])))
    model.z = pyo.Var(model.K, bounds=lambda _, k: (float(ends[0, k]), float(ends[1, k])))
    model.b = pyo.Var(model.K, bounds=lambda _, k: (float(least[k]), count))
    model.p = pyo.Var(model.K, bounds=(0, 1))
    t = [(1 - rows["t1"][k] * model.z[k]) / rows["t0"][k] for k in model.K]
    model.rows = pyo.ConstraintList()
    model.rows.add(sum(model.b[k] for k in model.K) <= count)
    for k in model.K:
        z, b, p = model.z[k], model.b[k], model.p[k]
        model.rows.add(model.g[k] * (1 - rows["t1"][k] * z) >= rows["t0"][k] * z)
        model.rows.add((n0[k] + n1[k]) * t[k] - n1[k] * z <= b * pyo.log(1 + rows["snr"][k] * p / b))
        model.rows.add(p <= rows["e0"][k] * t[k] + rows["e1"][k] * z)
    model.objective = pyo.Objective(expr=sum(bound_expression(problem, model, k) for k in model.K))
    return model


def _cvxpy(solver: str, of_gap: Options, options: Options, problem: ResourceProblem, gap: float, _: float) -> Found:
    import cvxpy as cp

    form, bound, count = _convex_form(problem), problem.bound, problem.num_devices
    gamma, z, b, p, square = (cp.Variable(count) for _ in range(5))
    left = 1 - cp.multiply(form.t1, z)
    t = cp.multiply(1 / form.t0, left)
    kept, samples = 1 - gamma, 2 * problem.num_examples * bound.confidence
    curvature = bound.curvature_min + 2 * bound.sparsity_regularization * (1 - cp.square(kept))
    steep = np.sqrt(24 * bound.loss_bound * bound.lipschitz**2 / samples)
    inverse = cp.inv_pos(cp.sqrt(curvature))
    parts = cp.vstack([bound.loss_bound / np.sqrt(samples), cp.multiply(steep, inverse)])
    value = bound.empirical_scale * (cp.inv_pos(kept) - 1) + cp.norm(parts, 2, axis=0)
    rows = [
        cp.SOC(square + left, cp.vstack([2 * z, square - left]), axis=0),  # z^2 <= square (1 - t1 z)
        gamma >= cp.multiply(form.t0, z) + cp.multiply(form.t0 * form.t1, square),
        cp.multiply(form.n0 + form.n1, t) - cp.multiply(form.n1, z)
        <= cp.multiply(np.log(form.snr), b) - cp.rel_entr(b, cp.multiply(1 / form.snr, b) + p),
        p <= cp.multiply(form.e0, t) + cp.multiply(form.e1, z),
        *(p <= 1, p >= 0, b >= 1e-9, cp.sum(b) <= count, z >= 0, gamma >= 0, gamma <= problem.max_dropout_rate),
    ]
    model = cp.Problem(cp.Minimize(problem.weights * count @ value), rows)
    try:
        model.solve(solver, **options, **{name: share * gap / 2 for name, share in of_gap.items()})
    except cp.SolverError:
        return math.inf, -math.inf
    value_found = float(model.value) / count if model.status == "optimal" else math.inf
    return value_found, value_found * (1 - gap / 2) if model.status == "optimal" else -math.inf


def _scipy(method: str, of_gap: Options, options: Options, problem: ResourceProblem, gap: float, _: float) -> Found:
    """A local method on rates and bandwidths, started where every device has its even share; it has no bound."""
    from scipy.optimize import minimize

    curve, objective, count = BandwidthCurve(problem), GeneralizationBound(), problem.num_devices

    def spare(x: Any) -> Any:
        gamma, hz = x[:count], x[count:] * problem.total_bandwidth_hz
        tau = np.maximum(curve.uplink_time_s(gamma), 1e-12)
        energy = np.minimum(curve.energy_j - curve.energy_slope_j * (1 - gamma), problem.max_tx_power_w * tau)
        nats = tau * hz * np.log1p(np.maximum(energy, 0) / (curve.noise_to_gain * tau * hz))
        return nats / (curve.uplink_bits(gamma) * LN2) - 1

    top = problem.max_dropout_rate
    found = minimize(
        lambda x: objective.value(problem, x[:count]).sum(),
        np.r_[np.full(count, 0.9 * top), np.full(count, 1 / count)],
        jac=lambda x: np.r_[objective.derivative(problem, x[:count]), np.zeros(count)],
        bounds=[(0.0, top)] * count + [(1e-9, 1.0)] * count,
        constraints=[{"type": "ineq", "fun": spare}, {"type": "ineq", "fun": lambda x: 1 - x[count:].sum()}],
        method=method,
        options=options | {name: share * gap for name, share in of_gap.items()},
    )
    usable = found.success and spare(found.x).min() > -1e-6
    return float(found.fun) if usable else math.inf, -math.inf


_SCIP = "scip.scip_direct:ScipDirect", "limits/time", {"timing/clocktype": 1}
_GUROBI = "gurobi.gurobi_direct_minlp:GurobiDirectMINLP", "WorkLimit", {"Threads": 1}
SOLVERS = {
    "ours": Solver(ours, 10**6, 10**4),
    "SCIP": Solver(partial(_pyomo, _SCIP, build_model), 8, 48, "pyscipopt"),
    "SCIP, convex": Solver(partial(_pyomo, _SCIP, _build_convex), 8, 0, "pyscipopt"),
    "Gurobi": Solver(partial(_pyomo, _GUROBI, build_model), 8, 48, "gurobipy"),
    "Gurobi, convex": Solver(partial(_pyomo, _GUROBI, _build_convex), 8, 0, "gurobipy"),
    "Clarabel": Solver(
        partial(_cvxpy, "CLARABEL", {"tol_gap_rel": 1, "tol_gap_abs": 0.02}, {"max_threads": 1}), 10**4, 0
    ),
    "ECOS": Solver(partial(_cvxpy, "ECOS", {"reltol": 1, "abstol": 0.02}, {"feastol": 1e-8}), 1000, 0, "ecos"),
    "SCS": Solver(partial(_cvxpy, "SCS", {"eps_rel": 1, "eps_abs": 0.02}, {"max_iters": 20_000}), 20, 0, "scs"),
    "SLSQP": Solver(partial(_scipy, "SLSQP", {"ftol": 1e-3}, {"maxiter": 500}), 100, 0),
    "trust-constr": Solver(partial(_scipy, "trust-constr", {"gtol": 1e-3}, {"xtol": 1e-9, "maxiter": 2000}), 8, 0),
}
