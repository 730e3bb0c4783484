"""Short federations in this process: tiny model, few devices, the real apps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from conf.compose import compose_config, join_overrides
from server_app.engines.in_process import run_in_process

FAST = (
    "model=tiny",
    "run.engine=local",
    "run.num_rounds=3",
    "network.num_devices=4",
    "task.train_limit=96",
    "task.validation_limit=48",
    "task.holdout=32",
    "run.train_eval_size=32",
    "training.local_steps=2",
    "training.batch_size=8",
)


def run(folder: Path, *overrides: str) -> int:
    """Run a short federation into ``folder`` and return the exit code."""
    items = {item.split("=", 1)[0]: item for item in (*FAST, *overrides)}  # the last one of a key counts
    if "lora.layers" in items and "training.prefix_cache_dir" not in items:
        items["training.prefix_cache_dir"] = f"training.prefix_cache_dir='{folder}/states'"
    joined = join_overrides([*items.values(), f"run.dir='{folder}'"])
    devices = int(items["network.num_devices"].split("=")[1]) if "strategy" not in items else 0
    return run_in_process(joined, devices or compose_config(joined).network.num_devices)


def rounds(folder: Path) -> list[dict[str, Any]]:
    """Return the round records of a run."""
    return [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]


def without_wall_times(record: dict[str, Any]) -> dict[str, Any]:
    """Return a round record without what a clock decides."""
    kept = {key: value for key, value in record.items() if key not in ("wall_s", "eval_s", "first_step_at")}
    kept["plan"] = {key: value for key, value in record["plan"].items() if key != "solve_time_s"}
    kept["devices"] = [{key: value for key, value in row.items() if key != "train_s"} for row in record["devices"]]
    return kept
