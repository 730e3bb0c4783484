"""Data sets by name: those that `datasets` saved or cached; one line where there is no connection."""

from __future__ import annotations

from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from tasks.data.examples import TaskError
from tasks.data.load import load_task
from tests.support.runs import rounds, run

NAMES = ["world", "sport", "money"]


def _part(size: int, *, labelled: bool = True) -> Dataset:
    features = Features({"text": Value("string"), "label": ClassLabel(names=NAMES)})
    rows = {
        "text": [f"news {k} of {size}" for k in range(size)],
        "label": [k % 3 if labelled else -1 for k in range(size)],
    }
    return Dataset.from_dict(rows, features)


@pytest.fixture
def news(tmp_path: Path) -> str:
    parts = {"train": _part(120), "test": _part(30, labelled=False), "validation": _part(40)}
    DatasetDict(parts).save_to_disk(tmp_path / "news")
    return str(tmp_path / "news")


def test_a_data_set_with_named_classes_and_a_test_split_without_labels(news: str) -> None:
    task = load_task("hub", seed=0, dataset=news, text_columns=["text"], label_column="label")
    assert task.label_names == tuple(NAMES) and len(task.test) == 40 and len(task.train) + len(task.validation) == 120
    assert set(task.train.labels.tolist()) == {0, 1, 2} and task.train.texts[0].startswith("news ")
    by_hand = load_task("hub", seed=0, dataset=news, labels=["sport", "world", "money"])
    assert by_hand.label_names == ("sport", "world", "money")  # and the column text is found


def test_a_run_on_it(news: str, tmp_path: Path) -> None:
    items = ("task=hub", f"task.dataset='{news}'", "task.train_limit=60", "task.holdout=12", "run.num_rounds=1")
    assert run(tmp_path / "run", *items) == 0 and rounds(tmp_path / "run")[0]["eval"]["num_examples"] == 40


def test_conversations_and_prompts(tmp_path: Path) -> None:
    rows = {"instruction": [f"say {k}" for k in range(50)], "output": [f"it is {k}" for k in range(50)]}
    Dataset.from_dict(rows).save_to_disk(tmp_path / "alpaca")
    task = load_task("hub", seed=0, dataset=str(tmp_path / "alpaca"), kind="causal")
    assert task.kind == "causal" and task.format == "Alpaca" and len(task.test) == 10
    columns = {"ask": rows["instruction"], "answer": rows["output"]}
    Dataset.from_dict(columns).save_to_disk(tmp_path / "pairs")
    named = load_task("hub", seed=0, dataset=str(tmp_path / "pairs"), kind="causal", text_columns=["ask", "answer"])
    assert named.train.responses[0].startswith("it is ")  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({}, "task.dataset: expected a name for task hub, found null"),
        ({"dataset": "no/such"}, r"task.dataset: cannot load 'no/such': .*expected a data set of the hub \(with a"),
        ({"dataset": __file__}, "expected a name or folder, found the file .*; use task=tsv task.train_file="),
        ({"dataset": "no/such", "train_file": "a.tsv"}, "expected no files beside it"),
    ],
)
def test_bad_input_is_one_line(settings: dict[str, str], says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(TaskError, match=says) as caught:
        load_task("hub", seed=0, **settings)
    assert "\n" not in str(caught.value)


def test_a_data_set_without_a_train_split(tmp_path: Path) -> None:
    DatasetDict({"all": _part(9)}).save_to_disk(tmp_path / "odd")
    with pytest.raises(TaskError, match="expected a split named train in .*, found all"):
        load_task("hub", seed=0, dataset=str(tmp_path / "odd"))


def test_an_array_of_json(tmp_path: Path) -> None:
    rows = ",\n".join(f'{{"text": "number {k}", "label": "{"odd" if k % 2 else "even"}"}}' for k in range(40))
    (tmp_path / "a.json").write_text(f"[{rows}]")
    task = load_task("tsv", seed=0, train_file=str(tmp_path / "a.json"))
    assert task.label_names == ("even", "odd") and len(task.test) == 8
