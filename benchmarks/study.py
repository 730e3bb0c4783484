"""The whole table of `fedlodrop bench`: what is measured, how often, the rows that come of it, and their limits."""

import importlib
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from math import nan
from operator import getitem
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

from benchmarks.federations import Setting, run_baseline, run_ours
from conf.compose import ROOT, ConfigError, source_digest
from fedlodrop.study.tables import markdown
from optimizer.apart import run_apart
from optimizer.plots import Row, write_csv
from server_app.results import environment, write_atomic

COLUMNS = ("name", "value", "unit", "reference", "ratio", "low", "high", "repeats", "command")
# What the project set out to reach: the limit of the ratio where there is a baseline, else of the value. Memory and
# start of a worker are shown without a limit: what they would gain costs more code than it is worth.
TARGETS = {
    "run_cpu": 0.40,
    "run_wall": 0.50,
    "step": 0.95,
    "step_layer_only": 0.95,
    "uplink_fp32": 0.51,
    "uplink_fp16": 0.26,
    "uplink_int8": 0.135,
    "framework_overhead": 0.15,
    "aggregation_s": 10.0,
    "aggregation_peak_ratio": 4.0,
}


@dataclass(frozen=True)
class Measurement:
    """Rows that come of the same repeats, and how one repeat is made."""

    name: str
    once: Callable[[Setting, Path], dict[str, Any]]
    figures: Mapping[str, Sequence[str]]  # row -> unit and where in a repeat it stands: ours, the baseline's if any
    repeated: bool = True  # False: the result does not vary

    def rows(self, repeats: Sequence[dict[str, Any]]) -> list[Row]:
        """Return a row of `COLUMNS` per figure: medians of value and reference, and the range of the repeats.

        The range is that of the ratio between neighbouring runs where there is a baseline.
        """
        found = []
        for name, (unit, *places) in self.figures.items() if repeats else ():
            values = [[reduce(getitem, place.split("."), item) for item in repeats] for place in places]
            ours, *other = [[nan if value is None else value for value in column] for column in values]
            row: Row = {"name": name, "value": median(ours), "unit": unit, "repeats": len(repeats)}
            if other:
                row |= {"reference": median(other[0]), "ratio": median(ours) / median(other[0])}
            spread = [one / two for one, two in zip(ours, other[0], strict=True)] if other else ours
            row |= {"low": min(spread), "high": max(spread)}
            found.append(row | {"command": f"fedlodrop bench --only {name} --out DIR"})
        return found


def _apart(module: str, *arguments: Any) -> dict[str, Any]:
    """Call ``measure`` of a module of this package in a process of its own, with one thread."""
    with patch.dict(os.environ, OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false"):
        return dict(run_apart(_measure, module, *arguments))


def _measure(module: str, *arguments: Any) -> dict[str, Any]:
    return dict(importlib.import_module(f"benchmarks.{module}").measure(*arguments))


def _uplink(dtype: str) -> Measurement:
    figures = {f"uplink_{dtype}": ("adapter bytes", "ours", "theirs")}
    return Measurement(f"uplink_{dtype}", lambda _, folder: _apart("payload", dtype, folder), figures, repeated=False)


RUNS = Measurement(
    "runs",
    lambda setting, folder: {
        "theirs": run_baseline(setting, folder / "baseline"),
        "ours": run_ours(setting, folder / "ours"),
    },
    {
        "run_cpu": ("CPU s", "ours.cpu_s", "theirs.cpu_s"),
        "run_wall": ("s", "ours.wall_s", "theirs.wall_s"),
        "accuracy": ("1", "ours.accuracy", "theirs.accuracy"),
        "framework_overhead": ("of a round", "ours.overhead"),
        "worker_peak_rss_mib": ("MiB", "ours.worker_peak_rss_mib"),
        "start_s": ("s", "ours.start_s"),
    },
)
STEP = Measurement(
    "step",
    lambda setting, _: _apart("step", setting),
    {"step": ("CPU s", "texts.ours_s", "texts.peft_s"), "step_layer_only": ("CPU s", "layer.ours_s", "layer.peft_s")},
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
    """Measure the rows ``only``, none: all, and write bench.csv and bench.md; ``report`` takes lines of progress.

    Returns the rows, and by measurement what went wrong; the folder of a repeat that failed stays.
    """
    rows: list[Row] = []
    failures = {}
    for item in chosen(only):
        repeats: list[dict[str, Any]] = []
        total = setting.repeats if item.repeated else 1
        try:
            for number in range(total):
                report(f"{item.name}: repeat {number + 1} of {total}")
                folder = Path(tempfile.mkdtemp(prefix="fedlodrop-bench-"))
                repeats.append(item.once(setting, folder))
                shutil.rmtree(folder, ignore_errors=True)
        except RuntimeError as error:  # the others are still worth measuring; the command ends with an error code
            failures[item.name] = str(error)
            report(f"{item.name}: {error}")
        rows += [row for row in item.rows(repeats) if not only or row["name"] in only]
        write_csv(out / "bench.csv", rows, COLUMNS)
        write_atomic(out / "bench.md", render(rows, setting))
    return rows, failures


def render(rows: Sequence[Row], setting: Setting) -> str:
    """Return what was measured, where and with what, as Markdown for docs/performance.md."""
    found = environment(0, source_digest().hex(), ROOT)
    machine, lines = found["hardware"], []
    for row in rows:
        limit, measured = TARGETS.get(row["name"]), row.get("ratio", row["value"])
        verdict = "" if limit is None else "reached" if measured <= limit else "**missed**"
        reference, ratio = (f"{row[name]:.4g}" if name in row else "" for name in ("reference", "ratio"))
        ends = f"{row['low']:.4g} to {row['high']:.4g}", row["repeats"], "" if limit is None else f"{limit:g}", verdict
        lines.append((f"{row['name']} [{row['unit']}]", f"{row['value']:.4g}", reference, ratio, *ends))
    return (
        f"`fedlodrop bench --out DIR`. {machine['processor']}, {machine['cpu_count']} cores, "
        f"{machine['memory_gib']} GiB, commit {found['commit']}; task {setting.task}, {setting.num_devices} devices, "
        f"{setting.num_rounds} rounds, the baseline pads to {setting.max_length} tokens"
        + (f"; our runs with `{setting.more}`" if setting.more else "")
        + ". Medians; the spread is from the smallest to the largest repeat.\n\n"
        + markdown(("", "ours", "baseline", "ratio", "spread", "repeats", "limit", ""), lines)
    )
