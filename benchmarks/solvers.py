"""The optimizer beside SCIP, Gurobi, CVXPY's conic solvers and SciPy: CPU time to a gap, memory, ends without answer.

    python -m benchmarks.solvers --out FOLDER [--limit 10] [--solvers ours SCIP] [--quick]

Every solver and size is a process of its own: imports and one small solve come first, then the solves that count, model
building included, with one thread. All get the devices that fit together, so nobody has to admit. Times and limits are
CPU time, so a busy machine does not change them (but Gurobi's limit, which is in its units of work, about a second
each). Every claim is judged by our certified answer to the same problem. An interrupted comparison goes on where it
was.
"""

import argparse
import importlib.util
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd

from benchmarks.peers import SOLVERS
from benchmarks.watch import peak_rss_mib
from fedlodrop.study.tables import markdown
from optimizer.apart import ChildError, run_apart
from optimizer.fdma.admission import admit_fdma
from optimizer.instances import sample_problem
from optimizer.ofdma.admission import admit_ofdma
from optimizer.ofdma.model import OfdmaModel
from optimizer.plots import new_figure, save, shared_legend, style
from optimizer.problem import ResourceProblem

TOLERANCE = 1e-5  # relative: rows of size one may be off by 1e-6 for the solvers, the objective by three times as much
BAND_HZ = 5.76e6  # that is cut into ever finer subcarriers
DONE = ("proven", "right, no proof")
HOLLOW = {"linestyle": "", "markerfacecolor": "white", "label": "_"}
KEY, SIZE = ["access", "devices", "subcarriers", "seed"], ["solver", "access", "devices", "subcarriers"]


def make_problem(access: str, devices: int, subcarriers: int, seed: int) -> ResourceProblem:
    """Return a seeded fleet without the devices that do not fit."""
    if access == "fdma":
        problem = sample_problem(devices, seed)
        return problem.subset(admit_fdma(problem).scheduled)
    width_hz = BAND_HZ / subcarriers if devices == 8 else 90e3
    problem = sample_problem(devices, seed, access=access, num_subcarriers=subcarriers, subcarrier_hz=width_hz)
    return problem.subset(admit_ofdma(OfdmaModel(problem)).admission.scheduled)


def measure(solver: str, access: str, devices: int, subcarriers: int, limit_s: float, runs: Any) -> list[Any]:
    """Solve problems of one size in this process, for each (seed, gap) of ``runs``; rows with the CPU time [s]."""
    solve, rows = SOLVERS[solver].solve, []
    with patch.object(time, "perf_counter", time.process_time):  # the optimizer's clock
        solve(make_problem(access, 2, min(subcarriers, 4), 0), 1e-2, 2.0)  # imports, caches
        for seed, gap in runs:
            problem, began = make_problem(access, devices, subcarriers, seed), time.process_time()
            try:
                objective, bound = solve(problem, gap, limit_s)
            except (RuntimeError, ValueError):
                objective, bound = math.inf, -math.inf
            spent = {"cpu_s": time.process_time() - began, "peak_mib": peak_rss_mib(os.getpid())}
            rows.append({"seed": seed, "gap": gap, "objective": objective, "bound": bound} | spent)
    return rows


def cells(quick: bool) -> list[tuple[str, str, int, int, list[tuple[int, float]]]]:
    """Return what is measured: solver, access, devices, subcarriers, seeds and gaps."""
    both = [(seed, gap) for seed in range(1 if quick else 5) for gap in (1e-4, 1e-6)]
    shapes = [("fdma", k, 0, both) for k in (3, 5, 20, 100, 8)] + [("ofdma", 3, 8, both)]
    if not quick:
        shapes += [("fdma", 10**e, 0, [(seed, 1e-6) for seed in range(5 if e < 5 else 1)]) for e in range(3, 7)]
        shapes += [("ofdma", 8, 2**e, [(seed, 1e-4) for seed in range(3 if e < 8 else 1)]) for e in range(4, 11)]
        shapes += [("ofdma", 4, 12, both), ("ofdma", 5, 24, both)]
    return [
        (name, access, k, m, runs)
        for access, k, m, runs in shapes
        for name, solver in SOLVERS.items()
        if k * max(m, 1) <= (solver.most_cells if m else solver.most_devices)
        if importlib.util.find_spec(solver.package)
    ]


