"""The whole table: what is measured, how often, and the rows that come of it."""

import importlib
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import reduce
from math import nan
from operator import getitem
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import pandas as pd

from benchmarks.federations import run_baseline, run_ours
from benchmarks.setting import RawFigures, Setting
from conf.compose import ConfigError
from optimizer.apart import run_apart
from optimizer.plots import write_csv

Once = Callable[[Setting, Path], dict[str, Any]]


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
    once: Once
    figures: Mapping[str, Sequence[str]]  # row -> unit and where in a repeat it stands: ours, the baseline's if any
    repeated: bool = True  # False: the result does not vary

    def rows(self, raw: Sequence[dict[str, Any]]) -> list[Row]:
        """Return the rows of finished repeats; none of none."""
        found = []
        for name, (unit, *places) in self.figures.items() if raw else ():
            values = [[reduce(getitem, place.split("."), item) for item in raw] for place in places]
            ours, *other = [[nan if value is None else value for value in column] for column in values]
            reference = median(other[0]) if other else None
            ratio = None if reference is None else median(ours) / reference
            spread = [one / two for one, two in zip(ours, other[0], strict=True)] if other else ours
            command = f"fedlodrop bench --only {name} --out DIR"
            ends = min(spread), max(spread), len(raw), command
            found.append(Row(name, median(ours), unit, reference, ratio, *ends))
        return found


def _apart(module: str, *arguments: Any) -> dict[str, Any]:
    """Call ``measure`` of a module of this package in a process of its own, with one thread."""
    with patch.dict(os.environ, OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false"):
        return dict(run_apart(_measure, module, *arguments))


def _measure(module: str, *arguments: Any) -> dict[str, Any]:
    return dict(importlib.import_module(f"benchmarks.{module}").measure(*arguments))


def _runs(setting: Setting, folder: Path) -> dict[str, Any]:
    return {"theirs": run_baseline(setting, folder / "baseline"), "ours": run_ours(setting, folder / "ours")}


def _uplink(dtype: str) -> Measurement:
    figures = {f"uplink_{dtype}": ("adapter bytes", "ours.adapter_bytes", "theirs.adapter_bytes")}
    return Measurement(f"uplink_{dtype}", lambda _, folder: _apart("payload", dtype, folder), figures, repeated=False)


RUNS = Measurement(
    "runs",
    _runs,
    {
        "run_cpu": ("CPU s", "ours.cpu_s", "theirs.cpu_s"),
        "run_wall": ("s", "ours.wall_s", "theirs.wall_s"),
        "framework_overhead": ("of a round", "ours.overhead"),
        "worker_peak_rss_mib": ("MiB", "ours.worker_peak_rss_mib"),
        "start_s": ("s", "ours.start_s"),
    },
)
STEP = Measurement(
    "step",
    lambda setting, _: _apart("step", setting),
    {
        "step": ("CPU s", "texts.ours_s", "texts.peft_s"),
        "step_layer_only": ("CPU s", "layer.ours_s", "layer.peft_s"),
    },
)
AGGREGATION = Measurement(
    "aggregation",
    lambda *_: _apart("aggregation", 1000),
    {"aggregation_s": ("CPU s", "seconds"), "aggregation_peak_ratio": ("dense adapters", "peak_ratio")},
)
MEASUREMENTS = (RUNS, STEP, *map(_uplink, ("fp32", "fp16", "int8")), AGGREGATION)
ROW_NAMES = tuple(name for item in MEASUREMENTS for name in item.figures)


def chosen(only: Sequence[str]) -> list[Measurement]:
    """Return the measurements behind some rows, all of them for none; ConfigError if a name is unknown."""
    for name in only:
        if name not in ROW_NAMES:
            raise ConfigError(f"--only: unknown name {name!r}; valid: {', '.join(ROW_NAMES)}")
    return [item for item in MEASUREMENTS if not only or set(item.figures) & set(only)]


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
    return [row for item in MEASUREMENTS for row in item.rows(raw.of(item.name)) if not only or row.name in only]


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write bench.csv, whole or not at all."""
    write_csv(path, [asdict(row) for row in rows], [field.name for field in fields(Row)])


def read_rows(path: Path) -> list[Row]:
    """Read bench.csv."""
    table = pd.read_csv(path, float_precision="round_trip").astype(object)
    return [Row(**row) for row in table.where(table.notna(), None).to_dict("records")]  # type: ignore[misc]
