"""Measuring: bench."""

from pathlib import Path
from typing import Annotated, Any

from typer import Option

from conf.compose import ROOT, ConfigError, compose_config, join_overrides
from fedlodrop.commands.shared import EXIT_FAILED, fail, say


def bench(
    folder: Annotated[Path, Option("--out", help="Folder for bench.csv and bench.md")],
    quick: Annotated[bool, Option(help="Two devices, one round, once: shows that everything runs")] = False,
    only: Annotated[str, Option(help="Rows that are wanted, separated by commas; default: all")] = "",
    data: Annotated[Path | None, Option(help="Folder with sst2_train.tsv.gz and sst2_validation.tsv.gz")] = None,
    baseline_tokens: Annotated[int, Option(min=1, help="Fixed length to which the baseline pads its texts")] = 64,
    more: Annotated[str, Option("--set", help="Further overrides of our runs, e.g. lora=upper; see bench.md")] = "",
) -> None:
    """Measure whole runs, steps, bytes and aggregation against Flower's own LoRA style, side by side.

    Runs on the files of SST-2 in `--data`, else on generated commands. Wants a machine that does nothing else.
    """
    if not (ROOT / "benchmarks").is_dir():
        raise ConfigError(f"{ROOT} has no benchmarks; run `fedlodrop bench` in a checkout of the source")
    from benchmarks import study
    from benchmarks.federations import Setting, data_files
    from server_app.folders import writable

    names = [name.strip() for name in only.split(",") if name.strip()]
    size: dict[str, Any] = {"train_limit": 160, "num_devices": 2, "num_rounds": 1, "repeats": 1} if quick else {}
    setting = Setting(**data_files(data), **size, max_length=baseline_tokens, more=more)
    compose_config(join_overrides(setting.overrides))  # refuses what no run would take
    study.chosen(names)
    writable(folder, "--out").mkdir(parents=True, exist_ok=True)
    if setting.task != "sst2":
        say("no files of SST-2 found: the runs learn generated commands; name their folder with --data")
    failures = study.run_study(setting, folder.resolve(), names, say)
    for line in (folder / "bench.md").read_text(encoding="utf-8").splitlines():
        say(line)
    if failures:
        fail("; ".join(f"{name}: {message}" for name, message in failures.items()), EXIT_FAILED)
