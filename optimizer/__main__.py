"""Solve and check resource problems from files.

    python -m optimizer solve PROBLEM.json --method exact --out SOLUTION.json [--time-limit 10] [--gap 1e-4] [--seed 0]
    python -m optimizer solve PROBLEM.json --objective time --max-bound 0.45 --out SOLUTION.json
    python -m optimizer check PROBLEM.json SOLUTION.json
    python -m optimizer verify PROBLEM.json SOLUTION.json
    python -m optimizer bench [PROBLEM.json ...] --out FOLDER [--methods exact,bnb,psca] [--repeats 3]

Exit status: 0 solved (also when devices sit out), nothing wrong, or proven; 1 the solution violates the problem, or a
claim is false or could not be proven; 2 unusable input (one line on stderr); 3 no device can be served.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from adapter.plugins import PluginError
from optimizer.allocator import METHODS, AllocationError, check_method_name, make_allocator
from optimizer.feasibility import check_solution
from optimizer.files import read_problem, read_solution, write_solution
from optimizer.problem import GOALS, Goal, InfeasibleProblemError, ProblemError, ResourceProblem, Solution, SolverStatus

_GOAL_NUMBERS = {
    "max_bound": "largest mean bound, for time",
    "min_weight": "share of the weight to serve in time (default 1)",
    "energy_weight_per_j": "cost of a joule, for tradeoff",
    "time_weight_per_s": "cost of a second, for tradeoff",
}
SOLVED, VIOLATED, UNUSABLE, NOBODY = 0, 1, 2, 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    options = _parser().parse_args(arguments)
    try:
        status: int = options.run(options)
        return status
    except (ProblemError, PluginError, AllocationError, InfeasibleProblemError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return UNUSABLE


def _parser() -> argparse.ArgumentParser:
    says = "Solve and check FedLoDrop resource problems."
    parser = argparse.ArgumentParser(prog="python -m optimizer", description=says)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    solve = commands.add_parser("solve", help="allocate dropout rates, bandwidth or subcarriers, and power")
    check = commands.add_parser("check", help="recompute every constraint of a solution")
    verify = commands.add_parser("verify", help="prove every claim of a solution, with none of the solver's code")
    bench = commands.add_parser("bench", help="methods x instances table, times and sweeps as CSV and PNG")
    for command, run in ((solve, _solve), (check, _check), (verify, _verify), (bench, _bench)):
        command.set_defaults(run=run)
    for command in (solve, check, verify):
        command.add_argument("problem", help="problem file (JSON)")
    for command in (check, verify):
        command.add_argument("solution", help="solution file (JSON)")
    for command in (solve, bench):
        says = "seconds for anytime methods (default 10)"
        command.add_argument("--time-limit", type=float, default=10.0, metavar="S", help=says)
        says = "relative gap at which a certified method stops (default 1e-4)"
        command.add_argument("--gap", type=float, default=1e-4, help=says)
    solve.add_argument("--method", default="exact", help=f"one of {', '.join(sorted(METHODS))}")
    solve.add_argument("--out", required=True, help="solution file to write (JSON)")
    solve.add_argument("--seed", type=int, default=0, help="seed of everything random (default 0)")
    says = "dropout rate of the method 'fixed' (default 0.5)"
    solve.add_argument("--dropout-rate", type=float, default=0.5, help=says)
    goal = solve.add_argument_group("objective", "in place of the file's; its deadline_s is then the longest")
    goal.add_argument("--objective", choices=("bound", *GOALS), help="bound, shortest deadline, or a weighted sum")
    for name, text in _GOAL_NUMBERS.items():
        goal.add_argument(f"--{name.replace('_', '-')}", type=float, help=text)
    bench.add_argument("problems", nargs="*", help="problem files (JSON); seeded fleets if none are given")
    bench.add_argument("--out", required=True, help="folder to write to")
    bench.add_argument("--methods", default=None, help="comma-separated; all but scip if left out")
    bench.add_argument("--repeats", type=int, default=3, help="timed solves per cell after one warm-up (default 3)")
    return parser


def _solve(options: argparse.Namespace) -> int:
    problem = _with_goal(read_problem(options.problem), options)
    check_method_name(options.method)
    for name, value, usable in (
        ("--time-limit", options.time_limit, options.time_limit > 0),
        ("--gap", options.gap, options.gap >= 0),
        ("--seed", options.seed, options.seed >= 0),
        ("--dropout-rate", options.dropout_rate, 0 <= options.dropout_rate < 1),
    ):
        if not usable:
            raise ProblemError(f"{name} is out of range, found {value!r}")
    if not Path(options.out).absolute().parent.is_dir():
        raise ProblemError(f"--out: folder {Path(options.out).absolute().parent} does not exist")
    allocator = make_allocator(
        options.method, time_limit_s=options.time_limit, gap=options.gap, dropout_rate=options.dropout_rate
    )
    try:
        solution = allocator.allocate(problem, rng=np.random.default_rng(options.seed))
    except (ProblemError, InfeasibleProblemError):
        raise
    except (ArithmeticError, ValueError) as error:
        raise AllocationError(f"{options.method} cannot compute with these numbers: {error}") from error
    try:
        write_solution(options.out, solution)
    except OSError as error:
        raise ProblemError(f"--out: {options.out} cannot be written: {error.strerror or error}") from error
    _report(problem, solution)
    return NOBODY if solution.status is SolverStatus.INFEASIBLE else SOLVED


def _with_goal(problem: ResourceProblem, options: argparse.Namespace) -> ResourceProblem:
    """Return the problem with the goal that the options name, its own where they name none."""
    given = {name: getattr(options, name) for name in _GOAL_NUMBERS if getattr(options, name) is not None}
    if options.objective in GOALS:
        return replace(problem, goal=Goal(options.objective, **given))
    if given:
        raise ProblemError(f"--{next(iter(given)).replace('_', '-')} needs --objective {' or '.join(GOALS)}")
    return replace(problem, goal=None) if options.objective else problem


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


def _check(options: argparse.Namespace) -> int:
    problem, solution = read_problem(options.problem), read_solution(options.solution)
    violations = check_solution(problem, solution)
    for violation in violations:
        print(f"{violation.constraint}: {violation}")
    print("nothing violated" if not violations else f"{len(violations)} violations")
    return VIOLATED if violations else SOLVED


def _verify(options: argparse.Namespace) -> int:
    from optimizer import verify, verify_extended

    try:
        problem = verify.read(options.problem)
        proof = verify_extended.verify(problem, verify.read(options.solution))
    except verify.Unusable as error:
        raise ProblemError(str(error)) from error
    except verify.Refused as error:
        print(f"refused: {error}", file=sys.stderr)
        return VIOLATED
    gap = max(proof.objective - proof.lower_bound, 0.0) / max(abs(proof.objective), 1e-12)
    claim, whom = "objective", "allocation of the same devices"
    if (problem.get("objective") or {}).get("objective") == "time":
        claim, whom = "deadline", "allocation that meets the bound for the weight asked for"
    claim += f" <= {proof.objective:.17g}"
    best = f", optimum >= {proof.lower_bound:.17g}, gap <= {gap:.3g} for every admissible {whom}"
    print(claim + (", whether it is the shortest: not proven" if proof.lower_bound == 0 < proof.objective else best))
    tolerance = f"tolerance {verify.TOLERANCE:g}"
    print(f"{proof.rows} of {proof.rows} constraints hold with margin {proof.margin:.3g} ({tolerance})")
    print(f"sits out: {proof.admission}\nproven")
    return SOLVED


def _bench(options: argparse.Namespace) -> int:
    from optimizer.bench import SCHEMES, run_bench
    from optimizer.instances import sample_problem

    methods = SCHEMES if options.methods is None else options.methods.split(",")
    for name in methods:
        check_method_name(name)
    if options.repeats < 1:
        raise ProblemError(f"--repeats must be at least 1, found {options.repeats!r}")
    problems = {Path(path).stem: read_problem(path) for path in options.problems}
    problems = problems or {f"fleet-{count}": sample_problem(count, 0) for count in (3, 10, 100)}
    out = Path(options.out)
    rows = run_bench(out, problems, methods, repeats=options.repeats, time_limit_s=options.time_limit, gap=options.gap)
    for row in rows:
        found = f"{row['objective']:.8f}  gap {row['gap']:.1e}" if "objective" in row else row["note"]
        print(f"{row['instance']:28} {row['method']:13} {found}  {row.get('median_s', float('nan')):.4f} s")
    print(f"written: {', '.join(sorted(path.name for path in out.glob('*.*')))} in {out}")
    return SOLVED


if __name__ == "__main__":
    sys.exit(main())
