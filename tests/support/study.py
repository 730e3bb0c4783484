"""A tiny study and its file; nothing heavy is imported, for worker processes read this, too."""

from __future__ import annotations

from pathlib import Path

import yaml

TINY = {
    "title": "A tiny study",
    "base": [
        "model=tiny",
        "task=intents",
        "network.num_devices=2",
        "run.num_rounds=2",
        "task.train_limit=48",
        "task.validation_limit=24",
        "task.holdout=12",
        "run.train_eval_size=24",
        "training.local_steps=1",
        "training.batch_size=4",
        "lora.r=2",
        "lora.layers=1",
        "network.total_bandwidth_hz=1e9",
        "tracking=none",
    ],
    "settings": {"small": []},
    "methods": {"fedit": ["strategy=fedit"], "half": ["allocator=fixed", "allocator.dropout_rate=0.5"]},
    "seeds": [0],
}


def write(folder: Path, **changes: object) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY | changes))
    return path
