"""Words are read from the model's file: the same numbers, few of them, and only where the file is the model's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tasks.base import build_base
from tasks.models import ComputeSettings, LoraSettings, ModelSettings, build_model
from tasks.word_rows import WordRows, read_rows
from tests.support.encoders import random_encoder


def large_encoder(architecture: str, folder: Path) -> ModelSettings:
    return random_encoder(architecture, folder, layers=2, vocab_size=9000)


@pytest.mark.parametrize("architecture", ["bert", "roberta", "distilbert", "mpnet"])
def test_results_are_the_same_to_the_bit(tmp_path: Path, architecture: str) -> None:
    settings = large_encoder(architecture, tmp_path)
    encoder = build_base(settings, num_outputs=2).encoder
    generator = torch.Generator().manual_seed(3)
    batches = [torch.randint(5, 9000, (4, 7), generator=generator) for _ in range(4)]
    mask = torch.ones(4, 7, dtype=torch.long)
    with torch.no_grad():
        before = [encoder(input_ids=ids, attention_mask=mask).last_hidden_state for ids in [*batches, batches[0]]]
        assert read_rows(encoder, tmp_path / "model.safetensors")
        after = [encoder(input_ids=ids, attention_mask=mask).last_hidden_state for ids in [*batches, batches[0]]]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    rows = encoder.get_input_embeddings()
    assert isinstance(rows, WordRows)
    used = len(torch.cat([torch.tensor([0, 4500, 8999]), *map(torch.flatten, batches)]).unique())
    assert used <= len(rows._rows) <= used * 5 // 4 < 9000


def test_a_model_on_the_cpu_reads_its_words(tmp_path: Path) -> None:
    settings = large_encoder("bert", tmp_path)
    model = build_model(settings, LoraSettings(r=2), num_outputs=2, compute=ComputeSettings(device="cpu"))
    table = model.base_model.model.encoder.get_input_embeddings()
    assert isinstance(table, WordRows) and not table.weight.requires_grad
    assert torch.equal(table.weight, load_file(tmp_path / "model.safetensors")["embeddings.word_embeddings.weight"])


@pytest.mark.parametrize("change", ["other numbers", "other name", "half precision", "no file"])
def test_another_file_is_not_read(tmp_path: Path, change: str) -> None:
    encoder = build_base(large_encoder("bert", tmp_path), num_outputs=2).encoder
    tensors = load_file(tmp_path / "model.safetensors")
    name = "embeddings.word_embeddings.weight"
    table = tensors.pop(name)
    written: dict[str, Any] = {
        "other numbers": {name: table + 1}, "other name": {"weight": table}, "half precision": {name: table.half()},
    }.get(change, {})  # fmt: skip
    other = tmp_path / "other.safetensors"
    if change != "no file":
        save_file({**tensors, **written}, other)
    assert not read_rows(encoder, other)
    assert type(encoder.get_input_embeddings()) is torch.nn.Embedding


def test_a_small_table_stays_in_memory(tmp_path: Path) -> None:
    encoder = build_base(random_encoder("bert", tmp_path), num_outputs=2).encoder
    assert not read_rows(encoder, tmp_path / "model.safetensors")


@pytest.mark.parametrize("word", [-1, 9000])
def test_a_word_that_does_not_exist_is_refused(tmp_path: Path, word: int) -> None:
    encoder = build_base(large_encoder("bert", tmp_path), num_outputs=2).encoder
    assert read_rows(encoder, tmp_path / "model.safetensors")
    with pytest.raises(IndexError, match="word ids must be 0 to 8999"):
        encoder.get_input_embeddings()(torch.tensor([[5, word]]))


def test_a_converted_table_is_looked_up_as_ever(tmp_path: Path) -> None:
    encoder = build_base(large_encoder("bert", tmp_path), num_outputs=2).encoder
    assert read_rows(encoder, tmp_path / "model.safetensors")
    table = encoder.get_input_embeddings().to(torch.bfloat16)
    assert torch.equal(table(torch.tensor([7, 8])), table.weight[[7, 8]])
