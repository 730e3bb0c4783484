"""Solve and check resource problems from files.

    python -m optimizer solve PROBLEM.json --method exact --out SOLUTION.json [--time-limit 10] [--gap 1e-4] [--seed 0]
    python -m optimizer check PROBLEM.json SOLUTION.json
    python -m optimizer verify PROBLEM.json SOLUTION.json
    python -m optimizer bench [PROBLEM.json ...] --out FOLDER [--methods exact,bnb,psca] [--repeats 3]

Exit status: 0 solved (also when devices sit out), nothing wrong, or proven; 1 the solution violates the problem, or a
claim is false or could not be proven; 2 unusable input (one line on stderr); 3 no device can be served.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from click import ClickException
from typer import Argument, Option

from adapter.plugins import PluginError
from optimizer.allocator import METHODS, AllocationError, check_method_name, make_allocator
from optimizer.feasibility import check_solution
from optimizer.files import read_problem, read_solution, write_solution
from optimizer.problem import InfeasibleProblemError, ProblemError, ResourceProblem, Solution, SolverStatus

SOLVED, VIOLATED, UNUSABLE, NOBODY = 0, 1, 2, 3
ProblemFile = Annotated[str, Argument(metavar="PROBLEM", help="problem file (JSON)")]
SolutionFile = Annotated[str, Argument(metavar="SOLUTION", help="solution file (JSON)")]
TimeLimit = Annotated[float, Option(metavar="S", help="seconds for anytime methods")]
Gap = Annotated[float, Option(help="relative gap at which a certified method stops")]
cli = typer.Typer(help="Solve and check FedLoDrop resource problems.", add_completion=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    try:
        return int(cli(arguments, prog_name="python -m optimizer", standalone_mode=False))
    except (ProblemError, PluginError, AllocationError, InfeasibleProblemError, ClickException) as error:
        text = error.format_message() if isinstance(error, ClickException) else str(error)
        print(f"error: {' '.join(text.split())}", file=sys.stderr)
        return UNUSABLE


@cli.command()
def solve(
    problem: ProblemFile,
    out: Annotated[str, Option(help="solution file to write (JSON)")],
    method: Annotated[str, Option(help=f"one of {', '.join(sorted(METHODS))}")] = "exact",
    time_limit: TimeLimit = 10.0,
    gap: Gap = 1e-4,
    seed: Annotated[int, Option(help="of everything random")] = 0,
    dropout_rate: Annotated[float, Option(help="of the method 'fixed'")] = 0.5,
) -> int:
    """Allocate dropout rates, bandwidth or subcarriers, and power."""
    given = read_problem(problem)
    for name, value, usable in (
        ("--time-limit", time_limit, time_limit > 0),
        ("--gap", gap, gap >= 0),
        ("--seed", seed, seed >= 0),
        ("--dropout-rate", dropout_rate, 0 <= dropout_rate < 1),
    ):
        if not usable:
            raise ProblemError(f"{name} is out of range, found {value!r}")
    if not Path(out).absolute().parent.is_dir():
        raise ProblemError(f"--out: folder {Path(out).absolute().parent} does not exist")
    allocator = make_allocator(method, time_limit_s=time_limit, gap=gap, dropout_rate=dropout_rate)
    try:
        solution = allocator.allocate(given, rng=np.random.default_rng(seed))
    except (ProblemError, InfeasibleProblemError):
        raise
    except (ArithmeticError, ValueError) as error:
        raise AllocationError(f"{method} cannot compute with these numbers: {error}") from error
    try:
        write_solution(out, solution)
    except OSError as error:
        raise ProblemError(f"--out: {out} cannot be written: {error.strerror or error}") from error
    _report(given, solution)
    return NOBODY if solution.status is SolverStatus.INFEASIBLE else SOLVED


def _report(problem: ResourceProblem, solution: Solution) -> None:
    served = f"{int(solution.scheduled.sum())} of {problem.num_devices} devices"
    weight = float(problem.weights[solution.scheduled].sum())
    value = f"objective {solution.objective:.9f}, gap {solution.gap:.2e}"
    work = f"{solution.nodes} nodes, {solution.solve_time_s:.3f} s"
    work += "" if solution.deadline_s is None else f", deadline {solution.deadline_s:.9g} s"
    print(f"{solution.method}: {solution.status.value}, {served} (weight {weight:.8f}), {value}, {work}")
    for name, reason in zip(problem.device_ids, solution.reasons, strict=True):
        if reason:
            print(f"  {name} sits out: {reason}")
    for note in solution.notes:
        print(f"  note: {note}")


@cli.command()
def check(problem: ProblemFile, solution: SolutionFile) -> int:
    """Recompute every constraint of a solution."""
    violations = check_solution(read_problem(problem), read_solution(solution))
    for violation in violations:
        print(f"{violation.constraint}: {violation.message}")
    print("nothing violated" if not violations else f"{len(violations)} violations")
    return VIOLATED if violations else SOLVED


@cli.command()
def verify(problem: ProblemFile, solution: SolutionFile) -> int:
    """Prove every claim of a solution, with none of the solver's code."""
    from optimizer import verify as plain
    from optimizer import verify_extended

    try:
        stated = plain.read(problem)
        proof = verify_extended.verify(stated, plain.read(solution))
    except plain.Unusable as error:
        raise ProblemError(str(error)) from error
    except plain.Refused as error:
        print(f"refused: {error}", file=sys.stderr)
        return VIOLATED
    gap = max(proof.objective - proof.lower_bound, 0.0) / max(abs(proof.objective), 1e-12)
    claim, whom = "objective", "allocation of the same devices"
    if (stated.get("objective") or {}).get("objective") == "time":
        claim, whom = "deadline", "allocation that meets the bound for the weight asked for"
    claim += f" <= {proof.objective:.17g}"
    best = f", optimum >= {proof.lower_bound:.17g}, gap <= {gap:.3g} for every admissible {whom}"
    print(claim + (", whether it is the shortest: not proven" if proof.lower_bound == 0 < proof.objective else best))
    held = f"{proof.rows} of {proof.rows} constraints hold with margin {proof.margin:.3g}"
    print(f"{held} (tolerance {plain.TOLERANCE:g})")
    print(f"sits out: {proof.admission}\nproven")
    return SOLVED


