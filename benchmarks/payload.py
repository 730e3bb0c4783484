"""Bytes of one device's answer at a dropout rate of one half, beside the baseline's; both read from real messages."""

import json
import sys
from pathlib import Path

from flwr.app import ConfigRecord, Message, RecordDict

from benchmarks.federations import BASELINE, Setting, baseline_config
from server_app.engines.in_process import LocalGrid, run_in_process

_SMALL = (
    "run.engine=local run.num_rounds=1 run.train_eval_size=16 model=minilm lora.layers=all task=intents "
    "task.train_limit=96 task.validation_limit=16 task.holdout=16 training.local_steps=1 network=fdma "
    "network.num_devices=2 network.total_bandwidth_hz=1e7 strategy=fedlodrop allocator=fixed allocator.dropout_rate=0.5"
)


def measure(dtype: str, folder: Path) -> dict[str, int]:
    """Return the bytes of the adapter in both answers, ours in a type of numbers."""
    return {"ours": ours(dtype, folder), "theirs": theirs()}


def ours(dtype: str, folder: Path) -> int:
    """Run one round and return the bytes of the adapter part of a device's answer."""
    if code := run_in_process(f"{_SMALL} wire.dtype={dtype} run.dir='{folder}'", 2):
        raise RuntimeError(f"the round with wire.dtype={dtype} ended with code {code}; see {folder}")
    row = json.loads((folder / "rounds.jsonl").read_text().splitlines()[0])["devices"][0]
    assert row["dropout_rate"] == 0.5, row
    return int(row["uplink_adapter_bytes"])


def theirs() -> int:
    """Let a device of the baseline train one step and return the bytes of the adapter tensors in its answer."""
    sys.path.insert(0, str(BASELINE))
    from lora_baseline import task  # type: ignore[import-not-found]
    from lora_baseline.client import app  # type: ignore[import-not-found]

    setting = Setting(train_limit=96, num_devices=2, num_rounds=1, max_length=16)
    config = {**baseline_config(setting), "local-steps": 1}
    grid = LocalGrid(app, 2, config)
    arrays = task.get_arrays(task.get_model(12, config))
    content = RecordDict({"arrays": arrays, "config": ConfigRecord({"server-round": 1})})
    node = next(iter(grid.get_node_ids()))
    (reply,) = grid.send_and_receive([Message(content, node, "train", ttl=600.0)])
    tensors = reply.content.array_records["arrays"]
    return sum(array.numpy().nbytes for name, array in tensors.items() if "lora_" in name)
