"""Reference solver: the full model, written in Pyomo and solved by SCIP to global optimality (slow, trusted).

The model is the problem's statement as it stands, with none of its hidden convexity. For every device k: dropout rate
g[k], upload time t[k] / T, and under FDMA bandwidth b[k] / W and power p[k] / P, under OFDMA ownership x[k, m] and
power p[k, m] / P per subcarrier.

    deadline[k]   S/D + C/f + t <= T                  energy[k]     kappa f^2 C + p t <= E
    rate[k]       S <= t R(b, p)                      share         sum b <= W, or every subcarrier owned at most once

SCIP runs in a child process that is ended when its time is over: on this model it does not always heed its own clock.
Its tolerances are 1e-6, so its answer is repaired to exact feasibility and its bound is lowered by as much.
"""

import importlib
from typing import Any

import numpy as np

from optimizer.allocator import AllocationError
from optimizer.apart import ChildError, run_apart
from optimizer.fdma.bandwidth_curve import BandwidthCurve
from optimizer.fdma.completion import fit_dropout_rates, on_admitted
from optimizer.objective import GeneralizationBound
from optimizer.ofdma.completion import on_admitted as on_admitted_ofdma
from optimizer.ofdma.model import OfdmaModel
from optimizer.problem import FloatArray, IntArray, ResourceProblem, Solution, SolverStatus
from optimizer.solver_interface import DEFAULTS, Arguments, Decision
from optimizer.timing import remaining_s
from wireless.link import LN2

BOUND_TOLERANCE = 2e-6  # SCIP works with feasibility tolerances of 1e-6 on rows of size 1
_LONGEST_S = 1e6  # where there is no time limit
_GRACE_S = 5.0  # interpreter start, model building and the solver's own clean-up


def build_model(problem: ResourceProblem) -> Any:
    """Return the Pyomo model of a problem in which every device takes part."""
    pyo: Any = importlib.import_module("pyomo.environ")
    model = pyo.ConcreteModel()
    model.K = pyo.RangeSet(0, problem.num_devices - 1)
    least, top = dropout_range(problem)
    model.g = pyo.Var(model.K, bounds=lambda _, k: (float(least[k]), float(top[k])), doc="dropout rate")
    model.t = pyo.Var(model.K, bounds=(1e-5, 1.0), doc="upload time / deadline")
    rate, power = (_add_fdma if problem.access == "fdma" else _add_ofdma)(pyo, model, problem)
    deadline, cap, circuit = problem.deadline_s, problem.max_tx_power_w, problem.circuit_j
    unit = problem.total_bandwidth_hz * deadline  # bits that one bit/s/Hz carries over the whole band and time
    work, budget = (problem.fixed_cycles, problem.adapter_cycles), np.maximum(problem.energy_budget_j, 1e-12)
    payload = problem.fixed_bits / unit, problem.droppable_bits / unit

    def kept(fixed: FloatArray, droppable: FloatArray, k: int) -> Any:
        """A size or work that falls with the dropout rate, of one device."""
        return float(fixed[k]) + float(droppable[k]) * (1 - model.g[k])

    def busy_s(k: int) -> Any:
        download = kept(*problem.downlink_payload, k) / float(problem.downlink_rate_bps[k])
        return download + kept(*work, k) / float(problem.cpu_hz[k])

    def joules(k: int) -> Any:
        computing = float(problem.capacitance[k] * problem.cpu_hz[k] ** 2) * kept(*work, k)
        return float(circuit[k]) + computing + float(cap[k] * deadline) * power(k) * model.t[k]

    model.deadline = pyo.Constraint(model.K, rule=lambda _, k: busy_s(k) / deadline + model.t[k] <= 1)
    model.rate = pyo.Constraint(model.K, rule=lambda _, k: kept(*payload, k) <= model.t[k] * rate(k))
    model.energy = pyo.Constraint(model.K, rule=lambda _, k: joules(k) / budget[k] <= 1)
    model.objective = pyo.Objective(expr=sum(bound_expression(problem, model, k) for k in model.K))
    return model


def dropout_range(problem: ResourceProblem) -> tuple[FloatArray, FloatArray]:
    """Interval of dropout rates a device can have at all: under FDMA, with the whole band to itself."""
    top = problem.highest_rates
    if problem.access == "ofdma":
        return np.zeros_like(top), top
    alone = BandwidthCurve(problem).smallest_dropout_rate(np.full_like(top, problem.total_bandwidth_hz * (1 + 1e-12)))
    return np.where(np.isnan(alone), top, alone), top


def _add_fdma(pyo: Any, model: Any, problem: ResourceProblem) -> tuple[Any, Any]:
    """Add bandwidth and power; return rate [in W bit/s/Hz] and power [in P] as functions of the device."""
    band_hz = problem.total_bandwidth_hz
    share = np.clip(BandwidthCurve(problem).bandwidth_hz(problem.highest_rates) / band_hz, 1e-9, 1.0)
    snr = problem.max_tx_power_w * problem.channel_gain / (problem.noise_psd_w_per_hz * band_hz)
    model.b = pyo.Var(model.K, bounds=lambda _, k: (float(share[k]), 1.0), doc="bandwidth / total")
    model.p = pyo.Var(model.K, bounds=(0.0, 1.0), doc="power / cap")
    model.share = pyo.Constraint(expr=sum(model.b[k] for k in model.K) <= 1)
    return lambda k: model.b[k] * pyo.log(1 + float(snr[k]) * model.p[k] / model.b[k]) / LN2, lambda k: model.p[k]


