"""Bytes of one device's answer at a dropout rate of one half, as its message holds it, beside the baseline's."""

import json
import sys
from pathlib import Path

from benchmarks.federations import BASELINE, Setting, baseline_config
from server_app.engines.in_process import run_in_process

_SMALL = (
    "run.engine=local run.num_rounds=1 run.train_eval_size=16 model=minilm lora.layers=all task=intents "
    "task.train_limit=96 task.validation_limit=16 task.holdout=16 training.local_steps=1 network=fdma "
    "network.num_devices=2 network.total_bandwidth_hz=1e7 strategy=fedlodrop allocator=fixed allocator.dropout_rate=0.5"
)


def measure(folder: Path) -> dict[str, tuple[int, int]]:
    """Return the bytes of the adapter in both answers, ours in several types of numbers."""
    dense = theirs()
    return {f"uplink_{dtype}": (ours(dtype, folder / dtype), dense) for dtype in ("fp32", "fp16", "int8")}


def ours(dtype: str, folder: Path) -> int:
    """Run one round and return the bytes of the adapter part of a device's answer."""
    if code := run_in_process(f"{_SMALL} wire.dtype={dtype} run.dir='{folder}'", 2):
        raise RuntimeError(f"the round with wire.dtype={dtype} ended with code {code}; see {folder}")
    row = json.loads((folder / "rounds.jsonl").read_text().splitlines()[0])["devices"][0]
    assert row["dropout_rate"] == 0.5, row
    return int(row["uplink_adapter_bytes"])


def theirs() -> int:
    """Return the bytes of the adapter tensors that a device of the baseline answers with."""
    sys.path.insert(0, str(BASELINE))
    from lora_baseline import task  # type: ignore[import-not-found]

    arrays = task.get_arrays(task.get_model(12, baseline_config(Setting())))
    return sum(array.numpy().nbytes for name, array in arrays.items() if "lora_" in name)
