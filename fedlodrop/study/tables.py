"""The runs of a study and the jobs of a sweep as tables (CSV, Parquet)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from conf.compose import ConfigError
from fedlodrop.study.figures import draw_jobs
from fedlodrop.study.plan import FINAL, Job
from fedlodrop.study.runner import FINISHED, message, status, tasks_of
from optimizer.atomic import written_whole
from server_app.results import leaves, read_rounds, write_atomic

KEYS = ["setting", "method", "seed"]
# What a round is judged by; every view keeps these columns.
_PARTS = {"test": "eval", "validation": "validation", "train": "train_eval", "gap": "gap"}
SCORES = [f"{name}_{score}" for name in _PARTS for score in ("metric", "loss")]
_BYTES = ["uplink_bytes", "uplink_adapter_bytes", "downlink_bytes"]
COSTS = [*_BYTES, "sim_time_s", "energy_j"]
ROUND_COLUMNS = [*KEYS, "round", *SCORES, *COSTS, "dropout_rate", "devices", "num_examples"]
_TOTALS = (
    "uplink_bytes downlink_bytes uplink_adapter_bytes setup_bytes adapter_parameters head_parameters sim_time_s "
    "energy_j failures cpu_s wall_s"
).split()


def collect(jobs: Sequence[Job], folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read the folders of a study's jobs.

    Returns
    -------
    tuple of DataFrame
        (rounds, runs). ``rounds`` has `ROUND_COLUMNS` of the finished final runs: round 0 is the untrained model, costs
        are sums from the first round on, ``dropout_rate`` is the mean over the devices served, ``num_examples`` over
        those asked, ``metric`` is the task's primary one. Personalised methods have no rows there, only in ``runs``.
        ``runs`` has one row per job of any phase: status, message, choice, and the totals of its summary.
    """
    rounds, runs = [], []
    for job in jobs:
        state = status(folder / job.folder)
        row: dict[str, Any] = {name: getattr(job, name) for name in (*KEYS, "phase", "choice")}
        row |= {"status": state or "missing", "message": message(folder / job.folder)}
        if state == FINISHED:
            summary = json.loads((folder / job.folder / "summary.json").read_text())
            row |= _run_row(summary)
            if job.phase == FINAL:
                rounds += _round_rows(job, folder / job.folder, summary)
        runs.append(row)
    return pd.DataFrame(rounds, columns=ROUND_COLUMNS), pd.DataFrame(runs)


def _run_row(summary: dict[str, Any]) -> dict[str, Any]:
    metric = summary["primary_metric"]
    row = {"metric": metric, "rounds": summary["rounds_done"]}
    for name in ("final", "best"):
        part = summary[name]
        if part is not None:  # a personalised method has no global model to score
            row[f"{name}_round"] = part["round"]
            for data, block in (("test", "eval"), ("validation", "validation")):
                row[f"{name}_{data}_metric"] = part[block][metric]
                row[f"{name}_{data}_loss"] = part[block]["loss"]
    own = summary.get("personalised") or {}
    row |= {"personalised_metric": own.get(metric), "personalised_loss": own.get("loss")}
    return row | {name: summary.get(name) for name in _TOTALS}


def _round_rows(job: Job, folder: Path, summary: dict[str, Any]) -> list[dict[str, Any]]:
    if summary["final"] is None:
        return []  # no round has a global score; totals and the personalised one stand in ``runs``
    metric = summary["primary_metric"]
    place = {name: getattr(job, name) for name in KEYS}
    totals = dict.fromkeys(COSTS, 0.0)
    rows = []
    if summary.get("initial"):
        rows.append(place | {"round": 0} | _scores(summary["initial"], metric) | totals | {"devices": 0})
    for record in read_rounds(folder):
        devices = record["devices"]
        for name in _BYTES:
            totals[name] += sum(device[name] for device in devices)
        totals["sim_time_s"] = record["sim_time_s"]
        totals["energy_j"] += record["energy_j"]
        if record.get("eval"):
            rates = [device["dropout_rate"] for device in devices if device["scheduled"]]
            sizes = [device["num_examples"] for device in devices]
            means = {"dropout_rate": _mean(rates), "devices": len(rates), "num_examples": _mean(sizes)}
            rows.append(place | {"round": record["round"]} | _scores(record, metric) | totals | means)
    return rows


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _scores(record: dict[str, Any], metric: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, block in _PARTS.items():
        found |= {f"{name}_metric": record[block][metric], f"{name}_loss": record[block]["loss"]}
    return found


def write_tables(folder: Path, rounds: pd.DataFrame, runs: pd.DataFrame) -> None:
    """Write ``rounds.csv`` and ``runs.csv``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in (("rounds", rounds), ("runs", runs)):
        write_atomic(folder / f"{name}.csv", table.to_csv(index=False, float_format="%.6g", lineterminator="\n"))


def read_rounds_table(path: Path) -> pd.DataFrame:
    """Read a table of rounds that `write_tables` wrote; ConfigError if it is missing or lacks a column."""
    if not path.is_file():
        raise ConfigError(f"expected the table rounds.csv of a study, found no file {path}")
    table = pd.read_csv(path, dtype={"setting": str, "method": str}, keep_default_na=True)
    missing = [name for name in ROUND_COLUMNS if name not in table.columns]
    if missing:
        raise ConfigError(f"{path}: expected the columns of a study's rounds.csv, found none named {missing[0]!r}")
    return table


def read_jobs(folder: Path) -> pd.DataFrame:
    """Return one row per job of a sweep: overrides, the summary flattened with dots, status, message, folder."""
    rows, names = [], []
    for path, record in tasks_of(folder):
        overrides = record["overrides"]
        names += [key for key in overrides if key not in names]
        summary = path / "summary.json"
        content = leaves(json.loads(summary.read_text()) if summary.exists() else {})
        flat = {key: json.dumps(value) if isinstance(value, list) else value for key, value in content.items()}
        end = {"status": record["status"], "message": record["message"], "folder": path.name}
        rows.append(overrides | {key: value for key, value in flat.items() if key not in overrides} | end)
    table = pd.DataFrame(rows)
    last = ["status", "message", "folder"] if rows else []
    table = table[[*names, *(name for name in table.columns if name not in (*names, *last)), *last]]
    for name in names:
        numbers = pd.to_numeric(table[name], errors="coerce")
        if numbers.notna().all():
            table[name] = numbers
    return table.sort_values(names, kind="stable", ignore_index=True) if names else table


def write_jobs(folder: Path) -> pd.DataFrame:
    """Write jobs.csv, jobs.parquet and jobs.png of a sweep and return the table."""
    table = read_jobs(folder)
    write_atomic(folder / "jobs.csv", table.to_csv(index=False))
    with written_whole(folder / "jobs.parquet") as temporary:
        table.to_parquet(temporary, index=False)
    if "primary_metric" in table and table["primary_metric"].notna().any():
        draw_jobs(table, folder / "jobs.png", [name for name in swept_keys(table) if name != "run.seed"])
    return table


def swept_keys(table: pd.DataFrame) -> list[str]:
    """Return the override columns of a table of jobs that take more than one value."""
    columns = list(table.columns)  # overrides come first
    first = columns.index("rounds_done") if "rounds_done" in columns else columns.index("status")
    return [name for name in columns[:first] if table[name].nunique(dropna=False) > 1]
