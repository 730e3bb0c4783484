"""What a configuration will cost, and the plan of its first round, without training: `fedlodrop run --dry-run`.

The server's plan needs no weights, devices or Flower. Channel and participants depend on the seed and the round alone,
so the resource problem of any round can be built again; `explain` does so.

Memory is estimated from counts: weights in float32; for every trained value its gradient and the optimizer's two
moments; what a backward pass keeps, at most 2 b l h (34 + 5 a l/h) bytes per layer at float32 for b texts of l tokens,
hidden size h and a heads (Korthikanti et al., MLSys 2023, arXiv 2205.05198, count half of it for 16 bits); and what
this process takes with its libraries loaded. Frozen weights keep less, so the figure is an upper estimate.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from adapter.protocol import DeviceAnnouncement
from conf.convert import model_settings, partition_settings
from conf.schema import Config
from fedlodrop.console.printing import make_table, print_lines
from optimizer.sensitivity import least_cell, most_served
from server_app.build import build_fleet, build_strategy, describe, load_data, sampled_notes, text_sample
from strategy import LoraStrategy
from strategy.round.ledger import RoundLedger
from strategy.round.roster import Directory
from tasks.data.load import TaskData
from tasks.data.partition import partition_examples
from tasks.models.build import ModelDescription
from tasks.models.tokenizer import HashTokenizer, TextTokenizer, load_tokenizer
from tasks.settings import ModelError
from wireless.cost import payload_bits

_MIB = 1024.0**2
_MOMENTS = {"adamw": 2, "sgd": 1}
_MOST_ROWS = 30


@dataclass(frozen=True)
class PlannedFederation:
    """What can be known of a federation before it starts."""

    config: Config
    task: TaskData
    model: ModelDescription  # layout of the adapter, operations, size of the base
    longest_text: int  # tokens of the longest of the sampled training texts
    strategy: LoraStrategy  # the method, with fleet, directory and allocator
    notes: tuple[str, ...]  # what was assumed because something is not at hand


def plan_federation(config: Config, known_examples: dict[int, int] | None = None) -> PlannedFederation:
    """Build everything that planning needs, from configuration files alone: a hub model needs its config.json only.

    ``known_examples`` are the training examples of devices by index; the partition tells those of the others.
    """
    task, settings, notes = load_data(config), model_settings(config), []
    try:
        tokenizer: TextTokenizer = load_tokenizer(settings)
    except ModelError:
        tokenizer = HashTokenizer(settings.max_tokens)
        notes.append("no tokenizer is at hand: a word is counted as one token, which is somewhat too few")
    sizes = [int(part.size) for part in partition_examples(task.train, **partition_settings(config))]
    sizes = [(known_examples or {}).get(device, size) for device, size in enumerate(sizes)]
    fleet = build_fleet(config, task, tokenizer, tuple(sizes))
    announced = tuple(DeviceAnnouncement(device, size) for device, size in enumerate(sizes))
    directory = Directory(tuple(range(len(sizes))), announced)
    model = describe(config, task)
    strategy = build_strategy(config, model.spec, fleet, directory)
    longest = int(text_sample(config, task.train, tokenizer).lengths.max())
    return PlannedFederation(config, task, model, longest, strategy, (*notes, *sampled_notes(config, task, tokenizer)))


def estimate_memory(planned: PlannedFederation) -> dict[str, float]:
    """Estimate bytes by the module's formula: what a worker holds at its peak, by purpose, and the server's sums."""
    config, model = planned.config, planned.model
    trained = model.spec.droppable_parameters + model.spec.head_parameters
    tokens = min(planned.longest_text, config.model.max_tokens)
    per_layer = 2.0 * config.training.batch_size * tokens * (34.0 * model.hidden_size + 5.0 * model.num_heads * tokens)
    layers = model.num_layers if config.lora.layers == "all" else min(int(config.lora.layers), model.num_layers)
    return {
        "libraries": float(psutil.Process().memory_info().rss),
        "base": 4.0 * model.base_parameters,
        "trained": 4.0 * trained * (2 + _MOMENTS[config.training.optimizer]),
        "activations": layers * per_layer,
        "sums": 12.0 * trained,  # of the server: 64-bit sums, and the adapter itself
    }


def dry_run(config: Config, console: Console) -> bool:
    """Print sizes, costs and the first round's plan; return whether anybody can be served."""
    planned = plan_federation(config)
    ledger = planned.strategy.plan(1)
    problem, served = ledger.problem, ledger.solution.scheduled
    gamma = np.nan_to_num(ledger.solution.dropout_rate)
    up = np.where(served, payload_bits(problem.fixed_bits, problem.droppable_bits, gamma), 0.0)  # zero: it sits out
    down = np.where(served, payload_bits(*problem.downlink_payload, gamma), 0.0)
    console.print(_sizes(planned, ledger, up, down))
    console.print(_plan(planned, ledger, up))
    lines = [f"and {problem.num_devices - _MOST_ROWS} more devices"] if problem.num_devices > _MOST_ROWS else []
    if served.any():
        out = [f"{problem.device_ids[k]} sits out: {ledger.solution.reasons[k]}" for k in np.flatnonzero(~served)]
        lines += out[:_MOST_ROWS] + ([f"and {len(out) - _MOST_ROWS} more sit out"] if out[_MOST_ROWS:] else [])
    lines += [f"note: {note}" for note in (*planned.notes, *ledger.solution.notes)]
    print_lines(console, lines if served.all() else [*lines, *_needed(ledger)])
    return bool(served.any())


