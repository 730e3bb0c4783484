"""The whole table: what is measured, how often, and the rows that come of it."""

from __future__ import annotations

import csv
import importlib
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

from benchmarks.federations import run_baseline, run_ours
from benchmarks.setting import RawFigures, Setting
from conf.compose import ConfigError
from optimizer.apart import run_apart
from optimizer.plots import write_csv

Raw = list[dict[str, Any]]


@dataclass(frozen=True)
class Row:
    """One line of bench.csv; low and high are of the ratio between neighbouring runs where there is a baseline."""

    name: str
    value: float  # median of the repeats
    unit: str
    reference: float | None  # median of the baseline, where there is one
    ratio: float | None  # value / reference
    low: float  # smallest repeat
    high: float  # largest repeat
    repeats: int
    command: str  # what measures it again


@dataclass(frozen=True)
class Measurement:
    """Rows that come of the same repeats, and how one repeat is made."""

    name: str
    rows: tuple[str, ...]
    once: Callable[[Setting, Path], dict[str, Any]]
    summary: Callable[[Raw], list[Row]]
    repeated: bool = True  # False: the result does not vary


def _alone(name: str, values: Sequence[float], unit: str) -> Row:
    return Row(name, median(values), unit, None, None, min(values), max(values), len(values), _command(name))


def _beside(name: str, ours: Sequence[float], theirs: Sequence[float], unit: str) -> Row:
    value, reference = median(ours), median(theirs)
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return Row(name, value, unit, reference, value / reference, min(ratios), max(ratios), len(ours), _command(name))


def _command(name: str) -> str:
    return f"fedlodrop bench --only {name} --out DIR"