def run(out: Path, *, limit_s: float, quick: bool, solvers: Sequence[str] = tuple(SOLVERS)) -> pd.DataFrame:
    """Measure every cell of ``solvers`` that is not in ``out``/solvers.csv yet, and return all rows, judged."""
    path = out / "solvers.csv"
    out.mkdir(parents=True, exist_ok=True)
    rows = pd.read_csv(path).to_dict("records") if path.exists() else []
    known = {tuple(row[name] for name in SIZE) for row in rows}
    for *cell, runs in cells(quick):
        if tuple(cell) not in known and cell[0] in solvers:
            try:
                patience_s = limit_s * max(1, cell[2] // 25_000)  # growth is asked for the time to the proof
                found = run_apart(measure, *cell, patience_s, runs, limit_s=3600.0)
            except (ChildError, TimeoutError) as error:
                found = [{"seed": seed, "gap": gap, "failed": str(error)[:80]} for seed, gap in runs]
            rows += [dict(zip(SIZE, cell, strict=True)) | row for row in found]
            print(*cell, [(round(row.get("cpu_s", math.nan), 3), row.get("failed")) for row in found], flush=True)
            pd.DataFrame(rows).to_csv(path, index=False)
    return judge(pd.DataFrame(rows))


def judge(table: pd.DataFrame) -> pd.DataFrame:
    """Add how every solve ended, ``left`` (its claimed relative gap) and ``off`` (from our best answer, relative)."""
    ours = table[table["solver"] == "ours"].groupby(KEY).agg(best=("objective", "min"), floor=("bound", "max"))
    table = table.join(ours, on=KEY)
    table = table.fillna({"objective": np.inf, "bound": -np.inf})
    table["left"] = (table["objective"] - table["bound"]) / table["objective"].abs()
    table["off"] = table["objective"] / table["best"] - 1
    wrong = (table["bound"] > table["best"] * (1 + TOLERANCE)) | (table["objective"] < table["floor"] * (1 - TOLERANCE))
    ends = {
        "no answer": ~np.isfinite(table["objective"]),
        "wrong": wrong,
        "proven": table["left"] <= table["gap"],
        "not proven": np.isfinite(table["bound"]),
        "right, no proof": table["off"] <= table["gap"] + TOLERANCE,
    }
    table["end"] = np.select(list(ends.values()), list(ends), "wrong")
    return table


def draw(table: pd.DataFrame, path: Path) -> None:
    """Draw performance profiles (share of problems done within a multiple of the best time) and growth in K and M.

    A profile covers the problems that every solver in it was asked; hollow marks of growth are not proven.
    """
    figure, axes = new_figure(3, rows=2, width=4.0, height=3.2)
    table = table.assign(done=table["end"].isin(DONE), left=table["left"].clip(1e-8))
    fdma, cut = (table[table["access"] == access] for access in ("fdma", "ofdma"))
    for axis, gap in zip(axes, (1e-4, 1e-6), strict=False):
        _draw_profile(axis, fdma[(fdma["gap"] == gap) & (fdma["devices"] <= 100)], f"gap {gap:g}")
    growth = fdma[fdma["gap"] == 1e-6].groupby(["solver", "devices"], as_index=False)
    grown = growth[["cpu_s", "peak_mib", "done"]].median()
    for axis, y, label in ((axes[3], "cpu_s", "CPU time, median (s)"), (axes[4], "peak_mib", "peak memory (MiB)")):
        for position, name in enumerate(SOLVERS):
            _draw_growth(axis, grown[grown["solver"] == name], "devices", y, style(name, position))
        axis.set(xscale="log", yscale="log", xlabel="devices K (FDMA), gap 1e-6, hollow: not proven", ylabel=label)
    most = cut["devices"].max()
    cut, look = cut[cut["devices"] == most], style("ours") | {"linestyle": "", "alpha": 0.6}
    for axis, y, label in ((axes[2], "cpu_s", "CPU time (s)"), (axes[5], "left", "gap left")):
        _draw_growth(axis, cut, "subcarriers", y, look)
        axis.set(xscale="log", yscale="log", xlabel=f"subcarriers M (OFDMA, K = {most}), gap 1e-4", ylabel=label)
        sizes = sorted(set(cut["subcarriers"]))
        axis.set_xticks(sizes, [str(size) for size in sizes])
        axis.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
    shared_legend(figure, axes)
    save(figure, path)


def _draw_growth(axis: Any, part: pd.DataFrame, x: str, y: str, look: dict[str, Any]) -> None:
    if len(part):
        axis.plot(part[x], part[y], **look)
        axis.plot(*part.loc[part["done"] < 1, [x, y]].to_numpy().T, **look | HOLLOW)


def _draw_profile(axis: Any, part: pd.DataFrame, title: str) -> None:
    asked = part.groupby(KEY)["solver"].transform("nunique")
    part = part[asked == asked.max()]
    done = part[part["done"]]
    ratio = done["cpu_s"] / done.groupby(KEY)["cpu_s"].transform("min")
    for position, name in enumerate(SOLVERS):
        if name in set(part["solver"]):
            steps = np.sort(ratio[done["solver"] == name])
            shares = 100 * np.arange(len(steps) + 1) / len(part.groupby(KEY))
            look = style(name, position) | {"marker": "", "drawstyle": "steps-post"}
            axis.plot([1, *steps, 1e3], [*shares, shares[-1]], **look)
    sizes = ", ".join(str(size) for size in sorted(set(part["devices"])))
    axis.set(xscale="log", xlabel="CPU time, multiple of the fastest", ylabel="problems solved (%)")
    axis.set(title=f"FDMA, K = {sizes}, {title}", ylim=(-3, 103))


def written(table: pd.DataFrame) -> str:
    """Return the tables of docs/solvers.md: a row per solver, a column per size, median CPU time and how it ended."""
    parts = []
    for (access, gap), part in table.groupby(["access", "gap"], sort=False):
        cells = {key: _cell(rows) for key, rows in part.groupby(["solver", "devices", "subcarriers"])}
        sizes, peaks = sorted({key[1:] for key in cells}), part.groupby("solver")["peak_mib"].max()
        heads = ["solver", *(f"{k}×{m}" if m else f"K = {k}" for k, m in sizes), "peak MiB"]
        rows = [
            [solver, *(cells.get((solver, *size), "") for size in sizes), f"{peaks[solver]:.0f}"]
            for solver in SOLVERS
            if solver in peaks
        ]
        parts.append(f"{access.upper()}, gap {gap:g}\n\n{markdown(heads, rows)}")
    return "\n".join(parts)


def _cell(rows: pd.DataFrame) -> str:
    """Median CPU time, and in brackets how many solves ended otherwise than proven."""
    ends = rows["end"].value_counts()
    notes = [f"{count} {end}" for end, count in ends.items() if end != "proven"]
    worst = rows.loc[rows["end"] == "not proven", "left"].max()
    notes += [] if math.isnan(worst) else [f"up to {worst:.0e}"]
    slowest = rows["cpu_s"].where(rows["end"] != "not proven", math.inf).median()  # as if they never ended
    told = f"{slowest:.3g} s" if math.isfinite(slowest) else f"> {rows['cpu_s'].median():.3g} s"
    return told + (f" ({', '.join(notes)})" if notes else "")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is missing, draw the figure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for solvers.csv and solvers.png")
    parser.add_argument("--limit", type=float, default=10.0, help="time limit of every solve [s]")
    parser.add_argument("--solvers", nargs="+", choices=SOLVERS, default=list(SOLVERS))
    parser.add_argument("--quick", action="store_true", help="small problems, one seed")
    given = parser.parse_args(arguments)
    table = run(given.out, limit_s=given.limit, quick=given.quick, solvers=given.solvers)
    draw(table, given.out / "solvers.png")
    print(written(table))


if __name__ == "__main__":
    main()
