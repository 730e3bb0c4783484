"""Why a device got its dropout rate, bandwidth and power in a round, in words: `fedlodrop explain`.

The round's resource problem is built again from the run's configuration (the channel is a function of seed and round)
and checked against what was recorded: the least power for the recorded grant must be the recorded power, and the
recorded rates must be worth the recorded objective.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from conf.compose import ConfigError, read_config
from conf.schema import Config
from fedlodrop.console.planning import plan_federation
from optimizer.checker import make_solution
from optimizer.fdma.bandwidth_curve import BandwidthCurve
from optimizer.fdma.completion import power_for
from optimizer.ofdma.completion import least_power
from optimizer.ofdma.model import build_model
from optimizer.problem import ResourceProblem, Solution, SolverStatus
from optimizer.sensitivity import OPTIMAL_METHODS, Sensitivity, least_needed, sensitivity
from server_app.results import read_rounds

_CLOSE = 1e-6  # relative difference between record and reconstruction that is rounding
_RIGID = ("fixed", "none", "random", "common")


@dataclass(frozen=True)
class Explanation:
    """One device in one round.

    Parameters
    ----------
    device, device_class : str
        Who.
    server_round : int
        When.
    position : int
        Its place in the round's problem.
    problem, solution, prices
        The round again, and what its limits cost.
    reasons : list of str
        Sentences.
    differences : list of str
        Where the reconstruction is not what was recorded.
    """

    device: str
    device_class: str
    server_round: int
    position: int
    problem: ResourceProblem
    solution: Solution
    prices: Sensitivity
    reasons: list[str]
    differences: list[str]


def explain(folder: Path, server_round: int, device: str) -> Explanation:
    """Explain one device's part in one round of a run.

    Parameters
    ----------
    folder : Path
        Of the run.
    server_round : int
        From 1.
    device : str
        Name of the device, or its index in the fleet.

    Raises
    ------
    ConfigError
        If the run has no such round, or the device was not asked in it.
    """
    records = {record["round"]: record for record in read_rounds(folder)}
    if server_round not in records:
        raise ConfigError(
            f"--round must be one of the rounds 1 to {max(records, default=0)} of {folder}, found {server_round}"
        )
    record = records[server_round]
    rows = {row["id"]: row for row in record["devices"]}
    name = device if device in rows else f"device-{device}"
    if name not in rows:
        raise ConfigError(
            f"--device must be one of those asked in round {server_round} ({', '.join(rows)}), found {device!r}"
        )
    config = read_config(folder / "config.yaml")
    examples = {
        int(row["id"].split("-")[1]): row["num_examples"] for each in records.values() for row in each["devices"]
    }
    _check_fits(folder, config, record, max(examples))
    planned = plan_federation(config, examples)
    devices = np.array([int(each.split("-")[1]) for each in rows])  # those that were there
    problem = planned.strategy.problem_of(server_round, devices)
    solution = recorded_solution(problem, record)
    prices = sensitivity(problem, solution)
    k = list(rows).index(name)
    return Explanation(
        name,
        planned.strategy.fleet.device_class[devices[k]],
        server_round,
        k,
        problem,
        solution,
        prices,
        _sentences(problem, solution, prices, k),
        _differences(problem, solution, record),
    )


def _check_fits(folder: Path, config: Config, record: dict[str, Any], last: int) -> None:
    """Refuse a configuration that a run's rounds cannot have been made with: another fleet, another way to share the band."""
    network, rows = config.network, record["devices"]
    access = "ofdma" if any("subcarriers" in row for row in rows) else "fdma"
    highest = max((m for row in rows for m in row.get("subcarriers", ())), default=-1)
    found = {
        f"network.num_devices={network.num_devices} and a device-{last}": last >= network.num_devices,
        f"network.access={network.access} and a plan for {access}": network.access != access,
        f"network.num_subcarriers={network.num_subcarriers} and a subcarrier {highest}": access == "ofdma"
        and highest >= (network.num_subcarriers or 0),
    }
    wrong = next((what for what, is_so in found.items() if is_so), None)
    if wrong:
        raise ConfigError(
            f"{folder}: config.yaml is not what its rounds were made with ({wrong}): it was changed, or the run was continued "
            "with other settings; restore the file to have them explained"
        )


