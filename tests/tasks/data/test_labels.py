"""What becomes a class: texts stay apart, rows without a label and numbers to predict are refused, GLUE's order is GLUE's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.data.load import TaskData, TaskError, load_own_data, load_task
from tasks.scoring.evaluation import compute_metrics


def _table(folder: Path, labels: list[object], name: str = "a.csv") -> str:
    (folder / name).write_text("text,label\n" + "".join(f"text {i},{label}\n" for i, label in enumerate(labels)))
    return str(folder / name)


def _load(folder: Path, column: list[object], **more: Any) -> TaskData:
    return load_task("tsv", seed=0, train_file=_table(folder, column), **more)


@pytest.mark.parametrize(
    "labels",
    [
        ["007", "7", "07"],
        ["90071992547409931", "90071992547409932"],
        ["1e3", "1000"],
        ["1_0", "10"],
        ["+5", "5"],
        ["7.0", "7"],
        ["٣", "3"],
        ["inf", "Infinity"],
        ["0", "-0"],
        ["0x10", "16"],
    ],
)
def test_two_texts_are_never_one_class(tmp_path: Path, labels: list[object]) -> None:
    task = _load(tmp_path, labels * 20)
    assert sorted(task.label_names) == sorted(map(str, labels))
    for part in (task.train, task.validation, task.test):
        assert [task.label_names[i] for i in part.labels] == [
            labels[int(text[5:]) % len(labels)] for text in part.texts
        ]


@pytest.mark.parametrize(
    ("labels", "known", "names"),
    [
        (["01", "02"], ["02", "01"], ("02", "01")),
        ([1, 2], ["2", "1"], ("2", "1")),  # quoted or not, a whole number is the same label
        (["0.0", "1.0"], [1, 0], ("1", "0")),  # a column of floats, as pandas writes it
        (["0.5", "1.5"], ["0.5", "1.5"], ("0.5", "1.5")),
        ([-1, 0, 1], [-1, 0, 1], ("-1", "0", "1")),
        (["-", "+"], ["-", "+"], ("-", "+")),
        (["1.0", "2.0"], ["1.0", "2.0", "2.5"], ("1.0", "2.0", "2.5")),  # halves elsewhere
    ],
)
def test_named_labels_are_found_as_they_are_written(tmp_path: Path, labels: Any, known: Any, names: Any) -> None:
    task = _load(tmp_path, labels * 20, labels=known)
    assert task.label_names == names and set(task.train.labels) == set(range(len(labels)))
    own = load_own_data("tsv", train_file=_table(tmp_path, labels), seed=0, labels=known)
    assert own.label_names == names and sorted(own.train.labels) == list(range(len(labels)))


@pytest.mark.parametrize(
    ("labels", "more", "message"),
    [
        ([0, 1, 1, -1] * 20, {}, r"found 20 times -1 \(rows 4, 8, 12, 16, 20 and 15 more\).*task.labels=\[-1,0,1\]"),
        (
            ["a", "b", "-", "b"] * 9,
            {},
            r"a label in every row, found 9 empty or '-' \(rows 3, 7, 11, 15, 19 and 4 more\)",
        ),
        (["a", "b", "?"] * 9, {}, "found 9 empty or '\\?'"),
        ([0, 1] * 9 + [""], {}, r"found 1 empty \(row 19\)"),
        ([f"{i / 7:.3f}" for i in range(80)], {}, r"found numbers such as 0.143 \(row 2\).*task.kind=regression"),
        (["1.0", "2.5"] * 20, {}, "task.kind=regression"),
        ([f"name-{i}" for i in range(80)], {}, "found 80 different labels in 80 rows"),
        (range(80), {}, "found 80 different labels in 80 rows.*task.kind=regression"),
        ([0, 1] * 20, {"labels": [1, "1"]}, r"task.labels: expected different labels, found \[1, '1'\]"),
        (["0.5", "x"] * 9, {"kind": "regression"}, r"expected numbers for a regression, .*found 'x' \(rows 2, 4"),
        *(
            (["0.5", value] * 9, {"kind": "regression"}, rf"numbers .* found '{value}' \(rows 2, 4")
            for value in ("nan", "inf", "1e39", "-1e39")
        ),
    ],
)
def test_what_is_no_label_is_refused(tmp_path: Path, labels: Any, more: Any, message: str) -> None:
    with pytest.raises(TaskError, match=message) as caught:
        _load(tmp_path, list(labels), **more)
    assert "\n" not in str(caught.value)


def test_a_few_numbered_classes_are_classes(tmp_path: Path) -> None:
    assert _load(tmp_path, [-1, 1] * 20).label_names == ("-1", "1")
    assert _load(tmp_path, [-2, -1, 0, 1, 2] * 20).num_outputs == 5
    assert _load(tmp_path, list(range(77)) * 3).num_outputs == 77


def test_an_unlabelled_test_file_is_refused(tmp_path: Path) -> None:
    test = _table(tmp_path, [-1] * 20, "test.csv")
    with pytest.raises(TaskError, match=r"expected the training labels \[0, 1\], found '-1' \(rows .*without a label"):
        _load(tmp_path, [0, 1] * 20, validation_file=test)


def test_json_keeps_numbers_and_texts_apart(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [{"text": f"t{i}", "label": (1.0, "01", True)[i % 3]} for i in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert load_task("tsv", seed=0, train_file=str(path)).label_names == ("1", "01")


class TestGlue:
    def _mrpc(self, folder: Path, labels: list[object], name: str = "a.csv") -> str:
        lines = "".join(f"one {i},two {i},{label}\n" for i, label in enumerate(labels))
        (folder / name).write_text("sentence1,sentence2,label\n" + lines)
        return str(folder / name)

    @pytest.mark.parametrize("labels", [["equivalent", "not_equivalent"], [1, 0]])
    def test_f1_counts_the_equivalent_pairs(self, tmp_path: Path, labels: list[object]) -> None:
        test = self._mrpc(tmp_path, [labels[0]] * 10 + [labels[1]] * 2, "test.csv")
        task = load_task("mrpc", seed=0, train_file=self._mrpc(tmp_path, labels * 20), validation_file=test)
        assert task.label_names == ("not_equivalent", "equivalent")
        logits = np.tile([0.0, 1.0], (12, 1))  # "always equivalent"
        assert compute_metrics(task.metrics, logits, task.test.labels)["f1"] == pytest.approx(10 / 11)
        own = load_own_data("mrpc", train_file=self._mrpc(tmp_path, [labels[0]] * 5), seed=0)
        assert own.train.labels.tolist() == [1] * 5 and own.num_outputs == 2

    @pytest.mark.parametrize(
        ("labels", "known", "message"),
        [
            ([0, 1, 2], None, r"expected the training labels \[0, 1\], found '2'.*task=tsv"),
            (["same", "other"], None, r"found 'other'.*not_equivalent, equivalent.*task=tsv"),
            ([0, 1, 2], [0, 1, 2], "task mrpc: expected 2 classes, found 3 in task.labels.*task=tsv"),
            (
                ["equivalent", "not_equivalent"],
                ["equivalent", "not_equivalent"],
                r"\[not_equivalent,equivalent\] in this order",
            ),
            ([0, 1], [1, 0], r"expected task.labels=\[0,1\] in this order"),
        ],
    )
    def test_other_classes_are_refused(self, tmp_path: Path, labels: Any, known: Any, message: str) -> None:
        with pytest.raises(TaskError, match=message) as caught:
            load_task("mrpc", seed=0, train_file=self._mrpc(tmp_path, labels * 20), labels=known)
        assert "\n" not in str(caught.value)

    def test_names_of_ones_own_in_an_order_of_ones_own(self, tmp_path: Path) -> None:
        file = self._mrpc(tmp_path, ["no", "yes"] * 20)
        assert load_task("mrpc", seed=0, train_file=file, labels=["no", "yes"]).label_names == ("no", "yes")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "text;label\nhello;1\n", "expected columns separated by commas, found semicolons"),
        ("a.csv", "text;label\nhello;1,5\n", "found semicolons in its first line; .*save"),
        ("a.csv", "text\tlabel\nhello\t1\n", "found tabs in its first line"),
        ("a.tsv", "text,label\nhello,1\n", "expected columns separated by tabs, found commas"),
        ("a.csv", "text,label\ncaf\u00e9,1\n".encode("latin-1"), "expected UTF-8, found another encoding.*iconv"),
        ("a.jsonl", '{"text": "caf\u00e9"}\n'.encode("latin-1"), "expected UTF-8, found another encoding.*iconv"),
        ("a.csv", "text,label\nhello,1\n".encode("utf-16"), "expected UTF-8, found UTF-16.*iconv -f UTF-16"),
        ("a.tsv", "text\tlabel\nhello\t1\n".encode("utf-16-le"), "expected UTF-8, found UTF-16.*iconv -f UTF-16"),
    ],
)
def test_tables_of_other_programs_say_what_to_do(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(TaskError, match=message) as caught:
        load_task("tsv", seed=0, train_file=str(tmp_path / name), text_columns=["text"])
    assert "\n" not in str(caught.value)