@cli.command()
def bench(
    out: Annotated[Path, Option(help="folder to write to")],
    problems: Annotated[list[str] | None, Argument(help="problem files (JSON), else seeded fleets")] = None,
    methods: Annotated[str | None, Option(help="comma-separated; all but scip if left out")] = None,
    repeats: Annotated[int, Option(help="timed solves per cell after one warm-up")] = 3,
    time_limit: TimeLimit = 10.0,
    gap: Gap = 1e-4,
) -> int:
    """Compare methods over instances: tables, times and sweeps as CSV and PNG."""
    from optimizer.bench import SCHEMES, run_bench
    from optimizer.instances import sample_problem

    asked = SCHEMES if methods is None else methods.split(",")
    for name in asked:
        check_method_name(name)
    if repeats < 1:
        raise ProblemError(f"--repeats must be at least 1, found {repeats!r}")
    instances = {Path(path).stem: read_problem(path) for path in problems or []}
    instances = instances or {f"fleet-{count}": sample_problem(count, 0) for count in (3, 10, 100)}
    for row in run_bench(out, instances, asked, repeats=repeats, time_limit_s=time_limit, gap=gap):
        found = f"{row['objective']:.8f}  gap {row['gap']:.1e}" if "objective" in row else row["note"]
        print(f"{row['instance']:28} {row['method']:13} {found}  {row.get('median_s', float('nan')):.4f} s")
    print(f"written: {', '.join(sorted(path.name for path in out.glob('*.*')))} in {out}")
    return SOLVED


if __name__ == "__main__":
    sys.exit(main())
