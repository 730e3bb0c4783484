"""Decoders as classifiers: which token speaks for a text, texts without tokens, ids that the model does not have."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModel, PreTrainedTokenizerFast

from tasks.data.batches import tokenise
from tasks.data.examples import PromptExamples, TextExamples
from tasks.models.build import build_base, build_model
from tasks.models.tokenizer import load_tokenizer
from tasks.scoring.evaluation import evaluate
from tasks.settings import LoraSettings, ModelError, ModelSettings
from tests.support.causal import tiny_causal
from tests.support.encoders import random_encoder

WORDS = [f"w{i}" for i in range(96)]
ALIKE = TextExamples(("w1 w2 w3", "w1 w2 w9 w4", "w1 w7"), np.zeros(3, dtype=np.int64))


def with_tokenizer(settings: ModelSettings, extra: int = 0, **marks: str) -> ModelSettings:
    names = ["<unk>", "<pad>", "<s>", "</s>", *WORDS, *(f"x{i}" for i in range(extra))]
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", **marks).save_pretrained(str(settings.path))
    return settings


def logits(settings: ModelSettings, examples: TextExamples, batch_size: int = 64) -> np.ndarray:
    model = build_model(settings, LoraSettings(r=2), num_outputs=3)
    return evaluate(model, tokenise(load_tokenizer(settings), examples), batch_size)[1]


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gemma2", "qwen3_moe", "falcon_mamba", "opt"])
def test_the_last_token_speaks_for_a_text_of_a_decoder(architecture: str, tmp_path: Path) -> None:
    settings = replace(with_tokenizer(tiny_causal(architecture, tmp_path)), pooling="cls")
    found = logits(settings, ALIKE)
    assert min(np.abs(found[i] - found[j]).max() for i, j in ((0, 1), (0, 2), (1, 2))) > 1e-3 * np.abs(found).max()
    np.testing.assert_allclose(
        found, logits(settings, ALIKE, batch_size=1), rtol=1e-4, atol=1e-5
    )  # padding changes nothing
    base = build_base(settings, num_outputs=3)
    hidden = AutoModel.from_pretrained(settings.path).eval()(torch.tensor([[5, 6, 7]])).last_hidden_state
    with torch.no_grad():
        expected = base.head(hidden[:, -1])
    np.testing.assert_allclose(found[:1], expected.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", ["bert", "roberta", "distilbert", "modernbert"])
def test_the_first_token_speaks_for_a_text_of_an_encoder(architecture: str, tmp_path: Path) -> None:
    base = build_base(replace(random_encoder(architecture, tmp_path), pooling="cls"), num_outputs=3)
    ids = torch.tensor([[2, 6, 7, 8], [2, 9, 1, 1]])
    mask = (ids != 1).long()
    expected = base.head(base.encoder(input_ids=ids, attention_mask=mask).last_hidden_state[:, 0])
    torch.testing.assert_close(base(input_ids=ids, attention_mask=mask), expected)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("marks", [{}, {"bos_token": "<s>"}, {"eos_token": "</s>"}], ids=str)
def test_a_text_without_tokens_is_a_mark(marks: dict[str, str], pooling: str, tmp_path: Path) -> None:
    settings = replace(with_tokenizer(tiny_causal("llama", tmp_path), **marks), pooling=pooling)
    texts = TextExamples(("", "w1 w2 w3", "  "), np.zeros(3, dtype=np.int64))
    data = tokenise(load_tokenizer(settings), texts)
    assert [len(row) for row in data.input_ids] == [1, 3, 1]
    assert data.input_ids[0][0] == {"<s>": 2, "</s>": 3, "": data.pad_token_id}["".join(marks.values())]
    found = logits(settings, texts)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[0], found[2], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found, logits(settings, texts, batch_size=1), rtol=1e-4, atol=1e-5)


def test_an_id_that_the_model_does_not_have_is_refused_by_its_word(tmp_path: Path) -> None:
    settings = with_tokenizer(tiny_causal("llama", tmp_path), extra=5)
    tokenizer = load_tokenizer(settings)
    assert tokenise(tokenizer, ALIKE).lengths.tolist() == [
        3,
        4,
        2,
    ]  # more words than rows do no harm while nobody says them
    message = r"expected a tokenizer of the model's own, whose ids end at 99, found 104 \('x4'\)"
    with pytest.raises(ModelError, match=message) as caught:
        tokenise(tokenizer, TextExamples(("w1", "w2 x4"), np.zeros(2, dtype=np.int64)))
    assert "\n" not in str(caught.value)
    with pytest.raises(ModelError, match=message):
        tokenise(tokenizer, PromptExamples(("w1",), np.zeros(1, dtype=np.int64), ("x4",)))


def test_a_padding_mark_that_the_model_does_not_have_is_replaced(tmp_path: Path) -> None:
    settings = with_tokenizer(tiny_causal("llama", tmp_path), extra=2, pad_token="x1", eos_token="</s>")
    assert load_tokenizer(settings).pad_token_id == 3
    assert np.isfinite(logits(settings, ALIKE)).all()