def recorded_solution(problem: ResourceProblem, record: dict[str, Any]) -> Solution:
    """Return a recorded round's plan as a solution of the reconstructed problem; powers are the least for the grants."""
    rows, plan = record["devices"], record["plan"]
    on = np.array([row["scheduled"] for row in rows], dtype=np.bool_)
    gamma = np.array([row["dropout_rate"] or 0.0 for row in rows])
    clock = np.array([row.get("cpu_hz") or own for row, own in zip(rows, problem.cpu_hz, strict=True)])
    fixed = problem.at_clock(clock)
    power, band, owner = np.zeros_like(problem.channel_gain), None, None
    if problem.access == "fdma":
        band = np.array([row["bandwidth_hz"] or 0.0 for row in rows])
        if on.any():
            power[on] = power_for(fixed.subset(on), gamma[on], band[on])
    else:
        owner = np.full(problem.num_subcarriers, -1)
        for k, row in enumerate(rows):
            owner[row["subcarriers"]] = k
        if on.any():
            place = np.full(problem.num_devices + 1, -1)
            place[np.flatnonzero(on)] = np.arange(int(on.sum()))
            power[on] = least_power(build_model(fixed).subset(on), place[owner], gamma[on])
    bound = plan["lower_bound"]
    solution = make_solution(
        fixed,
        method=plan["solver"],
        status=SolverStatus(plan.get("status", "feasible")),
        scheduled=on,
        dropout_rate=gamma,
        tx_power_w=power,
        bandwidth_hz=band,
        subcarrier_owner=owner,
        lower_bound=-np.inf if bound is None else bound,
        reasons=tuple(row["reason"] or "" for row in rows),
    )
    return solution if problem.min_cpu_hz is None else replace(solution, cpu_hz=clock)


def _differences(problem: ResourceProblem, solution: Solution, record: dict[str, Any]) -> list[str]:
    """Say where the reconstruction is not what was recorded."""
    pairs: list[tuple[str, float, float]] = [("objective", solution.objective, float(record["plan"]["objective"]))]
    for k, row in enumerate(record["devices"]):
        pairs.append((f"{row['id']}: energy budget [J]", float(problem.energy_budget_j[k]), row["energy_budget_j"]))
        if row["scheduled"]:
            pairs.append((f"{row['id']}: transmit power [W]", float(np.sum(solution.tx_power_w[k])), row["tx_power_w"]))
    return [
        f"{what}: recorded {said:.9g}, built again {now:.9g}"
        for what, now, said in pairs
        if not abs(now - said) <= _CLOSE * max(abs(said), 1e-12)
    ]


def _sentences(problem: ResourceProblem, solution: Solution, prices: Sensitivity, k: int) -> list[str]:
    if not solution.scheduled[k]:
        return _why_not(problem, solution, k)
    gamma, best, method = float(solution.dropout_rate[k]), float(prices.best_rate[k]), solution.method
    found = []
    if method in _RIGID:
        found.append(f"The rule {method!r} decides the dropout rate; the limits below do not move it.")
    elif prices.at_best[k]:
        found.append(
            f"The dropout rate is where the bound itself is smallest ({best:.3f}): no resource holds this device back."
        )
    elif prices.at_most[k]:
        most = f"budget.max_dropout_rate = {problem.max_dropout_rate:g}"
        found.append(f"The dropout rate is the largest allowed ({most}): without it, even less would be sent.")
    else:
        found.append(
            f"The bound alone would choose {best:.3f}; what binds below pushes the dropout rate up to {gamma:.3f}."
        )
    if prices.on_deadline[k] and prices.per_second[k] < 0:
        found.append(f"The deadline of {problem.deadline_s:g} s binds: it computes and sends until the last moment.")
    elif prices.on_deadline[k]:
        found.append(f"It sends until the deadline of {problem.deadline_s:g} s, for a slower upload costs less energy.")
    if prices.on_energy[k]:
        found.append(
            f"The energy budget of {problem.energy_budget_j[k]:.4g} J binds: everything computing leaves is radiated."
        )
    if prices.on_power[k]:
        found.append(f"The power cap of {problem.max_tx_power_w[k]:.4g} W binds, not the battery.")
    if not prices.on_energy[k] and not prices.on_power[k]:
        found.append("Neither battery nor power cap binds: spare bandwidth is used to send at less power.")
    if prices.bandwidth_price[k] > 0:
        shared = (
            "bandwidth has one price for all devices"
            if method in OPTIMAL_METHODS and problem.access == "fdma"
            else "its own worth"
        )
        found.append(f"Bandwidth binds: {shared}, {prices.bandwidth_price[k] * 1e3:.3g} of the bound per kHz.")
    elif method not in _RIGID:
        found.append("Bandwidth does not bind for it: more would not lower its part of the bound.")
    return found


