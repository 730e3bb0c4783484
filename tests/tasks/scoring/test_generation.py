"""Generated answers: greedy ones, whatever the batch, ended where the turn ends."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from tasks.data.batches import tokenise
from tasks.data.examples import PromptExamples
from tasks.models.build import build_model
from tasks.models.files import model_source
from tasks.models.tokenizer import load_tokenizer
from tasks.scoring.generation import generate
from tasks.settings import ComputeSettings, LoraSettings, ModelSettings
from tests.support.gguf import tiny_llama, write_gguf

pytest.importorskip("gguf")

EXAMPLES = PromptExamples(("one", "a longer prompt", "12"), np.zeros(3), ("yes", "no", "so"), system="Say.")


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any, Any]:
    model_source.cache_clear()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    settings = ModelSettings(
        name="hub", gguf_file=str(write_gguf(tmp_path / "tiny.gguf", tiny_llama())), max_tokens=128
    )
    compute = ComputeSettings(dtype="float32", device="cpu")
    model = build_model(settings, LoraSettings(r=2), num_outputs=1, kind="causal", compute=compute)
    tokenizer = load_tokenizer(settings)
    return model, tokenizer, tokenise(tokenizer, EXAMPLES)


@torch.no_grad()
def one_by_one(model: Any, prompt: np.ndarray, tokens: int) -> list[int]:
    """Without padding, batches or a cache."""
    ids = torch.from_numpy(prompt.astype(np.int64))[None]
    for _ in range(tokens):
        last = model.base_model.model.encoder(input_ids=ids, use_cache=False).logits[:, -1]
        ids = torch.cat([ids, last.argmax(dim=-1, keepdim=True)], dim=1)
    return ids[0, len(prompt) :].tolist()


def test_batches_with_a_cache_write_what_one_token_after_the_other_gives(asked: tuple[Any, Any, Any]) -> None:
    model, tokenizer, data = asked
    written = [
        one_by_one(model, ids[:start], 6) for ids, start in zip(data.input_ids, data.response_start, strict=True)
    ]
    assert all(2 not in ids for ids in written)  # else this seed ends a turn by chance
    expected = [tokenizer.tokenizer.decode(ids, skip_special_tokens=True) for ids in written]
    assert generate(model, tokenizer, data, max_new_tokens=6) == expected
    assert generate(model, tokenizer, data, batch_size=1, max_new_tokens=6) == expected
    assert not model.training


def test_an_answer_ends_with_the_mark_that_responses_end_with(asked: tuple[Any, Any, Any]) -> None:
    model, tokenizer, data = asked
    ids, start = data.input_ids[0], data.response_start[0]
    first, second, *_ = one_by_one(model, ids[:start], 6)
    ended = replace(data.subset([0]), input_ids=(np.append(ids[:-1], np.int32(second)),))
    assert first != second
    answer = generate(model, tokenizer, ended, max_new_tokens=6)[0]
    assert answer == tokenizer.tokenizer.decode([first, second], skip_special_tokens=True)


def test_answers_that_have_ended_leave_the_batch_and_change_no_other(asked: tuple[Any, Any, Any]) -> None:
    model, tokenizer, data = asked
    starts = zip(data.input_ids, data.response_start, strict=True)
    whole = [one_by_one(model, ids[:start], 20) for ids, start in starts]
    end = next(token for token in whole[0][9:12] if token not in whole[1])  # one goes on after two stretches
    cut = [ids[: ids.index(end)] if end in ids else ids for ids in whole]
    assert len({len(ids) for ids in cut}) > 1
    ended = replace(data, input_ids=tuple(np.append(ids[:-1], np.int32(end)) for ids in data.input_ids))
    expected = [tokenizer.tokenizer.decode(ids, skip_special_tokens=True) for ids in cut]
    found = generate(model, tokenizer, ended, max_new_tokens=20)
    assert [text.removesuffix(tokenizer.tokenizer.decode([end])) for text in found] == expected


def test_the_prompt_is_the_models_own_template(asked: tuple[Any, Any, Any]) -> None:
    _, tokenizer, data = asked
    assert data.pad_token_id == int(data.input_ids[0][-1])  # the mark that ends a turn also pads, as in SmolLM2
    prompt = "<|im_start|>system\nSay.<|im_end|>\n<|im_start|>user\none<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.tokenizer.decode(data.input_ids[0]) == prompt + "yes<|im_end|>"
    batch = data.batch([0, 1])  # the second is longer: the first one is padded
    assert tokenizer.tokenizer.decode(batch.labels) == "yes<|im_end|>no<|im_end|>"  # answers and their ends, no more


def test_an_answer_ends_where_the_models_positions_do(asked: tuple[Any, Any, Any], tmp_path: Path) -> None:
    """GPT-2 has a table of positions: one token more than it has rows would be an error after a whole training."""
    _, tokenizer, data = asked
    prompt = len(data.input_ids[1][: data.response_start[1]])
    config = GPT2Config(vocab_size=300, n_embd=16, n_layer=2, n_head=2, n_positions=prompt + 3, eos_token_id=299)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    settings = ModelSettings(name="hub", path=str(tmp_path / "gpt2"), max_tokens=prompt + 3)
    model = build_model(settings, LoraSettings(r=2), num_outputs=1, kind="causal")
    few, many = (generate(model, tokenizer, data.subset([1]), max_new_tokens=tokens) for tokens in (3, 50))
    assert few == many and few != [""]
    full = replace(data, response_start=data.lengths)
    assert (
        generate(model, tokenizer, replace(full, input_ids=tuple(np.tile(i, 9)[: prompt + 3] for i in data.input_ids)))
        == [""] * 3
    )