def _apart(module: str, *arguments: Any) -> dict[str, Any]:
    """Call ``measure`` of a module of this package in a process of its own, with one thread."""
    with patch.dict(os.environ, OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false"):
        return dict(run_apart(_measure, module, *arguments))


def _measure(module: str, *arguments: Any) -> dict[str, Any]:
    return dict(importlib.import_module(f"benchmarks.{module}").measure(*arguments))


def _runs(setting: Setting, folder: Path) -> dict[str, Any]:
    return {"theirs": run_baseline(setting, folder / "baseline"), "ours": run_ours(setting, folder / "ours")}


def _runs_rows(raw: Raw) -> list[Row]:
    def both(key: str) -> tuple[list[float], list[float]]:
        return [item["ours"][key] for item in raw], [item["theirs"][key] for item in raw]

    ours = [item["ours"] for item in raw]
    return [
        _beside("run_cpu", *both("cpu_s"), "CPU s"),
        _beside("run_wall", *both("wall_s"), "s"),
        _alone("framework_overhead", [item["overhead"] for item in ours], "of a round"),
        _alone("worker_peak_rss_mib", [item["worker_peak_rss_mib"] or float("nan") for item in ours], "MiB"),
        _alone("start_s", [item["start_s"] for item in ours], "s"),
    ]


def _step_rows(raw: Raw) -> list[Row]:
    names = {"step": "texts", "step_layer_only": "layer"}
    return [
        _beside(name, [item[key]["ours_s"] for item in raw], [item[key]["peft_s"] for item in raw], "CPU s")
        for name, key in names.items()
    ]


def _uplink(dtype: str) -> Measurement:
    name = f"uplink_{dtype}"

    def once(setting: Setting, folder: Path) -> dict[str, Any]:
        return _apart("payload", dtype, folder)

    def rows(raw: Raw) -> list[Row]:
        ours, theirs = ([item[side]["adapter_bytes"] for item in raw] for side in ("ours", "theirs"))
        return [_beside(name, ours, theirs, "adapter bytes")]

    return Measurement(name, (name,), once, rows, repeated=False)


def _aggregation_rows(raw: Raw) -> list[Row]:
    return [
        _alone("aggregation_s", [item["seconds"] for item in raw], "CPU s"),
        _alone("aggregation_peak_ratio", [item["peak_ratio"] for item in raw], "dense adapters"),
    ]


MEASUREMENTS = (
    Measurement(
        "runs", ("run_cpu", "run_wall", "framework_overhead", "worker_peak_rss_mib", "start_s"), _runs, _runs_rows
    ),
    Measurement(
        "step",
        ("step", "step_layer_only"),
        lambda setting, folder: _apart("step", setting),
        _step_rows,
    ),
    *(_uplink(dtype) for dtype in ("fp32", "fp16", "int8")),
    Measurement(
        "aggregation",
        ("aggregation_s", "aggregation_peak_ratio"),
        lambda setting, folder: _apart("aggregation", 1000),
        _aggregation_rows,
    ),
)
ROW_NAMES = tuple(name for item in MEASUREMENTS for name in item.rows)


def chosen(only: Sequence[str]) -> list[Measurement]:
    """Return the measurements behind some rows, all of them for none.

    Raises
    ------
    ConfigError
        If a name is unknown.
    """
    for name in only:
        if name not in ROW_NAMES:
            raise ConfigError(f"--only: unknown name {name!r}; valid: {', '.join(ROW_NAMES)}")
    return [item for item in MEASUREMENTS if not only or set(item.rows) & set(only)]


def run_study(
    setting: Setting, out: Path, only: Sequence[str], report: Callable[[str], None]
) -> tuple[list[Row], dict[str, str]]:
    """Measure what is still missing and write bench.csv after every repeat; ``report`` takes lines of progress.

    raw.jsonl in ``out`` holds the repeats of an interrupted study; ``only`` are the rows that are wanted, none: all.
    Returns the rows, and by measurement what went wrong.
    """
    raw, wanted, failures = RawFigures(out / "raw.jsonl", setting), chosen(only), {}
    if raw.stale:
        report(f"{raw.stale} older repeats were made with another setting or source code and do not count")
    for item in wanted:
        total = setting.repeats if item.repeated else 1
        for number in range(len(raw.of(item.name)), total):
            report(f"{item.name}: repeat {number + 1} of {total}")
            folder = Path(tempfile.mkdtemp(prefix="fedlodrop-bench-"))
            try:
                raw.add(item.name, item.once(setting, folder))
            except RuntimeError as error:  # the others are still worth measuring; the command ends with an error code
                failures[item.name] = str(error)
                report(f"{item.name}: {error}")
                break
            finally:
                if item.name not in failures:
                    shutil.rmtree(folder, ignore_errors=True)
            write_rows(out / "bench.csv", _rows(raw, only))
    rows = _rows(raw, only)
    write_rows(out / "bench.csv", rows)
    return rows, failures


def accuracies(setting: Setting, out: Path) -> list[tuple[float, float]]:
    """Return the final accuracies of all pairs of runs, ours first."""
    pairs = RawFigures(out / "raw.jsonl", setting).of("runs")
    return [(pair["ours"]["accuracy"], pair["theirs"]["accuracy"]) for pair in pairs]


def _rows(raw: RawFigures, only: Sequence[str]) -> list[Row]:
    found = {row.name: row for item in MEASUREMENTS if raw.of(item.name) for row in item.summary(raw.of(item.name))}
    return [found[name] for name in ROW_NAMES if name in found and (not only or name in only)]


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write bench.csv, whole or not at all."""
    write_csv(path, [asdict(row) for row in rows], [field.name for field in fields(Row)])


def read_rows(path: Path) -> list[Row]:
    """Read bench.csv."""
    words = ("name", "unit", "command")

    def read(name: str, text: str) -> Any:
        return text if name in words else int(text) if name == "repeats" else float(text) if text else None

    with path.open(encoding="utf-8", newline="") as handle:
        return [Row(**{name: read(name, text) for name, text in line.items()}) for line in csv.DictReader(handle)]
