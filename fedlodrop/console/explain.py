"""Why a device got its dropout rate, bandwidth and power in a round, in words: `fedlodrop explain`.

The round's resource problem is built again from the run's configuration (the channel is a function of seed and round)
and checked against what was recorded: the least power for the recorded grant must be the recorded power, and the
recorded rates must be worth the recorded objective.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from conf.compose import ConfigError, read_config
from conf.schema import Config
from fedlodrop.console.printing import make_table, print_lines
from optimizer.fdma import completion as fdma
from optimizer.fdma.admission import Admission
from optimizer.ofdma import completion as ofdma
from optimizer.ofdma.model import OfdmaModel
from optimizer.problem import ResourceProblem, Solution, SolverStatus
from optimizer.sensitivity import OPTIMAL_METHODS, Sensitivity, sensitivity
from optimizer.solver_interface import DEFAULTS, Decision
from server_app.results import read_rounds

_CLOSE = 1e-6  # relative difference between record and reconstruction that is rounding
_RIGID = ("fixed", "none", "random", "common")


@dataclass(frozen=True)
class Explanation:
    """One device in one round."""

    device: str
    title: str  # the device, its class, the round, who planned it
    position: int  # its place in the round's problem
    problem: ResourceProblem  # the round again
    solution: Solution
    prices: Sensitivity  # what its limits cost
    reasons: list[str]  # sentences
    differences: list[str]  # where the reconstruction is not what was recorded


def explain(folder: Path, server_round: int, device: str) -> Explanation:
    """Explain the part of one device (its name, or its index in the fleet) in one round of a run, from 1.

    Raises ConfigError if the run has no such round, or the device was not asked in it.
    """
    records = {record["round"]: record for record in read_rounds(folder)}
    if server_round not in records:
        rounds = f"the rounds 1 to {max(records, default=0)} of {folder}"
        raise ConfigError(f"--round must be one of {rounds}, found {server_round}")
    record = records[server_round]
    rows = record["devices"]
    names = [row["id"] for row in rows]
    name = device if device in names else f"device-{device}"
    if name not in names:
        asked = f"those asked in round {server_round} ({', '.join(names)})"
        raise ConfigError(f"--device must be one of {asked}, found {device!r}")
    from fedlodrop.console.dry_run import plan_federation  # slow to import: bad input is told first

    config = read_config(folder / "config.yaml")
    examples = {_index(row["id"]): row["num_examples"] for each in records.values() for row in each["devices"]}
    _check_fits(folder, config, record, max(examples))
    strategy = plan_federation(config, examples).strategy
    devices = np.array([_index(each) for each in names])  # those that were there
    if strategy.batteries is not None:  # as they were before this round
        strategy.batteries.charge_j[devices] = [np.inf if row["charge_j"] is None else row["charge_j"] for row in rows]
    problem, k = strategy.problem_of(server_round, devices), names.index(name)
    if problem.goal is not None:  # what was decided within the deadline that was chosen
        problem = replace(problem, goal=None, deadline_s=rows[k]["deadline_s"])
    ways = list(problem.choices)
    taken = np.array([ways.index(row.get("wire_dtype", ways[0])) for row in rows]) if ways else None
    on = np.array([row["scheduled"] for row in rows], dtype=np.bool_)
    problem = problem.decided(on, taken)
    solution = _recorded_solution(problem, record, on)
    prices = sensitivity(problem, solution)
    reasons, differences = _sentences(problem, solution, prices, k), _differences(problem, solution, record)
    if strategy.batteries is not None:
        reasons.append(strategy.batteries.told(int(devices[k]), float(problem.energy_budget_j[k])))
    kind = strategy.fleet.device_class[devices[k]]
    title = f"{name} ({kind}) in round {server_round}, planned by {solution.method}"
    return Explanation(name, title, k, problem, solution, prices, reasons, differences)


def _index(device: str) -> int:
    return int(device.split("-")[1])


def _check_fits(folder: Path, config: Config, record: dict[str, Any], last: int) -> None:
    """Refuse a configuration that the rounds cannot have been made with: another fleet or access scheme."""
    network, rows = config.network, record["devices"]
    access = "ofdma" if any("subcarriers" in row for row in rows) else network.access.replace("ofdma", "fdma")
    highest = max((m for row in rows for m in row.get("subcarriers", ())), default=-1)
    wrong = {
        f"network.num_devices={network.num_devices} and a device-{last}": last >= network.num_devices,
        f"network.access={network.access} and a plan for {access}": network.access != access,
        f"network.num_subcarriers={network.num_subcarriers} and a subcarrier {highest}": access == "ofdma"
        and highest >= (network.num_subcarriers or 0),
    }
    if any(wrong.values()):
        raise ConfigError(
            f"{folder}: config.yaml is not what its rounds were made with ({next(filter(wrong.get, wrong))}): it was "
            "changed, or the run was continued with other settings; restore the file to have them explained"
        )


def _recorded_solution(problem: ResourceProblem, record: dict[str, Any], on: np.ndarray) -> Solution:
    """Return a recorded plan as a solution of the reconstructed problem; powers are the least for the grants."""
    rows, plan = record["devices"], record["plan"]
    gamma = np.array([row["dropout_rate"] or 0.0 for row in rows])[on]
    clock = np.array([row.get("cpu_hz") or own for row, own in zip(rows, problem.cpu_hz, strict=True)])
    fixed, admission = problem.at_clock(clock), Admission(on, tuple(row["reason"] or "" for row in rows), exact=False)
    bound, status = plan["lower_bound"], SolverStatus(plan.get("status", "feasible"))
    grant = Decision(-np.inf if bound is None else bound, dropout_rate=gamma, status=status)
    if not on.any():
        solution = admission.nobody(fixed)
    elif problem.access != "ofdma":
        band = np.array([row["bandwidth_hz"] or 0.0 for row in rows])[on]
        solution = fdma.finish(fixed, admission, replace(grant, bandwidth_hz=band), DEFAULTS)
    else:
        owner = np.full(problem.num_subcarriers, -1)
        for position, k in enumerate(np.flatnonzero(on)):
            owner[rows[k]["subcarriers"]] = position
        solution = ofdma.finish(OfdmaModel(fixed).subset(on), admission, replace(grant, owner=owner), DEFAULTS)
    solution = replace(solution, method=plan["solver"])
    return solution if problem.min_cpu_hz is None else replace(solution, cpu_hz=clock)


def _differences(problem: ResourceProblem, solution: Solution, record: dict[str, Any]) -> list[str]:
    """Say where the reconstruction is not what was recorded."""
    pairs = [("objective", solution.objective, record["plan"]["objective"])]
    for k, row in enumerate(record["devices"]):
        pairs.append((f"{row['id']}: energy budget [J]", problem.energy_budget_j[k], row["energy_budget_j"]))
        if row["scheduled"]:
            pairs.append((f"{row['id']}: transmit power [W]", np.sum(solution.tx_power_w[k]), row["tx_power_w"]))
    return [
        f"{what}: recorded {said:.9g}, built again {now:.9g}"
        for what, now, said in pairs
        if not abs(now - said) <= _CLOSE * max(abs(said), 1e-12)
    ]


def _sentences(problem: ResourceProblem, solution: Solution, prices: Sensitivity, k: int) -> list[str]:
    """Say why a device got its rate, and which limits bind."""
    if not solution.scheduled[k]:
        return [f"It sat out: {solution.reasons[k] or 'no reason given'}."]
    gamma, best, most = solution.dropout_rate[k], prices.best_rate[k], problem.max_dropout_rate
    if solution.method in _RIGID:
        rate = f"The rule {solution.method!r} decides the dropout rate; the limits below do not move it."
    elif prices.at_best[k]:
        rate = f"The dropout rate is where the bound itself is smallest ({best:.3f}): no resource holds it back."
    elif prices.at_most[k]:
        rate = f"The dropout rate is the largest allowed (budget.max_dropout_rate = {most:g}), else less would be sent."
    else:
        rate = f"The bound alone would choose {best:.3f}; what binds below pushes the dropout rate up to {gamma:.3f}."
    found = [rate]
    if prices.on_deadline[k] and prices.per_second[k] < 0:
        found.append(f"The deadline of {problem.deadline_s:g} s binds: it computes and sends until the last moment.")
    elif prices.on_deadline[k]:
        found.append(f"It sends until the deadline of {problem.deadline_s:g} s, for a slower upload costs less energy.")
    if prices.on_energy[k]:
        budget = problem.energy_budget_j[k]
        found.append(f"The energy budget of {budget:.4g} J binds: everything computing leaves is radiated.")
    if prices.on_power[k]:
        found.append(f"The power cap of {problem.max_tx_power_w[k]:.4g} W binds, not the battery.")
    if not prices.on_energy[k] and not prices.on_power[k]:
        found.append("Neither battery nor power cap binds: spare bandwidth is used to send at less power.")
    if prices.bandwidth_price[k] > 0:
        common = solution.method in OPTIMAL_METHODS and problem.access != "ofdma"
        price = "bandwidth has one price for all devices" if common else "its own worth"
        found.append(f"Bandwidth binds: {price}, {prices.bandwidth_price[k] * 1e3:.3g} of the bound per kHz.")
    elif solution.method not in _RIGID:
        found.append("Bandwidth does not bind for it: more would not lower its part of the bound.")
    return found


def print_explanation(found: Explanation, console: Console) -> None:
    """Print an explanation: what it got, why, and what more would buy."""
    k, problem, solution = found.position, found.problem, found.solution
    lines = [found.title]
    if solution.scheduled[k]:
        if solution.bandwidth_hz is None:
            share = f"{np.sum(solution.subcarrier_owner == k)} of {problem.num_subcarriers} subcarriers"
        else:
            part = solution.bandwidth_hz[k] / problem.total_bandwidth_hz
            share = f"{solution.bandwidth_hz[k] / 1e3:.4g} kHz ({part:.1%} of the band)"
        power = f"{np.sum(solution.tx_power_w[k]):.4g} W of {problem.max_tx_power_w[k]:.4g} W"
        clock = "" if solution.cpu_hz is None else f" · {solution.cpu_hz[k] / 1e9:.3g} GHz"
        energy = f"{solution.energy_j[k]:.4g} J of {problem.energy_budget_j[k]:.4g} J"
        lines.append(f"  got   dropout rate {solution.dropout_rate[k]:.4f} · {share} · {power}{clock}")
        lines.append(f"  uses  {solution.latency_s[k]:.4g} s of {problem.deadline_s:g} s · {energy}")
    print_lines(console, [*lines, *(f"  {sentence}" for sentence in found.reasons)])
    if solution.scheduled[k]:
        console.print(_prices_table(found))
    differs = "the round built again from config.yaml differs from the record; the words above are about the former:"
    agrees = "The round was built again from config.yaml and agrees with the record."
    print_lines(console, [differs if found.differences else agrees, *(f"  {line}" for line in found.differences)])


def _prices_table(found: Explanation) -> Table:
    """What one more unit would change, to first order, and one per cent more of what there is."""
    k, problem, prices = found.position, found.problem, found.prices
    common = problem.access != "ofdma" and found.solution.method in OPTIMAL_METHODS
    band = "bandwidth of the cell" if common else "bandwidth for this device"
    limits = [
        (band, problem.total_bandwidth_hz / 1e6, "MHz", -prices.bandwidth_price[k] * 1e6),
        ("deadline", problem.deadline_s, "s", prices.per_second.sum()),
        ("  through this device", problem.deadline_s, "s", prices.per_second[k]),
        ("its energy budget", problem.energy_budget_j[k], "J", prices.per_joule[k]),
        ("its power cap", problem.max_tx_power_w[k], "W", prices.per_watt[k]),
    ]
    rows = []
    for what, now, unit, change in limits:
        changes = (f"{value:+.3g}" if change else "0" for value in (change, 0.01 * now * change))
        rows.append((what, f"{now:.4g} {unit}", unit, *changes))
    title = f"change of the fleet's bound (now {found.solution.objective:.6f}), first order"
    table = make_table(title, ["of"], ["now", "one more", "changes it by", "1 % more"], rows)
    if problem.access == "ofdma":
        table.caption = "bandwidth: its best subcarrier elsewhere, per MHz; all else at its present set"
    return table
