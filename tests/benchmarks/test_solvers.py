"""What the solver comparison says of a claim, and that the convex form is the problem; nothing is timed."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from benchmarks.peers import SOLVERS
from benchmarks.solvers import _cell, judge, make_problem
from optimizer.fdma.exact import solve_fdma


def test_every_claim_is_judged_by_our_certified_answer() -> None:
    place = {"access": "fdma", "devices": 3, "subcarriers": 0, "seed": 0, "gap": 1e-4, "cpu_s": 1.0}
    claims = {
        "ours": (0.5, 0.5, "proven"),
        "tight": (0.50001, 0.49999, "proven"),
        "loose": (0.5, 0.4, "not proven"),
        "boasts": (0.51, 0.51, "wrong"),  # a bound above a checked allocation
        "cheats": (0.49, 0.48, "wrong"),  # a value below a proven bound
        "local": (0.50001, -math.inf, "right, no proof"),
        "stuck": (0.52, -math.inf, "wrong"),
        "silent": (math.inf, -math.inf, "no answer"),
    }
    rows = [place | {"solver": name, "objective": up, "bound": low} for name, (up, low, _) in claims.items()]
    assert dict(judge(pd.DataFrame(rows))[["solver", "end"]].to_numpy()) == {
        name: end for name, (*_, end) in claims.items()
    }


def test_a_solve_without_a_proof_counts_as_one_that_never_ends() -> None:
    rows = [{"cpu_s": s, "end": "proven", "left": 0.0} for s in (1.0, 2.0)]
    open_ones = [{"cpu_s": 5.0, "end": "not proven", "left": left} for left in (0.1, 0.2, 0.3)]
    assert _cell(pd.DataFrame(rows + open_ones[:1])) == "2 s (1 not proven, up to 1e-01)"
    assert _cell(pd.DataFrame(rows + open_ones)) == "> 5 s (3 not proven, up to 3e-01)"


@pytest.mark.parametrize("devices", [3, 100])
def test_the_convex_form_has_the_value_of_the_problem(devices: int) -> None:
    problem = make_problem("fdma", devices, 0, 1)
    value, bound = SOLVERS["Clarabel"].solve(problem, 1e-6, 10.0)
    best = solve_fdma(problem).objective
    assert value == pytest.approx(best, rel=1e-6) and bound <= best


@pytest.mark.slow
def test_the_command_measures_and_draws(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.solvers", "--out", str(tmp_path), "--limit", "0.5", "--quick"]
    done = subprocess.run([*command, "--solvers", "ours", "Clarabel"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "| ours |" in done.stdout and "| Clarabel |" in done.stdout
    assert (tmp_path / "solvers.png").stat().st_size > 10_000
    assert set(pd.read_csv(tmp_path / "solvers.csv")["solver"]) == {"ours", "Clarabel"}