def _needed(ledger: RoundLedger) -> list[str]:
    """Lines about the smallest settings that serve everybody, and half, in this round."""
    problem, lines = ledger.problem, []
    keys = {"deadline_s": "budget.deadline_s", "energy_budget_j": "budget.energy_j"}
    for words, count in (("half", -(-problem.num_devices // 2)), ("everybody", problem.num_devices)):
        if most_served(problem) >= count:
            continue
        ways = []
        for cell in least_cell(problem, count):
            named = {keys.get(field, "network.total_bandwidth_hz"): value for field, value in cell.items()}
            if np.isfinite(list(named.values())).all():
                ways.append(" ".join(f"{key}={_rounded_up(value)}" for key, value in named.items()))
        asked = f"to serve {words} in round 1 ({count} of {problem.num_devices})"
        lines.append(f"{asked}: {', or '.join(ways) or 'no cell does'}")
    return [*lines, "other rounds fade otherwise: leave a margin"] if lines else []


def _rounded_up(value: float) -> str:
    """Return three digits, never less than the value."""
    step = 10.0 ** (math.floor(math.log10(value)) - 2)
    return f"{math.ceil(value / step - 1e-9) * step:.6g}"


def _sizes(planned: PlannedFederation, ledger: RoundLedger, up: np.ndarray, down: np.ndarray) -> Table:
    """Table of the model, the memory and one round's totals; uplink and downlink of every device [bit]."""
    config, model, memory = planned.config, planned.model, estimate_memory(planned)
    problem, solution = ledger.problem, ledger.solution
    served, rounds = solution.scheduled, config.run.num_rounds
    dense = payload_bits(problem.fixed_bits, problem.droppable_bits, 0.0)
    share = f" ({up.sum() / dense[served].sum():.0%} of dense)" if served.any() else ""
    latency_s, energy_j = float(solution.latency_s[served].max(initial=0.0)), float(solution.energy_j[served].sum())
    total = f"{rounds * (up.sum() + down.sum()) / 8e6:,.2f} MB, {rounds * latency_s:.4g} s, {rounds * energy_j:.4g} J"
    parts = ("libraries", "base", "trained", "activations")
    rows = {
        "base model, frozen": f"{model.base_parameters:,} parameters",
        "adapter + head": f"{model.spec.droppable_parameters:,} + {model.spec.head_parameters:,} parameters",
        "memory of a worker, at most about": _mib(sum(memory[name] for name in parts)),
        **{f"  of it {name}": _mib(memory[name]) for name in parts},
        "memory of the server, about": _mib(sum(memory[name] for name in ("libraries", "base", "sums"))),
        "devices served in round 1": f"{int(served.sum())} of {problem.num_devices} asked",
        "upload of round 1, all devices": f"{up.sum() / 8e6:,.3f} MB{share}",
        "download of round 1, all devices": f"{down.sum() / 8e6:,.3f} MB",
        "upload of a device: least, most, dense": f"{_range(up[served] / 8e3)}, {dense.max() / 8e3:,.1f} kB",
        "download of a device: least, most": f"{_range(down[served] / 8e3)} kB",
        "simulated latency of round 1": f"{latency_s:.3g} s of {problem.deadline_s:g} s",
        "simulated energy of round 1, all devices": f"{energy_j:.3g} J",
        f"{rounds} rounds like it": total,
    }
    title = f"{config.strategy.name} with allocator {config.allocator.name} on {planned.task.name}"
    return make_table(title, [""], ["value"], rows.items())


def _plan(planned: PlannedFederation, ledger: RoundLedger, up: np.ndarray) -> Table:
    problem, solution, free = ledger.problem, ledger.solution, ledger.solution.cpu_hz is not None
    certified = f", certified gap {solution.gap:.1e}" if np.isfinite(solution.lower_bound) else ""
    title = f"plan of round 1: {solution.method}, {solution.status.value}, bound {solution.objective:.6f}{certified}"
    power_w, band_hz = [np.sum(watts) for watts in solution.tx_power_w], solution.bandwidth_hz
    carriers = [np.sum(solution.subcarrier_owner == k) for k in range(problem.num_devices)]
    columns: dict[str, tuple[Any, str]] = {"texts": (problem.num_examples, ".0f")}  # values, format
    columns |= {"dropout": (solution.dropout_rate, ".3f")}
    columns |= {"carriers": (carriers, "d")} if band_hz is None else {"kHz": (band_hz / 1e3, ".2f")}
    columns |= {"W": (power_w, ".4f")} | ({"GHz": (ledger.clock_hz / 1e9, ".2f")} if free else {})
    columns |= {"s": (solution.latency_s, ".2f"), "J": (solution.energy_j, ".2f")}
    columns |= {"of J": (problem.energy_budget_j, "g"), "up kB": (up / 8e3, ".1f")}
    rows = []
    for k in range(min(problem.num_devices, _MOST_ROWS)):
        kind = planned.strategy.fleet.device_class[int(ledger.devices[k])]
        cells = [format(values[k], form) for values, form in columns.values()]
        rows.append([problem.device_ids[k], kind, *(cells if solution.scheduled[k] else [cells[0], "out"])])
    return make_table(title, ["device", "class"], list(columns), rows)


def _mib(value: float) -> str:
    return f"{value / _MIB:,.0f} MiB" if value < 10240 * _MIB else f"{value / _MIB / 1024:,.1f} GiB"


def _range(values: np.ndarray) -> str:
    return f"{values.min():,.1f}, {values.max():,.1f}" if values.size else "none"
