"""Measuring: bench."""

from pathlib import Path
from typing import Annotated, Any

from rich.table import Table
from typer import Option

from conf.compose import ROOT, ConfigError
from fedlodrop.commands.shared import EXIT_FAILED, fail, out, say
from fedlodrop.console.printing import make_table

_ACCURACY_POINTS = 2.0


def bench(
    folder: Annotated[Path, Option("--out", help="Folder for bench.csv; an unfinished study there is continued")],
    quick: Annotated[bool, Option(help="Two devices, one round, once: shows that everything runs")] = False,
    only: Annotated[str, Option(help="Rows that are wanted, separated by commas; default: all")] = "",
    data: Annotated[Path | None, Option(help="Folder with sst2_train.tsv.gz and sst2_validation.tsv.gz")] = None,
    repeats: Annotated[
        int | None, Option(help="How often everything is measured; default: 5, or 1 with --quick")
    ] = None,
    baseline_tokens: Annotated[int, Option(help="Fixed length to which the baseline pads its texts")] = 64,
    more: Annotated[
        str, Option("--set", help="Further overrides of our runs, e.g. lora=upper; see hardware.json")
    ] = "",
    table: Annotated[bool, Option("--table", help="Measure nothing: write the table in docs/performance.md")] = False,
) -> None:
    """Measure whole runs, steps, bytes and aggregation against Flower's own LoRA style, side by side.

    Runs on the files of SST-2 in `--data`, else on generated commands. Wants a machine that does nothing else.
    """
    if not (ROOT / "benchmarks").is_dir():
        raise ConfigError(
            f"`fedlodrop bench` needs the source folder, and {ROOT} has no benchmarks; run it in a checkout"
        )
    from benchmarks import document, study
    from benchmarks.setting import make_setting
    from server_app.folders import writable

    names = [name.strip() for name in only.split(",") if name.strip()]
    if table:
        say(f"written: {document.write_table(folder)}")
        return
    setting = make_setting(quick=quick, data=data, repeats=repeats, baseline_tokens=baseline_tokens, more=more)
    study.chosen(names)
    writable(folder, "--out").mkdir(parents=True, exist_ok=True)
    document.write_hardware(folder, setting)
    if setting.task != "sst2":
        say("no files of SST-2 found: the runs learn generated commands; name their folder with --data")
    rows, failures = study.run_study(setting, folder.resolve(), names, say)
    out.print(_table(rows))
    pairs = study.accuracies(setting, folder)
    if pairs:
        ours, theirs = (sum(pair[side] for pair in pairs) / len(pairs) for side in (0, 1))
        within = abs(ours - theirs) * 100 <= _ACCURACY_POINTS
        verdict = "equal within 2 points" if within else "NOT equal within 2 points: the runs do not compare"
        say(f"final accuracy: ours {ours:.4f}, baseline {theirs:.4f}: {verdict}")
    say(f"table: {(folder / 'bench.csv').resolve()}")
    if failures:
        fail("; ".join(f"{name}: {message}" for name, message in failures.items()), EXIT_FAILED)


def _table(rows: list[Any]) -> Table:
    shown = []
    for row in rows:
        numbers = (row.value, row.reference, row.ratio, row.low, row.high)
        figures = ("" if number is None else f"{number:.4g}" for number in numbers)
        shown.append((row.name, row.unit, *figures, str(row.repeats)))
    return make_table("bench", ("name", "unit"), ("value", "baseline", "ratio", "low", "high", "repeats"), shown)
