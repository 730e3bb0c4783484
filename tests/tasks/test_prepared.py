"""What a device keeps of its data is what loading would give, and nothing is taken for something else."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.batching import Tokenised
from tasks.block_store import BlockStore
from tasks.data import load_task
from tasks.mnist import Images
from tasks.models import ModelSettings
from tasks.prepared import PreparedTask, prepare_task
from tests.support.encoders import random_decoder

WORDS = "wake me up at six ten play jazz stop go on and so on for a while until noon or later".split()
TINY = ModelSettings(name="tiny", max_tokens=32)
ROWS = [("wake me up at six", "a", 0, "ann"), ("play jazz", "b c", 1, "bob"), ("stop", "d", 0, "ann"), ("go on", "e", 1, "bob")]


def _table(path: Path, rows: Any = ROWS) -> Path:
    lines = ["text\tsecond\tlabel\twho", *("\t".join(map(str, row)) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


def _settings(file: Path, **more: Any) -> dict[str, Any]:
    return {"name": "tsv", "seed": 0, "train_file": str(file), "validation_file": str(file), "holdout": 1, **more}


def _no_load(**_: Any) -> Any:
    raise AssertionError("the task was loaded again")


_no_load.__name__ = load_task.__name__


def _same(a: PreparedTask, b: PreparedTask) -> bool:
    assert isinstance(a.train, Tokenised) and isinstance(b.train, Tokenised)
    for name in ("input_ids", "token_types"):
        ours, theirs = getattr(a.train, name), getattr(b.train, name)
        assert (ours is None) == (theirs is None)
        for x, y in zip(ours or (), theirs or (), strict=True):
            np.testing.assert_array_equal(x, y)
            assert x.dtype == y.dtype
    for x, y in ((a.labels, b.labels), (a.groups, b.groups), (a.train.response_start, b.train.response_start)):
        assert (x is None) == (y is None)
        if x is not None and y is not None:
            np.testing.assert_array_equal(x, y)
            assert x.dtype == y.dtype
    return (a.num_outputs, a.kind, a.metrics, a.train.pad_token_id) == (b.num_outputs, b.kind, b.metrics, b.train.pad_token_id)


@pytest.fixture
def store(tmp_path: Path) -> BlockStore:
    return BlockStore(0, tmp_path / "kept", 64)


@pytest.mark.parametrize(
    "more",
    [
        {"text_columns": ("text",)}, {"text_columns": ("text", "second")}, {"group_column": "who"}, {"kind": "regression"},
        {"name": "instruct", "text_columns": ("text", "second")},
        {"name": "intents", "train_file": None, "validation_file": None, "train_limit": 40, "holdout": 4},
    ],
    ids=["one text", "two texts", "groups", "regression", "responses", "generated"],
)  # fmt: skip
def test_the_second_process_finds_what_the_first_one_made(tmp_path: Path, store: BlockStore, more: dict[str, Any]) -> None:
    settings = _settings(_table(tmp_path / "a.tsv"), **more)
    loaded = prepare_task(settings, TINY)
    assert _same(prepare_task(settings, TINY, store=store), loaded)
    again = BlockStore(0, tmp_path / "kept", 64)
    assert _same(prepare_task(settings, TINY, store=again, load=_no_load), loaded)


def test_whatever_changes_the_examples_is_another_task(tmp_path: Path, store: BlockStore) -> None:
    file = _table(tmp_path / "a.tsv")
    settings = _settings(file)
    prepare_task(settings, TINY, store=store)
    prepare_task(settings, TINY, store=store, load=_no_load)
    for changed, model, code in [
        ({**settings, "seed": 1}, TINY, b""),
        ({**settings, "label_noise": 0.5}, TINY, b""),
        (settings, replace(TINY, max_tokens=8), b""),
        (settings, TINY, b"other"),
    ]:
        with pytest.raises(AssertionError, match="loaded again"):
            prepare_task(changed, model, code=code, store=store, load=_no_load)
    time = file.stat().st_mtime_ns
    _table(file, [("wake me up at ten", *ROWS[0][1:]), *ROWS[1:]])
    os.utime(file, ns=(time, time))
    with pytest.raises(AssertionError, match="loaded again"):
        prepare_task(settings, TINY, store=store, load=_no_load)


def test_another_tokenizer_in_the_same_folder_is_another_task(tmp_path: Path, store: BlockStore) -> None:
    model = ModelSettings(name="hub", path=random_decoder(tmp_path / "model", WORDS), max_tokens=16)
    settings = _settings(_table(tmp_path / "a.tsv"))
    prepare_task(settings, model, store=store)
    prepare_task(settings, model, store=store, load=_no_load)
    random_decoder(tmp_path / "model", WORDS[::-1])
    with pytest.raises(AssertionError, match="loaded again"):
        prepare_task(settings, model, store=store, load=_no_load)


def test_a_damaged_file_is_made_again(tmp_path: Path, store: BlockStore) -> None:
    settings = _settings(_table(tmp_path / "a.tsv"))
    loaded = prepare_task(settings, TINY, store=store)
    (kept,) = (tmp_path / "kept").glob("task-*")
    content = bytearray(kept.read_bytes())
    content[len(content) // 2] ^= 1
    kept.write_bytes(content)
    assert _same(prepare_task(settings, TINY, store=store), loaded)
    prepare_task(settings, TINY, store=store, load=_no_load)


def test_images_and_missing_files_are_left_to_the_loader(tmp_path: Path, store: BlockStore) -> None:
    with pytest.raises(ValueError, match=r"expected a file at .*nowhere\.tsv"):
        prepare_task(_settings(tmp_path / "nowhere.tsv"), TINY, store=store)
    pixels = np.random.default_rng(0).integers(0, 256, (20, 28, 28), dtype=np.uint8)
    archive = tmp_path / "images.npz"
    np.savez(archive, x_train=pixels, y_train=np.arange(20) % 10, x_test=pixels, y_test=np.arange(20) % 10)
    settings = {"name": "mnist", "seed": 0, "train_file": str(archive), "holdout": 2}
    assert isinstance(prepare_task(settings, ModelSettings(name="mlp"), store=store).train, Images)
    assert not list((tmp_path / "kept").glob("task-*"))