def _why_not(problem: ResourceProblem, solution: Solution, k: int) -> list[str]:
    found = [f"It sat out: {solution.reasons[k] or 'no reason given'}."]
    names = {
        "deadline_s": ("deadline", "s"),
        "energy_budget_j": ("energy budget", "J"),
        "max_tx_power_w": ("power cap", "W"),
    }
    fixed = problem if solution.cpu_hz is None else problem.at_clock(solution.cpu_hz)
    needs = {field: least_needed(fixed, k, field) for field in names}
    now = {field: float(np.ravel(getattr(problem.subset(np.array([k])), field))[0]) for field in names}
    if all(needs[field] == now[field] for field in names):
        found.append("Alone it could have been served; together with the others it does not fit.")
        if problem.access == "fdma":
            top = np.full(problem.num_devices, problem.max_dropout_rate)
            need = float(BandwidthCurve.of(fixed).bandwidth_hz(top)[k])
            found.append(
                f"At the largest dropout rate it needs {need / 1e3:.4g} kHz of {problem.total_bandwidth_hz / 1e3:.4g} kHz."
            )
        return found
    for field, (words, unit) in names.items():
        if np.isfinite(needs[field]):
            found.append(
                f"With the whole band to itself, a {words} of {needs[field]:.4g} {unit} (now {now[field]:.4g}) would serve it."
            )
        else:
            found.append(f"No {words} would serve it alone.")
    return found


def print_explanation(found: Explanation, console: Console) -> None:
    """Print an explanation: what it got, why, and what more would buy."""

    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    k, problem, solution = found.position, found.problem, found.solution
    say(f"{found.device} ({found.device_class}) in round {found.server_round}, planned by {solution.method}")
    if solution.scheduled[k]:
        say("  got   " + _grant(found))
        energy = f"{solution.energy_j[k]:.4g} J of {problem.energy_budget_j[k]:.4g} J"
        say(f"  uses  {solution.latency_s[k]:.4g} s of {problem.deadline_s:g} s · {energy}")
    for sentence in found.reasons:
        say(f"  {sentence}")
    if solution.scheduled[k]:
        console.print(_prices_table(found))
    if found.differences:
        say("the round built again from config.yaml differs from the record; the words above are about the former:")
        for line in found.differences:
            say(f"  {line}")
    else:
        say("The round was built again from config.yaml and agrees with the record.")


def _grant(found: Explanation) -> str:
    k, problem, solution = found.position, found.problem, found.solution
    power = f"{np.sum(solution.tx_power_w[k]):.4g} W of {problem.max_tx_power_w[k]:.4g} W"
    if solution.bandwidth_hz is not None:
        band = float(solution.bandwidth_hz[k])
        share = f"{band / 1e3:.4g} kHz ({band / problem.total_bandwidth_hz:.1%} of the band)"
    else:
        share = f"{int(np.sum(solution.subcarrier_owner == k))} of {problem.num_subcarriers} subcarriers"
    clock = "" if solution.cpu_hz is None else f" · {solution.cpu_hz[k] / 1e9:.3g} GHz"
    return f"dropout rate {solution.dropout_rate[k]:.4f} · {share} · {power}{clock}"


def _prices_table(found: Explanation) -> Table:
    """What one more unit would change, to first order, and one per cent more of what there is."""
    k, problem, prices = found.position, found.problem, found.prices
    table = Table(
        title=f"change of the fleet's bound (now {found.solution.objective:.6f}), first order",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for name in ("of", "now", "one more", "changes it by", "1 % more"):
        table.add_column(name, justify="left" if name == "of" else "right", no_wrap=True)
    whole = prices.per_second.sum()
    band = (
        "bandwidth of the cell"
        if problem.access == "fdma" and found.solution.method in OPTIMAL_METHODS
        else "bandwidth for this device"
    )
    rows = [
        (band, problem.total_bandwidth_hz / 1e6, "MHz", -prices.bandwidth_price[k] * 1e6),
        ("deadline", problem.deadline_s, "s", whole),
        ("  through this device", problem.deadline_s, "s", prices.per_second[k]),
        ("its energy budget", problem.energy_budget_j[k], "J", prices.per_joule[k]),
        ("its power cap", problem.max_tx_power_w[k], "W", prices.per_watt[k]),
    ]
    for what, now, unit, change in rows:
        small = 0.01 * now * change
        table.add_row(
            what, f"{now:.4g} {unit}", unit, f"{change:+.3g}" if change else "0", f"{small:+.3g}" if change else "0"
        )
    if problem.access == "ofdma":
        table.caption = "bandwidth: its best subcarrier elsewhere, per MHz; all else at its present set"
    return table
