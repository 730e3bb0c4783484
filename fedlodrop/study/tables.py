"""The runs of a study and the jobs of a sweep as tables (CSV, Parquet)."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from conf.compose import ConfigError
from conf.ranges import leaves
from fedlodrop.runs import load
from fedlodrop.study.plan import FINAL, Job
from fedlodrop.study.runner import FINISHED, message, status
from optimizer.atomic import written_whole
from server_app.results import write_atomic

KEYS = ["setting", "method", "seed"]
_NAMES = {"setting": str, "method": str, "plan": str}
# What a round is judged by; every view keeps these columns.
_PARTS = {"test": "eval", "validation": "validation", "train": "train_eval", "gap": "gap"}
SCORES = [f"{name}_{score}" for name in _PARTS for score in ("metric", "loss")]
_BYTES = ["uplink_bytes", "uplink_adapter_bytes", "downlink_bytes"]
COSTS = [*_BYTES, "sim_time_s", "energy_j"]
# Of runs that record it; tables of older studies do not have the columns.
_SOME = {"eval.worst_class": "test_worst_class", "averaging_error": "averaging_error"}
WRITTEN = "written_"  # begins the names of scores of really written answers in `runs`
ROUND_COLUMNS = [*KEYS, "round", *SCORES, *COSTS, "dropout_rate", "devices", "num_examples"]
_TOTALS = (
    "uplink_bytes downlink_bytes uplink_adapter_bytes setup_bytes adapter_parameters head_parameters sim_time_s "
    "energy_j failures cpu_s wall_s"
).split()


def collect(jobs: Sequence[Job], folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read the folders of a study's jobs.

    Returns (rounds, runs). ``rounds`` has `ROUND_COLUMNS` of the finished final runs: round 0 is the untrained model,
    costs are sums from the first round on, ``dropout_rate`` is the mean over the devices served, ``num_examples`` over
    those asked, ``metric`` is the task's primary one. Personalised methods have no rows there, only in ``runs``.
    ``runs`` has one row per job of any phase: status, message, choice, and the totals of its summary. What the tables
    beside ``folder`` hold of a job that has no folder (`earlier`) counts.
    """
    rounds, runs, known = [], [], earlier(folder.parent)
    for job in jobs:
        state = status(folder / job.folder)
        row: dict[str, Any] = {name: getattr(job, name) for name in (*KEYS, "phase", "choice")}
        if state is None and job.plan in known:
            before, scored = known[job.plan]
            runs.append(before | row)
            rounds.append(scored)
            continue
        why = (message(folder / job.folder) or "").replace(str(folder / job.folder), "RUN")  # tables travel
        row |= {"status": state or "missing", "message": why or None, "plan": job.plan}
        if state == FINISHED:
            summary = json.loads((folder / job.folder / "summary.json").read_text())
            row |= _run_row(summary)
            if job.phase == FINAL and summary["final"] is not None:  # of a personalised method no round has a score
                rounds.append(_round_rows(job, folder / job.folder, summary))
        runs.append(row)
    held = [part for part in rounds if len(part)]
    return pd.concat(held, ignore_index=True) if held else pd.DataFrame(columns=ROUND_COLUMNS), pd.DataFrame(runs)


def earlier(folder: Path) -> dict[str, tuple[dict[str, Any], pd.DataFrame]]:
    """Return what the tables in a study's folder hold of finished runs: by plan, the row of `runs`, those of `rounds`.

    So a study whose tables were made elsewhere, or whose run folders are gone, goes on where it stood.
    """
    if not (folder / "runs.csv").is_file():
        return {}
    runs, rounds = pd.read_csv(folder / "runs.csv", dtype=_NAMES), read_rounds_table(folder / "rounds.csv")
    if "plan" not in runs:  # tables of an older version
        return {}
    known, scored, none = {}, dict(iter(rounds.groupby(KEYS))), rounds.iloc[:0]
    for row in runs[runs["status"] == FINISHED].to_dict("records"):
        own = scored.get(tuple(row[name] for name in KEYS), none) if row["phase"] == FINAL else none
        known[row["plan"]] = {str(name): None if pd.isna(value) else value for name, value in row.items()}, own
    return known


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
    written = (summary.get("answers") or {}).get("scores", {})  # of a language model that wrote its answers at the end
    row |= {f"{WRITTEN}{name}": value for name, value in written.items()}
    return row | {name: summary.get(name) for name in _TOTALS}


