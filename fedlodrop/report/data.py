"""What a report knows of a run: its files, of which some may be missing, and the numbers derived from them."""

import json
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from conf.ranges import leaves
from fedlodrop.report.html import duration, number, score
from server_app.results import read_rounds, summarize

Record = dict[str, Any]

# Where a score comes from: key in the round record, and the words for it.
SPLITS = (
    ("eval", "test"),
    ("validation", "validation"),
    ("train_eval", "training sample"),
    ("client_eval", "devices, held out"),
    ("in_training", "devices, while training"),
)
_SCORED = ("eval", "validation", "train_eval", "client_eval", "gap")  # of a round record
_NOT_METRICS = ("loss", "num_examples", "devices", "uplink_bytes", "downlink_bytes")
_DERIVED_KEYS = ("run.dir", "run.resume")  # where a run lies, not what it is
_FILES = ("summary", "environment", "failure", "checkpoint/position", "checkpoint.previous/position")


class ReportError(ValueError):
    """A folder of which no report can be made; the message is one line for the user."""


@dataclass(frozen=True)
class Run:
    """One run, as its folder tells it; a file that is missing leaves its part empty."""

    name: str  # shown in legends; unique within a report
    folder: Path
    rounds: list[Record]  # lines of rounds.jsonl
    summary: Record  # summary.json, or what can be derived from the rounds of an unfinished run
    finished: bool  # whether there is a summary.json
    config: Record  # dotted keys
    environment: Record
    failure: str | None  # why it ended early

    @property
    def initial(self) -> Record | None:
        """Scores before training."""
        return self.summary.get("initial")

    @property
    def metric(self) -> str | None:
        """Primary metric, if anything was scored."""
        return self.summary.get("primary_metric")

    @property
    def status(self) -> str:
        """How far it got, in words."""
        done, planned = self.summary.get("rounds_done", 0), self.setting("run.num_rounds")
        rounds = f"{done} of {planned} rounds" if planned else f"{done} rounds"
        how = "ended early (run.patience)" if self.summary.get("ended_early") else "finished"
        return f"{how if self.finished else 'unfinished'}: {rounds}"

    def setting(self, dotted: str) -> Any:
        """Value of a configuration key such as ``run.num_rounds``; None if unknown."""
        return self.config.get(dotted)

    def device_class(self, device: str) -> str:
        """Class of a device by its number within the fleet, empty if unknown."""
        classes, number = self.summary.get("device_classes") or [], re.search(r"(\d+)$", device)
        return str(classes[int(number[1])]) if number and int(number[1]) < len(classes) else ""

    def devices(self) -> list[str]:
        """Identifiers of all devices that were ever asked, device-2 before device-10."""
        found = {str(row["id"]) for record in self.rounds for row in record["devices"]}
        return sorted(found, key=lambda device: (len(device), device))


def load_runs(folders: Sequence[Path]) -> list[Run]:
    """Read the folders of runs and give each a short unique name.

    Raises ReportError if a folder does not hold a run.
    """
    if not folders:
        raise ReportError("a report needs at least one run folder, found none")
    runs: list[Run] = []
    for folder in folders:
        run = _load(Path(folder).resolve())
        names = (run.name, *(f"{run.name} ({k})" for k in range(2, len(folders) + 1)))
        taken = {other.name for other in runs}
        runs.append(replace(run, name=next(name for name in names if name not in taken)))
    return runs


