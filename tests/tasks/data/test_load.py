from __future__ import annotations

import gzip
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from tasks.data.examples import flip_labels, hold_out, take
from tasks.data.glue import GLUE
from tasks.data.load import TASKS, TaskError, TextExamples, load_task
from tasks.data.tables import read_table


@pytest.fixture
def files(tmp_path):
    """A two-class task with 300 training and 60 validation rows, in every format."""

    def write(suffix: str, count: int, name: str) -> str:
        rows = pd.DataFrame(
            {
                "text": [f'{name} "phrase {i}' for i in range(count)],
                "other": [f"pair {i}" for i in range(count)],
                "label": [("no", "yes")[i % 2] for i in range(count)],
                "score": np.arange(count) / 10,
                "who": [f"w{i % 5}" for i in range(count)],
            }
        )
        path = tmp_path / f"{name}{suffix}"
        if suffix == ".parquet":
            rows.to_parquet(path)
        elif suffix.startswith(".csv"):
            rows.to_csv(path, index=False)
        else:
            text = (
                "\n".join("\t".join(map(str, row)) for row in [tuple(rows.columns), *rows.itertuples(index=False)])
                + "\n"
            )
            path.write_bytes(gzip.compress(text.encode()) if suffix.endswith(".gz") else text.encode())
        return str(path)

    return lambda suffix=".tsv": {
        "train_file": write(suffix, 300, "train"),
        "validation_file": write(suffix, 60, "dev"),
        "text_columns": ["text"],
    }


