"""What a study runs on: data, size, repeats; and where its raw figures lie."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from conf.compose import ROOT, ConfigError, compose_config, join_overrides, source_digest, split_overrides

_DATA = ROOT.parent / "shared" / "data"


@dataclass(frozen=True)
class Setting:
    """One study: its data, the size of a run, and how often everything is measured."""

    task: str = "intents"  # or sst2
    train_file: str = ""
    test_file: str = ""
    train_limit: int = 1600
    num_devices: int = 10
    num_rounds: int = 10
    repeats: int = 5
    baseline_tokens: int = 64  # fixed length to which the baseline pads
    more: str = ""  # further overrides of our runs, e.g. lora=upper; the baseline stays what it is

    @property
    def overrides(self) -> list[str]:
        """The same setting for `fedlodrop run`; everything else is the default configuration."""
        files = (f"task.train_file='{self.train_file}'", f"task.validation_file='{self.test_file}'")
        return [
            f"task={self.task}",
            *(files if self.train_file else ()),
            f"task.train_limit={self.train_limit}",
            f"network.num_devices={self.num_devices}",
            f"run.num_rounds={self.num_rounds}",
            *split_overrides(self.more),
        ]


def make_setting(
    *, quick: bool, data: Path | None, repeats: int | None, baseline_tokens: int, more: str = ""
) -> Setting:
    """Return the setting of a study.

    ``quick`` is two devices, one round, once: shows that everything runs, its figures mean nothing. ``data`` is the
    folder with sst2_train.tsv.gz and sst2_validation.tsv.gz; None: beside the checkout, if they are there.

    Raises ConfigError if ``data`` was named and holds no such files, or a number is out of range.
    """
    for name, value in (("--repeats", repeats), ("--baseline-tokens", baseline_tokens)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} must be at least 1, found {value}")
    folder = data or _DATA
    train, test = folder / "sst2_train.tsv.gz", folder / "sst2_validation.tsv.gz"
    found = train.exists() and test.exists()
    if data is not None and not found:
        names = f"{train.name} and {test.name}"
        raise ConfigError(f"--data must be a folder with {names}, found none in {data}")
    setting = Setting(repeats=repeats or 5, baseline_tokens=baseline_tokens, more=more)
    if found:
        setting = replace(setting, task="sst2", train_file=str(train.resolve()), test_file=str(test.resolve()))
    if quick:
        setting = replace(setting, train_limit=160, num_devices=2, num_rounds=1, repeats=repeats or 1)
    compose_config(join_overrides(setting.overrides))  # refuses what no run would take
    return setting


class RawFigures:
    """Every finished repeat, one line of ``path`` each: an interrupted study goes on where it stopped.

    Only repeats of the same setting and the same source code count.
    """

    def __init__(self, path: Path, setting: Setting) -> None:
        self._path = path
        self._key = {"setting": asdict(setting), "source": source_digest().hex()}
        self._key["setting"].pop("repeats")
        rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        self._rows = [row for row in rows if all(row[name] == value for name, value in self._key.items())]
        self.stale = len(rows) - len(self._rows)

    def of(self, measurement: str) -> list[dict[str, Any]]:
        """Return the finished repeats of a measurement, oldest first."""
        return [row["figures"] for row in self._rows if row["measurement"] == measurement]

    def add(self, measurement: str, figures: dict[str, Any]) -> None:
        """Keep a repeat."""
        row = {"measurement": measurement, **self._key, "figures": figures}
        self._rows.append(row)
        with self._path.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(row, allow_nan=False) + "\n")
