"""What the machine was, and the table in docs/performance.md."""

import json
from dataclasses import asdict
from pathlib import Path

from benchmarks.setting import Setting
from benchmarks.study import Row, read_rows
from conf.compose import ROOT, ConfigError, source_digest
from fedlodrop.study.tables import markdown
from server_app.results import environment, write_atomic, write_json

PAGE = ROOT / "docs" / "performance.md"
HEADING = "## Benchmark table"

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


def write_hardware(folder: Path, setting: Setting) -> None:
    """Write hardware.json: machine, versions, commit, setting."""
    found = environment(0, source_digest().hex(), ROOT)
    content = {name: found[name] for name in ("hardware", "versions", "commit", "source", "started")}
    files = {name: Path(getattr(setting, name)).name for name in ("train_file", "test_file")}
    write_json(folder / "hardware.json", {**content, "setting": {**asdict(setting), **files}})


def write_table(folder: Path) -> Path:
    """Put the table of a finished study under its heading in docs/performance.md and return the page.

    ConfigError if the folder holds no study.
    """
    if not (folder / "bench.csv").exists() or not (folder / "hardware.json").exists():
        raise ConfigError(
            f"expected bench.csv and hardware.json of a study in {folder}; run: fedlodrop bench --out {folder}"
        )
    text = PAGE.read_text(encoding="utf-8") if PAGE.exists() else "# Performance\n"
    table = render(read_rows(folder / "bench.csv"), json.loads((folder / "hardware.json").read_text()))
    before, _, rest = text.partition(f"{HEADING}\n")
    _, following, after = rest.partition("\n## ")
    text = f"{before.rstrip()}\n\n{HEADING}\n\n{table}\n" + (f"\n## {after}" if following else "")
    write_atomic(PAGE, text)
    return PAGE


def render(rows: list[Row], hardware: dict[str, dict[str, object]]) -> str:
    """Return the table as Markdown."""
    machine, setting = hardware["hardware"], hardware["setting"]
    more = f"; our runs with `{setting['more']}`" if setting.get("more") else ""
    lines = []
    for row in rows:
        limit, measured = TARGETS.get(row.name), row.value if row.ratio is None else row.ratio
        verdict = "" if limit is None else "reached" if measured <= limit else "**missed**"
        reference, ratio = ("" if number is None else f"{number:.4g}" for number in (row.reference, row.ratio))
        ends = (f"{row.low:.4g} to {row.high:.4g}", row.repeats, "" if limit is None else f"{limit:g}", verdict)
        lines.append((f"{row.name} [{row.unit}]", f"{row.value:.4g}", reference, ratio, *ends))
    return (
        f"`fedlodrop bench --out DIR`, then `fedlodrop bench --out DIR --table`. {machine['processor']}, "
        f"{machine['cpu_count']} cores, {machine['memory_gib']} GiB; task {setting['task']}, {setting['num_devices']} "
        f"devices, {setting['num_rounds']} rounds, the baseline pads to {setting['baseline_tokens']} tokens{more}. "
        "Medians; the spread is from the smallest to the largest repeat.\n\n"
        + markdown(("", "ours", "baseline", "ratio", "spread", "repeats", "limit", ""), lines).rstrip()
    )