def _load(folder: Path) -> Run:
    if not any((folder / name).is_file() for name in ("rounds.jsonl", "config.yaml", "summary.json")):
        raise ReportError(f"{folder} is not the folder of a run; expected config.yaml and rounds.jsonl in it")
    try:
        rounds, config = read_rounds(folder), leaves(_content(folder / "config.yaml", yaml.safe_load))
        summary, environment, failure, position, previous = (_content(folder / f"{name}.json") for name in _FILES)
    except ValueError as error:
        raise ReportError(f"a file in {folder} is damaged: {error}") from error
    if not (finished := bool(summary)):  # the primary metric of an unfinished run is the first one that was scored
        initial = (position or previous).get("initial") or {}
        scored: Record = next((block["eval"] for block in [*rounds, initial] if block.get("eval")), {})
        metric = next((name for name in scored if name not in _NOT_METRICS), None)
        summary = summarize(rounds, metric or "loss") | {"primary_metric": metric, "initial": initial}
    chosen = str(config.get("run.name", "default"))
    name = folder.name if chosen == "default" else chosen
    return Run(name, folder, rounds, summary, finished, config, environment, failure.get("message"))


def _content(path: Path, read: Callable[[str], Any] = json.loads) -> Record:
    try:  # a half-written side file must not cost the whole report
        found = read(path.read_text(encoding="utf-8", errors="replace")) if path.is_file() else {}
    except (ValueError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def metric_names(runs: Sequence[Run]) -> list[str]:
    """Names of everything that was scored beside the loss, primary metrics first."""
    names = [run.metric for run in runs if run.metric]
    for run in runs:
        for block in [run.initial or {}, *run.rounds]:
            names += [name for name in block.get("eval") or {} if name not in _NOT_METRICS]
    return list(dict.fromkeys(names))


def curve(run: Run) -> list[Record]:
    """Return one row per round with running totals and scores; row 0 is the start, if it was scored.

    Keys: round, time_s, energy_j, upload_bytes, download_bytes, served, asked, and one dictionary of scores per split.
    """
    totals = {"time_s": 0.0, "energy_j": 0.0, "upload_bytes": 0, "download_bytes": 0}
    rows: list[Record] = [{"round": 0, **totals, "served": 0, "asked": 0, **run.initial}] if run.initial else []
    for record in run.rounds:
        devices = record["devices"]
        totals["time_s"] = record["sim_time_s"]
        totals["energy_j"] += record["energy_j"]
        totals["upload_bytes"] += sum(row["uplink_bytes"] for row in devices)
        totals["download_bytes"] += sum(row["downlink_bytes"] for row in devices)
        served = sum(row["scheduled"] for row in devices)
        scores = {key: record[key] for key in _SCORED if record.get(key)}
        if record.get("train_loss") is not None:
            scores["in_training"] = {"loss": record["train_loss"]}
        rows.append({"round": record["round"], **totals, "asked": len(devices), "served": served, **scores})
    return rows


def device_rows(run: Run) -> pd.DataFrame:
    """Return one row per device and round, with the shares of what it used; NaN where it sat out or did not answer.

    Shares: ``band`` of the whole band or of all subcarriers, ``power_share`` of the round's summed transmit power,
    ``time_use`` of the deadline, ``energy_use`` of the energy budget.
    """
    rows = pd.DataFrame([{"round": record["round"], **row} for record in run.rounds for row in record["devices"]])
    if rows.empty:
        return rows
    rows = rows.astype(dict.fromkeys(("dropout_rate", "tx_power_w", "latency_s", "energy_j"), float))
    if "subcarriers" in rows:
        highest = max((m for held in rows["subcarriers"] for m in held or ()), default=-1) + 1
        held = rows["subcarriers"].str.len().astype(float)
        whole = max(run.setting("network.num_subcarriers") or 0, highest, 1)
    else:
        held = rows["bandwidth_hz"].astype(float)
        whole = run.setting("network.total_bandwidth_hz") or held.groupby(rows["round"]).transform("sum")
    shares = {
        "band": held / whole,
        "power_share": rows["tx_power_w"] / rows.groupby("round")["tx_power_w"].transform("sum"),
        "time_use": rows["latency_s"] / rows["deadline_s"],
        "energy_use": rows["energy_j"] / rows["energy_budget_j"],
    }
    known = {name: share.where(rows["scheduled"] & np.isfinite(share)).astype(float) for name, share in shares.items()}
    return rows.assign(**known, reason=rows["reason"].fillna("no reason given"))


def figures_of(runs: Sequence[Run]) -> dict[str, list[str | None]]:
    """Return the key figures of several runs, a value per run, None where it has none."""
    found = [{name: value for name, value, _ in key_facts(run)} for run in runs]
    return {name: [figures.get(name) for figures in found] for figures in found for name in figures}


def key_facts(run: Run) -> list[tuple[str, str, str]]:
    """Return how far a run got, its scores and its costs: name, value, note."""
    s, metric = run.summary, run.metric or "loss"
    final, best, own = s.get("final"), s.get("best"), s.get("personalised")
    facts = [("rounds", run.status.removeprefix("finished: ").removesuffix(" rounds"), "")]
    if run.initial:
        facts.append((f"test {metric}, before training", score(run.initial["eval"].get(metric)), ""))
    if final:
        facts.append((f"test {metric}, last round", score(final["eval"].get(metric)), f"round {final['round']}"))
    if best:
        validated = f"round {best['round']}; validation {score(best['validation'].get(metric))}"
        facts.append((f"test {metric}, best validated round", score(best["eval"].get(metric)), validated))
    if final:
        gap = f"{final['gap']['loss']:+.3f}"
        facts.append(("generalization gap in loss, last round", gap, "test − training sample"))
    if own:
        facts.append((f"{metric} of the devices' own models", score(own.get(metric)), "held-out examples, last round"))
    asked, served = s.get("devices_asked", 0), s.get("devices_scheduled", 0)
    out = "times asked, over all rounds" if served == asked else f"{asked - served} times one sat out"
    dense = 4 * s.get("adapter_parameters", 0) * s.get("devices_answered", 0)  # bytes
    share = 100 * s["uplink_adapter_bytes"] / dense if dense else None
    deadline = number(run.setting("budget.deadline_s"), 3, "s")
    memory = f"peak memory {s['peak_rss_mib']:.0f} MiB" if "peak_rss_mib" in s else "finished rounds only"
    return [
        *facts,
        ("uploaded", number(s["uplink_bytes"] / 1e6, 4, "MB"), "all devices and rounds"),
        ("adapter part of dense fp32", number(share, 2, "%"), "uploaded, from the devices that answered"),
        ("downloaded", number(s["downlink_bytes"] / 1e6, 4, "MB"), "all devices and rounds"),
        ("simulated time", duration(s.get("sim_time_s")), f"deadline {deadline} in each round"),
        ("simulated energy", number(s.get("energy_j"), 3, "J"), "all devices and rounds"),
        ("devices took part", f"{served} of {asked}", out),
        ("failures", str(s.get("failures", 0)), "answers that were not used"),
        ("wall time", duration(s.get("wall_s", s.get("train_wall_s"))), memory),
    ]


def cause(reason: str) -> str:
    """Return the part of a reason that repeats from device to device: before the details, without numbers."""
    return re.sub(r"(?<![\w.])[-+]?\d[\d.]*(e[-+]?\d+)?", "…", reason.split(":", 1)[0]).strip()


def differing_settings(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Return the settings in which several runs differ: dotted key -> one value per run."""
    keys = dict.fromkeys(key for run in runs for key in run.config if key not in (*_DERIVED_KEYS, "run.name"))
    found = {key: [run.setting(key) for run in runs] for key in keys}
    return {key: values for key, values in found.items() if len(set(map(repr, values))) > 1}


def command(run: Run) -> str:
    """Return the command that repeats the run, without the place of its results; empty if it is unknown."""
    if (overrides := run.environment.get("overrides")) is None:
        return ""
    items = shlex.split(overrides)
    return shlex.join(["fedlodrop", "run", *(item for item in items if item.partition("=")[0] not in _DERIVED_KEYS)])