class TestFiles:
    @pytest.mark.parametrize("suffix", [".tsv", ".tsv.gz", ".csv", ".csv.gz", ".parquet"])
    def test_every_format_gives_the_same_task(self, files, suffix):
        ours, theirs = load_task("tsv", seed=3, **files(suffix)), load_task("tsv", seed=3, **files(".tsv"))
        for side in ("train", "validation", "test"):
            assert getattr(ours, side).texts == getattr(theirs, side).texts
            np.testing.assert_array_equal(getattr(ours, side).labels, getattr(theirs, side).labels)
        assert ours.label_names == ("no", "yes")
        assert ours.test.texts[0] == 'dev "phrase 0'

    def test_validation_comes_out_of_training_and_the_given_file_is_the_test_set(self, files):
        task = load_task("tsv", seed=0, **files())
        assert (len(task.train), len(task.validation), len(task.test)) == (270, 30, 60)
        assert not set(task.train.texts) & set(task.validation.texts)
        assert all(text.startswith("train") for text in (*task.train.texts, *task.validation.texts))
        assert all(text.startswith("dev") for text in task.test.texts)
        assert (task.primary_metric, task.num_outputs, task.kind) == ("accuracy", 2, "classification")

    def test_limits_and_seed(self, files):
        options = files() | {"train_limit": 50, "validation_limit": 20, "holdout": 10}
        one, same, other = (load_task("tsv", seed=seed, **options) for seed in (1, 1, 2))
        assert (len(one.train), len(one.validation), len(one.test)) == (50, 10, 20)
        assert one.train.texts == same.train.texts != other.train.texts
        assert one.validation.texts == same.validation.texts != other.validation.texts

    def test_the_limit_does_not_change_who_is_held_out(self, files):
        options = files() | {"holdout": 10}
        assert load_task("tsv", seed=1, **options).validation.texts == (
            load_task("tsv", seed=1, train_limit=40, **options).validation.texts
        )

    def test_without_a_validation_file_a_fifth_is_the_test_set(self, files):
        task = load_task("tsv", seed=1, **(files() | {"validation_file": None}))
        assert (len(task.train), len(task.validation), len(task.test)) == (216, 24, 60)
        assert not set(task.test.texts) & {*task.train.texts, *task.validation.texts}

    def test_pairs_groups_and_regression(self, files):
        options = files() | {"text_columns": ["text", "other"], "group_column": "who"}
        task = load_task("tsv", seed=0, label_column="score", kind="regression", **options)
        assert task.train.text_pairs is not None
        assert task.train.text_pairs[0].startswith("pair")
        assert task.train.labels.dtype == np.float32
        assert (task.num_outputs, task.label_names, task.metrics) == (1, (), ("pearson", "spearman"))
        assert set(task.train.groups) == set(range(5))

    def test_label_noise_is_in_the_training_set_only(self, files):
        clean, noisy = (load_task("tsv", seed=0, label_noise=rate, **files()) for rate in (0.0, 0.2))
        assert clean.train.texts == noisy.train.texts
        assert 0.1 < np.mean(clean.train.labels != noisy.train.labels) < 0.3
        for side in ("validation", "test"):
            np.testing.assert_array_equal(getattr(clean, side).labels, getattr(noisy, side).labels)

    def test_integer_labels_need_not_start_at_zero(self, tmp_path):
        path = tmp_path / "stars.csv"
        pd.DataFrame({"text": [f"t{i}" for i in range(40)], "label": [1, 5] * 20}).to_csv(path, index=False)
        task = load_task("tsv", seed=0, train_file=str(path))
        assert task.label_names == ("1", "5")
        assert set(task.train.labels) == {0, 1}

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"train_file": "nowhere.tsv"}, "expected a file at 'nowhere.tsv', found none"),
            ({"train_file": None}, "task.train_file: expected a file for task tsv, found null"),
            (
                {"text_columns": ["sentence"]},
                r"task.text_columns: expected one of the columns \['text', .*found 'sentence'",
            ),
            ({"text_columns": ["text", "other", "who"]}, "expected one or two of"),
            (
                {"text_columns": ["sentence"], "label_column": "target"},
                "task.text_columns: expected one of .* found 'sentence'; task.label_column: found 'target'",
            ),
            ({"label_column": "target"}, "task.label_column: expected one of the columns .* found 'target'"),
            ({"label_column": "text", "kind": "regression"}, "expected numbers for a regression"),
            ({"kind": "ranking"}, "task.kind: expected classification, regression or null"),
            ({"label_column": "score", "kind": "regression", "label_noise": 0.1}, "expected 0 for a regression task"),
            ({"holdout": 300}, "task.holdout: expected 0 or more and fewer than the 300 training examples, found 300"),
        ],
    )
    def test_errors_are_one_clear_line(self, files, change, message):
        with pytest.raises(TaskError, match=message) as caught:
            load_task("tsv", seed=0, **(files() | change))
        assert "\n" not in str(caught.value)

    def test_missing_text(self, tmp_path):
        pd.DataFrame({"text": ["a", None], "label": [0, 1]}).to_parquet(tmp_path / "a.parquet")
        with pytest.raises(TaskError, match="column 'text': expected a text in every row, found 1 missing"):
            load_task("tsv", seed=0, train_file=str(tmp_path / "a.parquet"))

    def test_test_label_unknown_to_training(self, tmp_path):
        for name, labels in (("a", ["x", "y"]), ("b", ["x", "z"])):
            pd.DataFrame({"text": [f"t{i}" for i in range(40)], "label": labels * 20}).to_csv(tmp_path / f"{name}.csv")
        with pytest.raises(TaskError, match=r"expected the training labels \['x', 'y'\], found 'z'"):
            load_task("tsv", seed=0, train_file=str(tmp_path / "a.csv"), validation_file=str(tmp_path / "b.csv"))

    def test_numbers_are_texts_too_and_a_byte_order_mark_is_none(self, tmp_path):
        path = tmp_path / "numbers.csv"
        path.write_text("text,label\n" + "".join(f"00{i},{i % 2}.0\n" for i in range(40)), encoding="utf-8-sig")
        task = load_task("tsv", seed=0, train_file=str(path))
        assert all(text.startswith("00") for text in task.train.texts)
        assert task.label_names == ("0", "1")

    def test_quotation_marks_separate_in_csv_and_not_in_tsv(self, tmp_path):
        (tmp_path / "a.csv").write_text('text,label\n"one, ""two""\nthree",1\n\nfour,0\n')
        (tmp_path / "a.tsv").write_text('text\tlabel\n"one, ""two""\t1\r\n\nfour"\t0\n')
        assert read_table(tmp_path / "a.csv") == {"text": ['one, "two"\nthree', "four"], "label": ["1", "0"]}
        assert read_table(tmp_path / "a.tsv") == {"text": ['"one, ""two""', 'four"'], "label": ["1", "0"]}

    def test_no_pandas_for_separated_values(self, tmp_path):
        (tmp_path / "a.tsv").write_text("text\tlabel\n" + "".join(f"t{i}\t{i % 2}\n" for i in range(40)))
        code = "from tasks.data.load import load_task; load_task('tsv', seed=0, train_file=sys.argv[1])"
        command = [sys.executable, "-c", f"import sys; {code}; print(*sys.modules)", str(tmp_path / "a.tsv")]
        loaded = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        assert "tasks.data.tables" in loaded and "pandas" not in loaded

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("a.tsv", b"text\tlabel\nhello\t1\tmore\nyou\t0\tmore\n", "cannot be read"),
            ("a.tsv", b"text\tlabel\nhello\t1\nyou\t0\tmore\n", "cannot be read: line 3: expected 2 fields, found 3"),
            ("a.csv", b"text,label\nhello,1\nyou\n", "expected a label in every row, found 1 empty"),
            ("a.csv", b"text,label,text\nhello,1,you\n", "cannot be read: .*different names, found 'text' twice"),
            ("a.csv", b'text,label\n"hello,1\nyou,0\n', "cannot be read: unexpected end of data"),
            ("a.csv", "text,label\ncaf\u00e9,1\n".encode("latin-1"), "cannot be read"),
            ("a.csv", b"text,label\nhello,\nyou,1\n", "expected a label in every row, found 1 empty"),
            ("a.csv", b"text,label\nhello,1\nyou,1\n", r"at least two classes, found only \[1\]"),
            ("a.csv", b"text,label\n", "found an empty table"),
            ("a.csv", b"", "cannot be read"),
            ("a.tsv.gz", b"not gzip", "cannot be read"),
            ("a.parquet", b"not parquet", "cannot be read"),
            ("a.txt", b"text", "expected .tsv, .csv"),
        ],
    )
    def test_broken_files(self, tmp_path, name, content, message):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(TaskError, match=message):
            load_task("tsv", seed=0, train_file=str(tmp_path / name), text_columns=["text"])


