"""The whole table of `fedlodrop bench`: what is measured, how often, the rows that come of it, and their limits."""

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

from benchmarks import aggregation, step
from benchmarks.federations import Setting, measure_payload, measure_runs
from conf.compose import ROOT, ConfigError, source_digest
from fedlodrop.study.tables import markdown
from optimizer.apart import run_apart
from optimizer.plots import Row, write_csv
from server_app.results import environment, write_atomic

Values = dict[str, tuple[float, ...]]  # by row: what one repeat found for ours, and for the baseline where there is one
COLUMNS = ("name", "value", "unit", "reference", "ratio", "low", "high", "repeats", "command")
_POINTS = 2  # by which the final accuracies may differ
# Row -> how it is measured, its unit, and what the project set out to reach: of the ratio, or of a value without one.
ROWS = {
    "run_cpu": ("runs", "CPU s", 0.40),
    "run_wall": ("runs", "s", 0.50),
    "accuracy": ("runs", "1", None),
    "framework_overhead": ("runs", "of a round", 0.15),
    "step": ("step", "CPU s", 0.95),
    "step_layer_only": ("step", "CPU s", 0.95),
    "uplink_fp32": ("payload", "adapter bytes", 0.51),
    "uplink_fp16": ("payload", "adapter bytes", 0.26),
    "uplink_int8": ("payload", "adapter bytes", 0.135),
    "aggregation_s": ("aggregation", "CPU s", 10.0),
    "aggregation_peak_ratio": ("aggregation", "dense adapters", 4.0),
}


def _apart(measure: Callable[..., Values], *arguments: Any) -> Values:
    """Measure in a process of its own, with one thread."""
    with patch.dict(os.environ, OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false"):
        return dict(run_apart(measure, *arguments))


MEASUREMENTS: dict[str, Callable[[Setting, Path], Values]] = {
    "runs": measure_runs,
    "step": lambda setting, _: _apart(step.measure, setting),
    "payload": lambda _, folder: _apart(measure_payload, folder),
    "aggregation": lambda *_: _apart(aggregation.measure, 1000),
}


def make_row(name: str, repeats: Sequence[Values]) -> Row:
    """Return medians of value and reference, and the range of the repeats: of their ratio where there is a baseline."""
    ours, *theirs = zip(*(values[name] for values in repeats), strict=True)
    spread = [one / two for one, two in zip(ours, theirs[0], strict=True)] if theirs else ours
    row: Row = {"name": name, "value": median(ours), "unit": ROWS[name][1], "repeats": len(repeats)}
    if theirs:
        row |= {"reference": median(theirs[0]), "ratio": median(ours) / median(theirs[0])}
    return row | {"low": min(spread), "high": max(spread), "command": f"fedlodrop bench --only {name} --out DIR"}


def chosen(only: Sequence[str]) -> list[str]:
    """Return the rows that are wanted, all of them for none; ConfigError if a name is unknown."""
    for name in only:
        if name not in ROWS:
            raise ConfigError(f"--only: unknown name {name!r}; valid: {', '.join(ROWS)}")
    return [name for name in ROWS if not only or name in only]


def run_study(setting: Setting, out: Path, only: Sequence[str], report: Callable[[str], None]) -> dict[str, str]:
    """Measure the rows ``only``, none: all, and write bench.csv and bench.md; ``report`` takes lines of progress.

    Returns by measurement what went wrong; the folder of a repeat that failed stays.
    """
    rows: list[Row] = []
    names, failures = chosen(only), dict[str, str]()
    for item in dict.fromkeys(ROWS[name][0] for name in names):
        repeats: list[Values] = []
        total = 1 if item == "payload" else setting.repeats  # bytes do not vary
        try:
            for number in range(total):
                report(f"{item}: repeat {number + 1} of {total}")
                folder = Path(tempfile.mkdtemp(prefix="fedlodrop-bench-"))
                repeats.append(MEASUREMENTS[item](setting, folder))
                shutil.rmtree(folder, ignore_errors=True)
        except KeyboardInterrupt:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        except RuntimeError as error:  # the others are still worth measuring; the command ends with an error code
            failures[item] = str(error)
            report(f"{item}: {error}")
        rows += [make_row(name, repeats) for name in names if repeats and ROWS[name][0] == item]
        write_csv(out / "bench.csv", rows, COLUMNS)
        write_atomic(out / "bench.md", render(rows, setting))
    return failures


def render(rows: Sequence[Row], setting: Setting) -> str:
    """Return what was measured, where and with what, as Markdown for docs/performance.md."""
    found = environment(0, source_digest().hex(), ROOT)
    machine, lines = found["hardware"], []
    for row in rows:
        limit, measured = ROWS[row["name"]][2], row.get("ratio", row["value"])
        verdict = "" if limit is None else "reached" if measured <= limit else "**missed**"
        if row["name"] == "accuracy":
            verdict = (
                "equal" if abs(row["value"] - row["reference"]) <= _POINTS / 100 else "**the runs do not compare**"
            )
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