def _round_rows(job: Job, folder: Path, summary: dict[str, Any]) -> pd.DataFrame:
    """Return the scored rounds of a run, with what it had cost by then; round 0 is its start."""
    metric, run = summary["primary_metric"], load(folder)
    by_round, served = run.devices.groupby("round"), run.devices[run.devices["scheduled"].astype(bool)]
    rates = served.astype({"dropout_rate": float}).groupby("round")["dropout_rate"]
    table = run.rounds.set_index("round").drop(columns="train_loss")  # that of the training steps
    table[_BYTES] = by_round[_BYTES].sum().cumsum()
    table["energy_j"] = table["energy_j"].cumsum()
    table = table.assign(num_examples=by_round["num_examples"].mean(), dropout_rate=rates.mean(), devices=rates.size())
    if summary.get("initial"):
        start = pd.json_normalize(summary["initial"]).assign(**dict.fromkeys([*COSTS, "devices"], 0))
        table = pd.concat([start, table]).rename_axis("round")
    scores = {"metric": metric, "loss": "loss"}
    names = {f"{block}.{of}": f"{part}_{name}" for part, block in _PARTS.items() for name, of in scores.items()}
    scored = table[table["eval.loss"].notna()].rename(columns=names | _SOME).reset_index()
    columns = [*ROUND_COLUMNS, *(name for name in _SOME.values() if name in scored)]
    return scored.assign(**{name: getattr(job, name) for name in KEYS})[columns]


def markdown(heads: Sequence[object], rows: Iterable[Sequence[object]], *, figures: bool = False) -> str:
    """Return a Markdown table; with ``figures`` all columns but the first stand on the right."""
    rule = ["---", *["---:" if figures else "---"] * (len(heads) - 1)]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in (heads, rule, *rows))


def write_tables(folder: Path, rounds: pd.DataFrame, runs: pd.DataFrame) -> None:
    """Write ``rounds.csv`` and ``runs.csv``; counts of a run keep all digits, also beside runs that have none yet."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in (("rounds", rounds), ("runs", runs.convert_dtypes())):
        write_atomic(folder / f"{name}.csv", table.to_csv(index=False, float_format="%.6g", lineterminator="\n"))


def read_rounds_table(path: Path) -> pd.DataFrame:
    """Read a table of rounds that `write_tables` wrote; ConfigError if it is missing or lacks a column."""
    if not path.is_file():
        raise ConfigError(f"expected the table rounds.csv of a study, found no file {path}")
    table = pd.read_csv(path, dtype=_NAMES, keep_default_na=True)
    missing = [name for name in ROUND_COLUMNS if name not in table.columns]
    if missing:
        raise ConfigError(f"{path}: expected the columns of a study's rounds.csv, found none named {missing[0]!r}")
    return table


def write_jobs(folder: Path) -> pd.DataFrame:
    """Write jobs.csv and jobs.parquet of a sweep and return the table, a row per job.

    The columns are the overrides, the summary flattened with dots, then status, message and folder.
    """
    keys: dict[str, None] = {}
    rows, last = [], ["status", "message", "folder"]
    for path in sorted(folder.glob("*/job.json")):
        record, summary = json.loads(path.read_text()), path.parent / "summary.json"
        keys |= dict.fromkeys(record["overrides"])
        content = leaves(json.loads(summary.read_text()) if summary.exists() else {})
        flat = {key: json.dumps(value) if isinstance(value, list) else value for key, value in content.items()}
        ended = {"status": record["status"], "message": record["message"], "folder": path.parent.name}
        rows.append(flat | record["overrides"] | ended)
    names = dict.fromkeys([*keys, *(name for row in rows for name in row)])
    table = pd.DataFrame(rows, columns=[*(name for name in names if name not in last), *last])
    for key in keys:
        numbers = pd.to_numeric(table[key], errors="coerce")
        table[key] = numbers if numbers.notna().all() else table[key]
    table = table.sort_values([*keys], kind="stable", ignore_index=True) if keys else table
    write_atomic(folder / "jobs.csv", table.to_csv(index=False))
    with written_whole(folder / "jobs.parquet") as temporary:
        table.to_parquet(temporary, index=False)
    return table


def swept_keys(table: pd.DataFrame) -> list[str]:
    """Return the override columns of a table of jobs that take more than one value."""
    columns = list(table.columns)  # overrides come first
    first = columns.index("rounds_done") if "rounds_done" in columns else columns.index("status")
    return [name for name in columns[:first] if table[name].nunique(dropna=False) > 1]