class TestGlue:
    def test_through_datasets(self, monkeypatch):
        """The library is replaced at its door: names, split rule and metrics are ours."""
        asked = []

        def load_dataset(path, name):
            asked.append((path, name))
            glue = GLUE[name]
            table = {column: [f"{column} {i}" for i in range(50)] for column in glue.text_columns}
            classes = len(glue.label_names)
            table["label"] = [i % classes for i in range(50)] if classes else [i / 10 for i in range(50)]
            tests = ["validation_matched", "validation_mismatched"] if name == "mnli" else ["validation"]
            return {
                split: SimpleNamespace(to_pandas=lambda split=split: pd.DataFrame(table).replace("x", split))
                for split in ("train", *tests)
            }

        monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
        assert {"cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte", "wnli"} <= set(GLUE)
        for name, glue in GLUE.items():
            task = load_task(name, seed=0)
            assert asked[-1] == ("nyu-mll/glue", name.removesuffix("_mismatched"))
            assert (len(task.train), len(task.validation), len(task.test)) == (45, 5, 50)
            assert (task.metrics, task.label_names, task.kind) == (glue.metrics, glue.label_names, glue.kind)
            asks = load_task(name, seed=0, kind="causal")
            assert (asks.kind, asks.metrics, asks.num_outputs) == ("causal", ("teacher_forced_match", "perplexity"), 1)
            assert (len(asks.train), len(asks.validation), len(asks.test)) == (45, 5, 50)

    def test_as_prompts(self, tmp_path):
        """Every text stands in its prompt, every class has an answer of its own, braces in a text mean nothing."""
        for name, glue in GLUE.items():
            numbers = [0.0, 2.5, 4.96] if glue.kind == "regression" else range(len(glue.label_names))
            rows = [
                [*(f"{{{column}}} {i}" for column in glue.text_columns), str(label)]
                for i in range(9)
                for label in numbers
            ]
            file = tmp_path / f"{name}.tsv"
            file.write_text("\n".join("\t".join(row) for row in [[*glue.text_columns, "label"], *rows]) + "\n")
            task = load_task(name, seed=0, kind="causal", train_file=str(file))
            for prompt, answer, label in zip(task.train.texts, task.train.responses, task.train.labels, strict=True):
                assert all(f"{{{column}}} " in prompt for column in glue.text_columns)
                assert answer == (f"{label:.1f}" if glue.kind == "regression" else glue.answers[int(label)])
                assert glue.kind == "regression" or answer in prompt  # what may be answered is said
            assert len(set(glue.answers)) == len(glue.label_names)
            with pytest.raises(TaskError, match="task.label_noise: expected 0 for a causal task"):
                load_task(name, seed=0, kind="causal", train_file=str(file), label_noise=0.1)
        with pytest.raises(TaskError, match="task.kind: expected classification, regression or null for task tsv"):
            load_task("tsv", seed=0, kind="causal", train_file=str(file))

    def test_unreachable(self, monkeypatch):
        def load_dataset(path, name):
            raise ConnectionError("no route\nto host")

        monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
        with pytest.raises(TaskError, match=r"neither cached nor reachable: no route; give task.train_file") as caught:
            load_task("cola", seed=0)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(("name", "sizes"), [("cola", (8551, 1043)), ("sst2", (67349, 872)), ("rte", (2490, 277))])
    def test_real_files(self, shared_data, name, sizes):
        files = {f"{side}_file": str(shared_data / f"{name}_{side}.tsv.gz") for side in ("train", "validation")}
        task = load_task(name, seed=0, **files)
        assert len(task.test) == sizes[1]
        assert sizes[0] * 0.95 < len(task.train) + len(task.validation) <= sizes[0]
        assert len(task.validation) == 200
        assert not set(task.train.keys()) & set(task.validation.keys())
        assert task.metrics == GLUE[name].metrics


