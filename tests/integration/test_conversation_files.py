"""A file of ten lines in every format of conversations trains a causal model in a federation and is scored."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.runs import rounds, run

ASKED = [
    f"turn {room} light {state}" for room in ("kitchen", "hall", "attic", "cellar", "porch") for state in ("on", "off")
]
FORMATS: dict[str, tuple[str, Callable[[str], dict[str, Any]]]] = {
    "messages": (
        "messages",
        lambda asked: {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": asked},
                {"role": "assistant", "content": "Done."},
                {"role": "user", "content": "Sure?"},
                {"role": "assistant", "content": asked.split()[-1]},
            ]
        },
    ),
    "sharegpt": (
        "ShareGPT",
        lambda asked: {
            "conversations": [{"from": "human", "value": asked}, {"from": "gpt", "value": asked.split()[-1]}]
        },
    ),
    "alpaca": ("Alpaca", lambda asked: {"instruction": asked, "input": "", "output": asked.split()[-1]}),
    "pairs": ("prompt and response", lambda asked: {"prompt": asked, "response": asked.split()[-1]}),
}


@pytest.mark.parametrize("name", FORMATS)
def test_ten_lines_train_and_are_scored(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    said, row = FORMATS[name]
    file = tmp_path / f"{name}.jsonl"
    file.write_text("".join(json.dumps(row(asked)) + "\n" for asked in ASKED))
    options = ("task.train_limit=null", "task.validation_limit=null", "task.holdout=1", "training.lr=0.02")
    wide = ("budget.deadline_s=1e4", "budget.energy_j=1e6", "network.num_devices=2", "run.num_rounds=2")
    assert run(tmp_path / "run", "task=instruct", f"task.train_file='{file}'", *options, *wide) == 0
    assert f"instruct ({said})" in caplog.text
    first, *_, last = rounds(tmp_path / "run")
    assert sum(row["num_examples"] or 0 for row in last["devices"]) == 7  # ten less two to test on and one to choose by
    assert last["eval"]["loss"] < first["eval"]["loss"] and math.isfinite(last["eval"]["perplexity"])
    assert 0 <= last["eval"]["teacher_forced_match"] <= 1


def test_a_glue_task_asks_a_language_model(tmp_path: Path) -> None:
    file = tmp_path / "reviews.tsv"
    words = [("a fine film", 1), ("a dull film", 0), ("great fun", 1), ("no fun at all", 0)]
    rows = [f"{text} number {i}\t{label}" for i in range(10) for text, label in words]
    file.write_text("\n".join(["sentence\tlabel", *rows]) + "\n")
    options = ("task.train_limit=null", "task.validation_limit=null", "task.holdout=4", "partition.min_size=1")
    wide = ("budget.deadline_s=1e4", "budget.energy_j=1e6", "network.num_devices=2", "run.num_rounds=1")
    assert run(tmp_path / "run", "task=sst2", "task.kind=causal", f"task.train_file='{file}'", *options, *wide) == 0
    assert set(rounds(tmp_path / "run")[-1]["eval"]) >= {"teacher_forced_match", "perplexity", "loss"}
