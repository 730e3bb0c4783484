"""A task of your own from a table: is a sentence about food or about travel? Train on it, then ask the model.

Run: python examples/custom_task.py
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from conf.compose import join_overrides, quoted
from fedlodrop.model.load import load_trained
from fedlodrop.model.predict import predict
from server_app.engines.in_process import run_in_process

WORDS = {
    "food": (["cook", "bake", "order", "taste"], ["soup", "bread", "noodles", "salad", "a pie"]),
    "travel": (["book", "catch", "miss", "find"], ["the train", "a flight", "the ferry", "a taxi", "the bus"]),
}
WHO = ["I", "we", "they", "my friends", "the neighbours"]
WHEN = ["today", "tomorrow", "at noon", "before work", "on Sunday", "next week"]


def table(size: int, seed: int) -> pd.DataFrame:
    """Return sentences with their label."""
    rng = np.random.default_rng([0x657861, seed])
    rows = []
    for _ in range(size):
        label = str(rng.choice(list(WORDS)))
        verbs, things = WORDS[label]
        text = " ".join(str(rng.choice(words)) for words in (WHO, verbs, things, WHEN))
        rows.append({"sentence": text, "topic": label})
    return pd.DataFrame(rows)


def main() -> int:
    """Write two tables, run a federation of four devices on them, and ask for two predictions."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        table(240, 0).to_csv(folder / "train.tsv", sep="\t", index=False)
        table(80, 1).to_csv(folder / "test.tsv", sep="\t", index=False)
        overrides = join_overrides(
            [
                "task=tsv",
                f"task.train_file={quoted(folder / 'train.tsv')}",
                f"task.validation_file={quoted(folder / 'test.tsv')}",
                "task.text_columns=[sentence]",
                "task.label_column=topic",
                "model=tiny",
                "run.engine=local",
                "network.num_devices=4",
                "run.num_rounds=4",
                "training.local_steps=8",
                f"run.dir={quoted(folder / 'run')}",
            ]
        )
        code = run_in_process(overrides, num_devices=4)
        if code == 0:
            texts = ["we cook soup at noon", "they catch the ferry tomorrow"]
            for text, answer in zip(texts, predict(load_trained(folder / "run"), texts), strict=True):
                print(f"{text}: {answer[0][0]} ({answer[0][1]:.2f})")
    return code


if __name__ == "__main__":
    sys.exit(main())