class TestExamples:
    def test_unknown_task(self):
        with pytest.raises(
            TaskError, match="expected one of intents, calls, hub, instruct, mnist, tsv, cola.*found 'imdb'"
        ):
            load_task("imdb", seed=0)
        assert set(TASKS) == {"intents", "calls", "hub", "instruct", "mnist", "tsv", *GLUE}

    def test_columns_must_fit(self):
        with pytest.raises(TaskError, match="labels: expected 2 entries, one per text, found 1"):
            TextExamples(("a", "b"), np.zeros(1))

    def test_duplicates_never_lie_on_both_sides(self, rng):
        examples = TextExamples(tuple("aAbbccddeeffgg"), np.zeros(14))
        rest, held = hold_out(examples, 4, rng)
        assert len(held) == 4
        assert not set(rest.keys()) & set(held.keys())

    def test_take_keeps_the_order(self, rng):
        examples = TextExamples(tuple("abcdefgh"), np.arange(8))
        labels = take(examples, 5, rng).labels.tolist()
        assert len(labels) == 5
        assert labels == sorted(labels)
        assert take(examples, None, rng) is examples

    def test_flipped_labels_are_wrong_and_uniform(self, rng):
        examples = TextExamples(("x",) * 8000, np.full(8000, 2))
        flipped = flip_labels(examples, 0.3, 4, rng).labels
        share = np.bincount(flipped, minlength=4) / 8000
        np.testing.assert_allclose(share, [0.1, 0.1, 0.7, 0.1], atol=0.02)