def _add_ofdma(pyo: Any, model: Any, problem: ResourceProblem) -> tuple[Any, Any]:
    """Add ownership and power per subcarrier; return rate and power as functions of the device."""
    count = problem.num_subcarriers
    snr = problem.max_tx_power_w[:, None] * problem.channel_gain / (problem.noise_psd_w_per_hz * problem.subcarrier_hz)
    model.M = pyo.RangeSet(0, count - 1)
    model.x = pyo.Var(model.K, model.M, domain=pyo.Binary, doc="ownership")
    model.p = pyo.Var(model.K, model.M, bounds=(0.0, 1.0), doc="power / cap")
    model.share = pyo.Constraint(model.M, rule=lambda _, m: sum(model.x[k, m] for k in model.K) <= 1)
    model.owned = pyo.Constraint(model.K, model.M, rule=lambda _, k, m: model.p[k, m] <= model.x[k, m])
    model.cap = pyo.Constraint(model.K, rule=lambda _, k: sum(model.p[k, m] for m in model.M) <= 1)

    def rate(k: int) -> Any:
        return sum(pyo.log(1 + float(snr[k, m]) * model.p[k, m]) for m in model.M) / (LN2 * count)

    return rate, lambda k: sum(model.p[k, m] for m in model.M)


def bound_expression(problem: ResourceProblem, model: Any, k: int) -> Any:
    """w_k J_k as an expression in g[k]."""
    c, gamma = problem.bound, model.g[k]
    curvature = c.curvature_min + 2 * c.sparsity_regularization * gamma * (2 - gamma)
    samples = 2 * float(problem.num_examples[k]) * c.confidence
    radicand = (c.loss_bound**2 + 24 * c.loss_bound * c.lipschitz**2 / curvature) / samples
    noise = 0.0 if problem.noise is None else float(problem.noise[k])
    return float(problem.weights[k]) * (c.empirical_scale * (gamma + noise) / (1 - gamma) + radicand**0.5)


def solve_model(problem: ResourceProblem, time_limit_s: float, gap: float) -> dict[str, Any]:
    """Build and solve in this process; return dropout rates, owners, bound and termination as plain values."""
    direct: Any = importlib.import_module("pyomo.contrib.solver.solvers.scip.scip_direct")
    model = build_model(problem)
    solver = direct.ScipDirect()
    solver.config.time_limit, solver.config.rel_gap = time_limit_s, gap
    solver.config.load_solutions = solver.config.raise_exception_on_nonoptimal_result = False
    found = solver.solve(model)
    answer = {"termination": found.termination_condition.name, "bound": found.objective_bound, "rates": None}
    if found.incumbent_objective is not None:
        found.solution_loader.load_vars()
        answer["rates"] = [float(model.g[k].value) for k in model.K]
        if problem.access == "ofdma":
            answer["share"] = [[float(model.x[k, m].value) for m in model.M] for k in model.K]
    return answer


def solve_scip(problem: ResourceProblem, arguments: Arguments = DEFAULTS) -> Solution:
    """Admit devices and solve their full model by SCIP; OPTIMAL, or TIME_LIMIT with SCIP's bound.

    Under FDMA the dropout rates are taken from SCIP, under OFDMA the ownership; the rest follows from it exactly, so
    its tolerances leave no trace. Raises AllocationError for any objective but the generalization bound, and if SCIP
    has no solution when its time is over or its process had to be ended some seconds later; InfeasibleProblemError if
    its ownership serves a device only within its tolerances.
    """
    if type(arguments.objective) is not GeneralizationBound:
        found = type(arguments.objective).__name__
        raise AllocationError(f"scip can only minimise the generalization bound, found {found}; use bnb")

    def rates(part: ResourceProblem, arguments: Arguments, _: FloatArray | None) -> Decision:
        answer = _solve_apart(part, arguments.gap)
        gamma = fit_dropout_rates(part, np.array(answer["rates"]))
        return Decision(answer["bound"], dropout_rate=gamma, status=answer["status"])

    def owners(model: OfdmaModel, _: IntArray, arguments: Arguments) -> Decision:
        answer = _solve_apart(problem.subset(model.index), arguments.gap)
        share = np.array(answer["share"])  # (K, M)
        owner = np.where(share.max(axis=0) > 0.5, share.argmax(axis=0), -1)
        return Decision(answer["bound"], owner=owner, status=answer["status"])

    fdma = problem.access == "fdma"
    return on_admitted(problem, arguments, rates) if fdma else on_admitted_ofdma(problem, arguments, owners)


def _solve_apart(problem: ResourceProblem, gap: float) -> dict[str, Any]:
    """`solve_model` in a process that is ended if it outlives its time; adds a status and makes the bound safe."""
    time_limit_s = min(remaining_s(), _LONGEST_S)
    most_s = time_limit_s * 1.1 + _GRACE_S
    try:
        answer = run_apart(solve_model, problem, time_limit_s, gap, limit_s=most_s)
    except TimeoutError as error:
        raise AllocationError(f"SCIP did not stop and was ended after {most_s:.1f} s without an answer") from error
    except ChildError as error:
        raise AllocationError(f"SCIP's process failed: {error}") from error
    if answer["rates"] is None:
        raise AllocationError(f"SCIP found no solution within {time_limit_s:g} s ({answer['termination']})")
    converged, bound = answer["termination"] == "convergenceCriteriaSatisfied", answer["bound"]
    safe = -np.inf if bound is None or not np.isfinite(bound) else bound - BOUND_TOLERANCE * max(1.0, abs(bound))
    return answer | {"bound": safe, "status": SolverStatus.OPTIMAL if converged else SolverStatus.TIME_LIMIT}
