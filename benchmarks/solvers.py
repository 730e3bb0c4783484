"""The optimizer beside SCIP, Gurobi, CVXPY (Clarabel) and SciPy on the same problems: CPU time to a gap, memory, ends.

    python -m benchmarks.solvers --out FOLDER [--limit 20] [--quick]

Every solver and size is a process of its own: imports and one small solve come first, then the solves that count, model
building included, with one thread. Times and limits are CPU time, so a busy machine does not change them (but Gurobi's
limit, which is in its units of work, about a second each). The FDMA problem is given to the peers as it is best for
them: to the global solvers as the nonconvex statement (`optimizer.reference.scip`), to CVXPY in the convex form below,
to SciPy as a smooth program.

Convex form. With t = 1/tau, the inverse of the time left, the rate gamma is bounded below by (1/t - t0)/t1, a convex
function, and S t and e t are affine in t. Then S t ln2 <= b ln(1 + x/b) with x = p g/N0 is an exponential cone, and
p <= e t, p <= P and sum b <= W are linear; phi is a sum of convex functions.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import math
import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import cvxpy as cp
import numpy as np
import pandas as pd

from optimizer.allocator import make_allocator
from optimizer.apart import ChildError, run_apart
from optimizer.fdma.bandwidth_curve import BandwidthCurve
from optimizer.instances import sample_problem
from optimizer.objective import GeneralizationBound
from optimizer.plots import new_figure, save, shared_legend, style
from optimizer.problem import ResourceProblem
from optimizer.reference.scip import build_model

Found = tuple[float, float]  # objective, lower bound (-inf: the solver has none)
_DIRECT = "pyomo.contrib.solver.solvers."


def ours(problem: ResourceProblem, gap: float, limit_s: float) -> Found:
    """`exact` under FDMA, `bnb` under OFDMA."""
    solution = make_allocator("exact", gap=gap, time_limit_s=limit_s).allocate(problem)
    return solution.objective, solution.lower_bound


def _global(
    module: str, name: str, options: Callable[[float], dict[str, Any]]
) -> Callable[[ResourceProblem, float, float], Found]:
    def solve(problem: ResourceProblem, gap: float, limit_s: float) -> Found:
        solver = getattr(importlib.import_module(_DIRECT + module), name)()
        solver.config.time_limit, solver.config.rel_gap = 60 * limit_s, gap
        solver.config.solver_options = options(limit_s)
        solver.config.load_solutions = solver.config.raise_exception_on_nonoptimal_result = False
        found = solver.solve(build_model(problem))
        incumbent, bound = found.incumbent_objective, found.objective_bound
        return math.inf if incumbent is None else incumbent, -math.inf if bound is None else bound

    return solve


def clarabel(problem: ResourceProblem, gap: float, limit_s: float) -> Found:
    """CVXPY on the convex form; the bound is what its status claims, in floating point."""
    curve, bound, count = BandwidthCurve.of(problem), problem.bound, problem.num_devices
    t0, t1 = (curve.uplink_time_s(np.full(count, rate)) for rate in (0.0, 1.0))
    t0, t1 = t0 / problem.deadline_s, (t1 - t0) / problem.deadline_s
    e1, total = curve.energy_slope_j, problem.total_bandwidth_hz
    e0 = curve.energy_j - e1
    gamma, t, share, power = cp.Variable(count), cp.Variable(count), cp.Variable(count), cp.Variable(count)
    rate_t = (1 - cp.multiply(t0, t)) / t1  # gamma t, affine
    payload = cp.multiply(problem.fixed_bits + problem.droppable_bits, t) - cp.multiply(problem.droppable_bits, rate_t)
    snr = problem.max_tx_power_w * problem.channel_gain / (problem.noise_psd_w_per_hz * total)
    kept, samples = 1 - gamma, 2 * problem.num_examples * bound.confidence
    curvature = bound.curvature_min + 2 * bound.sparsity_regularization * (1 - cp.square(kept))
    steep = np.sqrt(24 * bound.loss_bound * bound.lipschitz**2 / samples)
    parts = cp.vstack([bound.loss_bound / np.sqrt(samples), cp.multiply(steep, cp.power(curvature, -0.5))])
    value = bound.empirical_scale * (cp.inv_pos(kept) - 1) + cp.norm(parts, 2, axis=0)
    rows = [
        gamma >= cp.multiply(cp.inv_pos(t) - t0, 1 / t1),
        payload * np.log(2) / (total * problem.deadline_s) <= -cp.rel_entr(share, share + cp.multiply(snr, power)),
        cp.multiply(problem.max_tx_power_w * problem.deadline_s, power) <= cp.multiply(e0, t) + cp.multiply(e1, rate_t),
        *(power <= 1, power >= 0, share >= 1e-9, cp.sum(share) <= 1, gamma >= 0, gamma <= problem.max_dropout_rate),
    ]
    model = cp.Problem(cp.Minimize(problem.weights @ value), rows)
    model.solve(cp.CLARABEL, tol_gap_rel=gap / 2, tol_gap_abs=gap / 100, max_threads=1)
    if model.status != "optimal":
        return math.inf, -math.inf
    return float(model.value), float(model.value) * (1 - gap / 2)


def scipy_slsqp(problem: ResourceProblem, gap: float, limit_s: float) -> Found:
    """SLSQP on rates and bandwidths, power eliminated; a local method without a bound."""
    from scipy.optimize import minimize

    curve, objective, count = BandwidthCurve.of(problem), GeneralizationBound(), problem.num_devices

    def spare(x: Any) -> Any:
        gamma, hz = x[:count], x[count:] * problem.total_bandwidth_hz
        tau = np.maximum(curve.uplink_time_s(gamma), 1e-12)
        energy = np.minimum(curve.energy_j - curve.energy_slope_j * (1 - gamma), problem.max_tx_power_w * tau)
        nats = tau * hz * np.log1p(np.maximum(energy, 0) / (curve.noise_to_gain * tau * hz))
        return nats / (curve.uplink_bits(gamma) * np.log(2)) - 1

    top = problem.max_dropout_rate
    found = minimize(
        lambda x: objective.value(problem, x[:count]).sum(),
        np.r_[np.full(count, 0.9 * top), np.full(count, 1 / count)],
        jac=lambda x: np.r_[objective.derivative(problem, x[:count]), np.zeros(count)],
        bounds=[(0.0, top)] * count + [(1e-9, 1.0)] * count,
        constraints=[{"type": "ineq", "fun": spare}, {"type": "ineq", "fun": lambda x: 1 - x[count:].sum()}],
        method="SLSQP",
        options={"ftol": gap * 1e-3, "maxiter": 500},
    )
    usable = found.success and spare(found.x).min() > -1e-6
    return float(found.fun) if usable else math.inf, -math.inf


SOLVERS: dict[str, Callable[[ResourceProblem, float, float], Found]] = {
    "ours": ours,
    "SCIP": _global("scip.scip_direct", "ScipDirect", lambda s: {"timing/clocktype": 1, "limits/time": s}),
    "Gurobi": _global("gurobi.gurobi_direct_minlp", "GurobiDirectMINLP", lambda s: {"WorkLimit": s, "Threads": 1}),
    "Clarabel": clarabel,
    "SciPy": scipy_slsqp,
}
_NEEDS = {"SCIP": "pyscipopt", "Gurobi": "gurobipy"}
# solver -> most devices under FDMA, most devices times subcarriers under OFDMA; beyond it nothing ends in a minute
_LARGEST = {"ours": (10**6, 10**5), "SCIP": (8, 24), "Gurobi": (8, 24), "Clarabel": (2000, 0), "SciPy": (20, 0)}


def measure(solver: str, access: str, devices: int, subcarriers: int, limit_s: float, runs: Any) -> list[Any]:
    """Solve problems of one size in this process, for each (seed, gap) of ``runs``; rows with the CPU time [s]."""
    solve, rows = SOLVERS[solver], []
    with patch.object(time, "perf_counter", time.process_time):  # the optimizer's clock
        solve(sample_problem(2, 0, access=access, num_subcarriers=min(subcarriers, 4)), 1e-2, 2.0)  # imports, caches
        for seed, gap in runs:
            problem, began = (
                sample_problem(devices, seed, access=access, num_subcarriers=subcarriers),
                time.process_time(),
            )
            try:
                objective, bound = solve(problem, gap, limit_s)
            except (RuntimeError, ValueError, cp.SolverError):
                objective, bound = math.inf, -math.inf
            cpu_s = time.process_time() - began
            left = (objective - bound) / abs(objective) if math.isfinite(objective) else math.inf
            end = "proven" if left <= gap else "no bound" if math.isinf(bound) else "gap left"
            end = "no answer" if math.isinf(objective) else end
            peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            row = {"objective": objective, "gap_left": left, "cpu_s": cpu_s, "peak_mib": peak_mib, "end": end}
            rows.append({"seed": seed, "gap": gap} | row)
    return rows


def cells(quick: bool) -> list[tuple[str, str, int, int, list[tuple[int, float]]]]:
    """Return what is measured, small problems first: solver, access, devices, subcarriers, seeds and gaps."""
    both = [(seed, gap) for seed in range(1 if quick else 2) for gap in (1e-4, 1e-6)]
    shapes = [("fdma", k, 0, both) for k in (3, 5, 8, 20, 100)]
    shapes += [("ofdma", k, m, both) for k, m in ((3, 8), (5, 24), (10, 64))]
    if not quick:
        shapes += [("fdma", k, 0, [(0, 1e-6)]) for k in (500, 2000, 10**4, 10**5, 10**6)]
        shapes += [("ofdma", 20, m, [(0, 1e-4)]) for m in (128, 256, 512, 1024)]
    there = [name for name in SOLVERS if name not in _NEEDS or importlib.util.find_spec(_NEEDS[name])]
    return [
        (solver, *shape)
        for shape in shapes
        for solver in there
        if shape[1] * max(shape[2], 1) <= _LARGEST[solver][shape[0] == "ofdma"]
    ]


def run(out: Path, *, limit_s: float, quick: bool, solvers: Sequence[str] = tuple(SOLVERS)) -> pd.DataFrame:
    """Measure every cell of ``solvers`` that is not in ``out``/solvers.csv yet, and draw the profiles."""
    path, names = out / "solvers.csv", ["solver", "access", "devices", "subcarriers"]
    out.mkdir(parents=True, exist_ok=True)
    rows = pd.read_csv(path).to_dict("records") if path.exists() else []
    known = {tuple(row[name] for name in names) for row in rows}
    for *cell, runs in cells(quick):
        if tuple(cell) not in known and cell[0] in solvers:
            try:
                found = run_apart(measure, *cell, limit_s, runs, limit_s=3600.0)
            except (ChildError, TimeoutError) as error:
                found = [{"seed": seed, "gap": gap, "end": f"failed: {str(error)[:60]}"} for seed, gap in runs]
            rows += [dict(zip(names, cell, strict=True)) | row for row in found]
            print(*cell, [(row["end"], round(row.get("cpu_s", math.nan), 4)) for row in found], flush=True)
            pd.DataFrame(rows).to_csv(path, index=False)
    table = pd.DataFrame(rows)
    draw_profiles(table, out / "solver_profiles.png")
    return table


def draw_profiles(table: pd.DataFrame, path: Path) -> None:
    """Share of the FDMA problems of up to 100 devices solved within a multiple of the best time, per gap.

    A local method counts as having solved a problem when its value is within the gap of the best one.
    """
    small = table[(table["access"] == "fdma") & (table["devices"] <= 100)].copy()
    best = small.groupby(["devices", "seed"])["objective"].transform("min")
    small["solved"] = (small["end"] == "proven") | (small["objective"] <= best * (1 + small["gap"]))
    figure, axes = new_figure(2)
    for axis, (gap, part) in zip(axes, small.groupby("gap", sort=False), strict=False):
        time_s = part[part["solved"]].pivot_table(index=["devices", "seed"], columns="solver", values="cpu_s")
        ratio = time_s.div(time_s.min(axis=1), axis=0)
        count = len(part.groupby(["devices", "seed"]))
        for position, name in enumerate(name for name in SOLVERS if name in ratio):
            steps = np.sort(ratio[name].dropna())
            x, y = np.r_[1, np.repeat(steps, 2), 1e5], np.repeat(np.arange(len(steps) + 1), 2) / count
            axis.plot(x, 100 * y, **style(name, position) | {"marker": ""})
        axis.set(xscale="log", xlabel="CPU time, multiple of the fastest", ylabel="problems solved (%)")
        axis.set(title=f"gap {gap:g}", ylim=(-3, 103))
    shared_legend(figure, axes)
    save(figure, path)


def markdown(table: pd.DataFrame) -> str:
    """Return the table of docs/solvers.md: median CPU time and memory, or how it ended."""
    lines = ["| problem | gap | " + " | ".join(SOLVERS) + " |", "|---|---|" + "---|" * len(SOLVERS)]
    for (access, devices, subcarriers, gap), part in table.groupby(
        ["access", "devices", "subcarriers", "gap"], sort=False
    ):
        cells = []
        for solver in SOLVERS:
            found = part[part["solver"] == solver]
            ends = " / ".join(dict.fromkeys(found["end"]))
            shown = f"{found['cpu_s'].median():.3g} s, {found['peak_mib'].max():.0f} MiB"
            worst = found["gap_left"].replace(np.inf, np.nan).max() if len(found) else math.nan
            note = "" if ends == "proven" else f" ({ends}{f', gap {worst:.1g}' if worst > gap else ''})"
            cells.append(shown + note if len(found) else "")
        size = f"K = {devices}" + (f", M = {subcarriers}" if subcarriers else "")
        lines.append(f"| {access.upper()} {size} | {gap:g} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for solvers.csv and solver_profiles.png")
    parser.add_argument("--limit", type=float, default=20.0, help="time limit of every solve [s]")
    parser.add_argument("--solvers", nargs="+", choices=SOLVERS, default=list(SOLVERS))
    parser.add_argument("--quick", action="store_true", help="small problems, one seed")
    given = parser.parse_args(arguments)
    print(markdown(run(given.out, limit_s=given.limit, quick=given.quick, solvers=given.solvers)))


if __name__ == "__main__":
    main()
