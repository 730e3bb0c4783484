"""The runs of a study as tables: one row per run and evaluated round, and one row per run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from conf.compose import ConfigError
from fedlodrop.study.plan import FINAL, Job
from fedlodrop.study.runner import FINISHED, message, status
from server_app.results import read_rounds, write_atomic

KEYS = ["setting", "method", "seed"]
# What a round is judged by; every view keeps these columns.
SCORES = [
    "test_metric",
    "test_loss",
    "validation_metric",
    "validation_loss",
    "train_metric",
    "train_loss",
    "gap_metric",
    "gap_loss",
]
COSTS = ["uplink_bytes", "uplink_adapter_bytes", "downlink_bytes", "sim_time_s", "energy_j"]
ROUND_COLUMNS = [*KEYS, "round", *SCORES, *COSTS, "dropout_rate", "devices", "num_examples"]


def collect(jobs: Sequence[Job], folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read the jobs' folders.

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
        row: dict[str, Any] = {
            "setting": job.setting,
            "method": job.method,
            "seed": job.seed,
            "phase": job.phase,
            "choice": job.choice,
            "status": state or "missing",
            "message": message(folder / job.folder),
        }
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
        if part is None:  # a personalised method has no global model to score
            continue
        row |= {
            f"{name}_round": part["round"],
            f"{name}_test_metric": part["eval"][metric],
            f"{name}_test_loss": part["eval"]["loss"],
            f"{name}_validation_metric": part["validation"][metric],
            f"{name}_validation_loss": part["validation"]["loss"],
        }
    own = summary.get("personalised") or {}
    row |= {"personalised_metric": own.get(metric), "personalised_loss": own.get("loss")}
    for name in (
        "uplink_bytes",
        "downlink_bytes",
        "uplink_adapter_bytes",
        "setup_bytes",
        "adapter_parameters",
        "head_parameters",
        "sim_time_s",
        "energy_j",
        "failures",
        "cpu_s",
        "wall_s",
    ):
        row[name] = summary.get(name)
    return row


def _round_rows(job: Job, folder: Path, summary: dict[str, Any]) -> list[dict[str, Any]]:
    metric = summary["primary_metric"]
    place = {"setting": job.setting, "method": job.method, "seed": job.seed}
    totals = dict.fromkeys(COSTS, 0.0)
    rows = []
    if summary["final"] is None:
        return []  # no round has a global score; totals and the personalised one stand in ``runs``
    if summary.get("initial"):
        rows.append(place | {"round": 0} | _scores(summary["initial"], metric) | totals | {"devices": 0})
    for record in read_rounds(folder):
        served = [device for device in record["devices"] if device["scheduled"]]
        for name in ("uplink_bytes", "uplink_adapter_bytes", "downlink_bytes"):
            totals[name] += sum(device[name] for device in record["devices"])
        totals["sim_time_s"] = record["sim_time_s"]
        totals["energy_j"] += record["energy_j"]
        if record.get("eval"):
            rates = [device["dropout_rate"] for device in served]
            sizes = [device["num_examples"] for device in record["devices"]]
            shared = {
                "dropout_rate": sum(rates) / len(rates) if rates else None,
                "devices": len(served),
                "num_examples": sum(sizes) / len(sizes) if sizes else None,
            }
            rows.append(place | {"round": record["round"]} | _scores(record, metric) | totals | shared)
    return rows


def _scores(record: dict[str, Any], metric: str) -> dict[str, float]:
    test, validation, train, gap = record["eval"], record["validation"], record["train_eval"], record["gap"]
    return {
        "test_metric": test[metric],
        "test_loss": test["loss"],
        "validation_metric": validation[metric],
        "validation_loss": validation["loss"],
        "train_metric": train[metric],
        "train_loss": train["loss"],
        "gap_metric": gap[metric],
        "gap_loss": gap["loss"],
    }


def write_tables(folder: Path, rounds: pd.DataFrame, runs: pd.DataFrame) -> None:
    """Write ``rounds.csv`` and ``runs.csv``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in (("rounds", rounds), ("runs", runs)):
        write_atomic(folder / f"{name}.csv", table.to_csv(index=False, float_format="%.6g", lineterminator="\n"))


def read_rounds_table(path: Path) -> pd.DataFrame:
    """Read a table of rounds that `write_tables` wrote.

    Raises
    ------
    ConfigError
        If it is missing or lacks a column.
    """
    if not path.is_file():
        raise ConfigError(f"expected the table rounds.csv of a study, found no file {path}")
    table = pd.read_csv(path, dtype={"setting": str, "method": str}, keep_default_na=True)
    missing = [name for name in ROUND_COLUMNS if name not in table.columns]
    if missing:
        raise ConfigError(f"{path}: expected the columns of a study's rounds.csv, found none named {missing[0]!r}")
    return table
