"""Whole runs on Flower's simulation, ours and the baseline, each as a command of its own; the bytes of an answer."""

import json
import os
import sys
import tomllib
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.watch import measured
from conf.compose import ROOT, ConfigError, compose_config, join_overrides, split_overrides
from server_app.engines.flower import EngineError, FlowerEngine, federation_settings
from server_app.engines.in_process import run_in_process
from server_app.results import read_rounds

BASELINE = ROOT / "benchmarks" / "baseline_app"
_DATA = ROOT.parent / "shared" / "data"
_SMALL = (
    "run.engine=local run.num_rounds=1 run.train_eval_size=16 model=minilm lora.layers=all task=intents "
    "task.train_limit=96 task.validation_limit=16 task.holdout=16 training.local_steps=1 network=fdma "
    "network.num_devices=2 network.total_bandwidth_hz=1e7 strategy=fedlodrop allocator=fixed allocator.dropout_rate=0.5"
)


@dataclass(frozen=True)
class Setting:
    """The data and the size of a run, and how often everything is measured."""

    task: str = "intents"  # or sst2
    train_file: str = ""
    test_file: str = ""
    train_limit: int = 1600
    num_devices: int = 10
    num_rounds: int = 10
    repeats: int = 5
    max_length: int = 64  # fixed length to which the baseline pads
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


def data_files(folder: Path | None) -> dict[str, Any]:
    """Return task and files of a `Setting`: SST-2 where its files are, else generated commands.

    None: beside the checkout. ConfigError if a folder was named and lacks one of the files.
    """
    train, test = ((folder or _DATA) / f"sst2_{part}.tsv.gz" for part in ("train", "validation"))
    if train.exists() and test.exists():
        return {"task": "sst2", "train_file": str(train.resolve()), "test_file": str(test.resolve())}
    if folder is not None:
        raise ConfigError(f"--data must be a folder with {train.name} and {test.name}, found none in {folder}")
    return {}


def measure_runs(setting: Setting, folder: Path) -> dict[str, tuple[float, ...]]:
    """Run the baseline app and `fedlodrop run` on the same engine; return what both cost and reach.

    RuntimeError if a run fails.
    """
    theirs, ours = folder / "baseline", folder / "ours"
    module = [sys.executable, "-P", "-m", "benchmarks.federations"]
    their_cost = measured([*module, json.dumps(baseline_config(setting)), str(theirs)], folder / "baseline.log")
    program = Path(sys.executable).parent / "fedlodrop"
    our_cost = measured([str(program), "run", *setting.overrides, f"run.dir='{ours}'"], folder / "ours.log")
    rounds = read_rounds(ours)
    metric = json.loads((ours / "summary.json").read_text())["primary_metric"]
    scores = json.loads((theirs / "summary.json").read_text())["rounds"]
    return {
        "run_cpu": (our_cost.cpu_s, their_cost.cpu_s),
        "run_wall": (our_cost.wall_s, their_cost.wall_s),
        "accuracy": (rounds[-1]["eval"][metric], scores[-1]["accuracy"]),
        "framework_overhead": (median(overhead_share(record, os.cpu_count() or 1) for record in rounds),),
    }


def baseline_config(setting: Setting) -> dict[str, Any]:
    """Return the baseline's run configuration, its learning rates and steps taken from ours."""
    config = compose_config(join_overrides(setting.overrides))
    defaults = tomllib.loads((BASELINE / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    same = {name.replace("_", "-"): value for name, value in asdict(setting).items()}
    return {name: same.get(name, value) for name, value in defaults.items()} | {
        "local-steps": config.training.local_steps,
        "batch-size": config.training.batch_size,
        "lr": config.training.lr,
        "head-lr": config.training.head_lr or config.training.lr,
        "lora-r": config.lora.r,
        "lora-alpha": int(config.lora.alpha),
        "seed": config.run.seed,
    }


def overhead_share(record: dict[str, Any], workers: int) -> float:
    """Share of a round's wall time (``record`` is a line of rounds.jsonl) that is neither training nor evaluation.

    Training counts as if the workers had shared it without a gap, so waiting for the last device is overhead too.
    """
    trained_s = sum(device["train_s"] or 0.0 for device in record["devices"]) / workers
    return 1.0 - (trained_s + record.get("eval_s", 0.0)) / float(record["wall_s"])


def measure_payload(folder: Path) -> dict[str, tuple[int, int]]:
    """Return the bytes of the adapter in one device's answer, at a dropout rate of one half, in several number types.

    Beside each stand those of the baseline's answer. RuntimeError if a round fails.
    """
    sys.path.insert(0, str(BASELINE))
    from lora_baseline import task  # type: ignore[import-not-found]

    arrays = task.get_arrays(task.get_model(12, baseline_config(Setting())))
    theirs = sum(array.numpy().nbytes for name, array in arrays.items() if "lora_" in name)
    found = {}
    for dtype in ("fp32", "fp16", "int8"):
        if code := run_in_process(f"{_SMALL} wire.dtype={dtype} run.dir='{folder / dtype}'", 2):
            raise RuntimeError(f"the round with wire.dtype={dtype} ended with code {code}; see {folder / dtype}")
        row = read_rounds(folder / dtype)[0]["devices"][0]
        assert row["dropout_rate"] == 0.5, row
        found[f"uplink_{dtype}"] = int(row["uplink_adapter_bytes"]), theirs
    return found


def main() -> None:
    """Run the baseline once: `python -m benchmarks.federations CONFIG_JSON FOLDER`."""
    config, folder = json.loads(sys.argv[1]), Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    with FlowerEngine(folder / "flower.log") as engine:
        engine.wait_ready()
        run_config = {**config, "out": str(folder / "summary.json")}
        run_id = engine.submit_app(BASELINE, run_config, federation_settings(config["num-devices"]))
        status = engine.wait(run_id, folder)
    if status != "finished:completed":
        raise EngineError(f"the baseline ended as {status}; see {folder / 'flower.log'}")


if __name__ == "__main__":
    main()
