"""A device's own file is its whole partition; class numbers are the federation's, not the file's."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from tasks.data.examples import PromptExamples
from tasks.data.load import TaskError, load_own_data


def _table(folder: Path, labels: list[object]) -> str:
    path = folder / "own.tsv"
    path.write_text("sentence\tlabel\n" + "".join(f"text number {k}\t{label}\n" for k, label in enumerate(labels)))
    return str(path)


def test_labels_keep_the_federations_numbers(tmp_path: Path) -> None:
    task = load_own_data(
        "tsv", train_file=_table(tmp_path, ["yes", "maybe", "yes"]), seed=0, labels=["no", "maybe", "yes"]
    )
    assert (
        task.train.labels.tolist() == [2, 1, 2]
        and task.num_outputs == 3
        and not len(task.test)
        and not len(task.validation)
    )
    sst2 = load_own_data("sst2", train_file=_table(tmp_path, [1, 1, 1]), seed=0)
    assert sst2.train.labels.tolist() == [1, 1, 1] and sst2.num_outputs == 2
    values = load_own_data("tsv", train_file=_table(tmp_path, [0.5, 2, 1]), seed=0, kind="regression")
    assert values.train.labels.tolist() == [0.5, 2.0, 1.0]


def test_conversations_of_a_device_are_read_in_its_own_format(tmp_path: Path) -> None:
    path, turns = tmp_path / "own.jsonl", [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Yes?"}]
    for rows in ([{"messages": turns}] * 3, [{"instruction": "Hi.", "input": "", "output": "Yes?"}] * 3):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        task = load_own_data("instruct", train_file=str(path), seed=0)
        assert (len(task.train), len(task.test), len(task.validation), task.kind) == (3, 0, 0, "causal")
    assert task.format == "Alpaca" and isinstance(task.train, PromptExamples) and task.train.responses[0] == "Yes?"
    with pytest.raises(TaskError, match="label_noise"):
        load_own_data("instruct", train_file=str(path), seed=0, label_noise=0.1)


@pytest.mark.parametrize(
    ("name", "labels", "message"),
    [("tsv", None, "need task.labels"), ("intents", [0, 1], "needs task=tsv"), ("tsv", ["no", "maybe"], "found 'yes'")],
)
def test_what_cannot_be_numbered_is_refused(
    name: str, labels: list[object] | None, message: str, tmp_path: Path
) -> None:
    with pytest.raises(TaskError, match=message):
        load_own_data(name, train_file=_table(tmp_path, ["yes", "no"]), seed=0, labels=labels)


def test_a_node_with_a_file_trains_on_it_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker, probe = (importlib.import_module(f"client_app.{name}") for name in ("worker", "probe"))
    _table(tmp_path, ["yes", "no"] * 12)
    monkeypatch.setenv("FEDLODROP_FILES", str(tmp_path))
    overrides = (
        "model=tiny task=tsv task.labels=[no,yes] run.client_evaluation=0.25 profile.source=probe training.batch_size=4"
    )
    node = {"partition-id": 2, "task.train_file": "own.tsv", "max-tx-power-w": 0.05, "step-s": 0.5}
    device = worker.open_device({"overrides": overrides}, node)
    assert (device.number, len(device.train), len(device.holdout), device.task.num_outputs) == (2, 18, 6, 2)
    facts = probe.announced_facts(device, node)
    assert facts["max-tx-power-w"] == 0.05 and facts["step-s"] == 0.5 and facts["memory-mib"] > 100
    assert 0 < probe.measured_step_s(device) < 60
    with pytest.raises(ValueError, match="cpu-hz must be a number"):
        probe.announced_facts(device, {**node, "cpu-hz": -1})
