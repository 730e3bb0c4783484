"""GGUF files: read back by transformers to the same numbers and answers, and by hand in llama.cpp's own layout."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from tasks.data.batches import tokenise
from tasks.data.texts import conversations
from tasks.export.gguf_export import save_gguf
from tasks.models.build import build_model
from tasks.models.files import model_source
from tasks.models.lora import lora_layers
from tasks.models.tokenizer import load_tokenizer
from tasks.scoring.generation import generate
from tasks.settings import LoraSettings, ModelError, ModelSettings
from tests.support.causal import tiny_causal
from tests.support.gguf import GROUPS, HEADS, tiny_llama, write_gguf

gguf = pytest.importorskip("gguf")
CHATS = [[("user", f"he {i}"), ("assistant", "yo")] for i in range(3)]


@pytest.fixture
def llama(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelSettings:
    model_source.cache_clear()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return ModelSettings(name="hub", gguf_file=str(write_gguf(tmp_path / "tiny.gguf", tiny_llama())), max_tokens=100)


def trained(settings: ModelSettings, **lora: Any) -> Any:
    """Return a model whose factors are anything but zero."""
    made = LoraSettings(**{"r": 4, "target_modules": ("all-linear",)} | lora)
    model = build_model(settings, made, num_outputs=1, kind="causal")
    with torch.no_grad():
        for number, (_, layer) in enumerate(lora_layers(model)):
            layer.lora_B["default"].weight.normal_(std=0.1, generator=torch.Generator().manual_seed(number))
    return model


def read(file: Path) -> dict[str, np.ndarray]:
    return {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(file).tensors}


def fields(file: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in gguf.GGUFReader(file).fields.items()}


def test_the_merged_file_is_read_back_to_the_same_numbers_and_answers(llama: ModelSettings, tmp_path: Path) -> None:
    out, tokenizer = tmp_path / "out", load_tokenizer(llama)
    data: Any = tokenise(tokenizer, conversations(CHATS))
    out.mkdir()
    model: Any = trained(llama)
    told = generate(model, tokenizer, data, max_new_tokens=12)
    save_gguf(model, tokenizer, out)
    merged = model.base_model.model.encoder.state_dict()  # merged in place
    loaded: Any = AutoModelForCausalLM.from_pretrained(out, gguf_file="model.gguf", dtype=torch.float32)
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, merged[name]), name
    again = replace(llama, gguf_file=str(out / "model.gguf"))
    bare: Any = build_model(again, LoraSettings(r=4), num_outputs=1, kind="causal")
    assert tokenise(load_tokenizer(again), conversations(CHATS)).input_ids[0].tolist() == data.input_ids[0].tolist()
    assert generate(bare, load_tokenizer(again), data, max_new_tokens=12) == told
    before, after = fields(Path(str(llama.gguf_file))), fields(out / "model.gguf")
    same = ("tokens", "token_type", "merges", "pre", "model", "bos_token_id", "eos_token_id", "padding_token_id")
    assert all(before[f"tokenizer.ggml.{name}"] == after[f"tokenizer.ggml.{name}"] for name in same)
    assert before["tokenizer.chat_template"] == after["tokenizer.chat_template"]


@pytest.mark.parametrize("use_rslora", [False, True])
def test_base_and_adapter_are_the_merged_file_in_llama_cpps_layout(
    use_rslora: bool, llama: ModelSettings, tmp_path: Path
) -> None:
    """The base file is the tests' own, with rows turned by them: what llama.cpp adds to it gives the merged file."""
    (tmp_path / "out").mkdir()
    save_gguf(trained(llama, use_rslora=use_rslora), load_tokenizer(llama), tmp_path / "out")
    base, adapter, merged = (
        read(file) for file in (Path(str(llama.gguf_file)), tmp_path / "out/adapter.gguf", tmp_path / "out/model.gguf")
    )
    parts = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    adapted = {f"blk.{layer}.{part}.weight" for layer in (0, 1) for part in parts}
    assert set(adapter) == {f"{name}.lora_{factor}" for name in adapted for factor in "ab"}
    about = fields(tmp_path / "out/adapter.gguf")
    assert (about["general.type"], about["adapter.type"], about["general.architecture"]) == ("adapter", "lora", "llama")
    alpha = about["adapter.lora.alpha"]
    assert alpha == pytest.approx(16 * (4**0.5 if use_rslora else 1))
    for name in base:
        added = 0.0
        if name in adapted:
            lora_a, lora_b = adapter[f"{name}.lora_a"], adapter[f"{name}.lora_b"]  # (r, in), (out, r)
            assert lora_a.shape == (4, base[name].shape[1]) and lora_b.shape == (base[name].shape[0], 4)
            added = alpha / len(lora_a) * lora_b @ lora_a
        np.testing.assert_allclose(merged[name], base[name] + added, rtol=1e-5, atol=1e-6)
    assert set(merged) == set(base) and base["blk.0.attn_k.weight"].shape[0] * HEADS == 32 * GROUPS


def test_a_folder_with_qwens_biases(llama: ModelSettings, tmp_path: Path) -> None:
    """Not every kind turns its rows; the tokenizer is told by its parts."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 260}
    config = Qwen2Config(**sizes, num_attention_heads=4, num_key_value_heads=2, initializer_range=0.3)
    own: Any = load_tokenizer(llama)
    own.tokenizer.save_pretrained(tmp_path / "base")
    made: Any = Qwen2ForCausalLM(config)
    with torch.no_grad():
        for name, value in made.named_parameters():
            if name.endswith("bias"):
                value.normal_()
    made.save_pretrained(tmp_path / "base")
    settings = ModelSettings(name="hub", path=str(tmp_path / "base"), max_tokens=100)
    model: Any = trained(settings)
    (tmp_path / "out").mkdir()
    save_gguf(model, load_tokenizer(settings), tmp_path / "out", base_changed=True)
    assert not (tmp_path / "out" / "adapter.gguf").exists()
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out", gguf_file="model.gguf", dtype=torch.float32)
    merged = model.base_model.model.encoder.state_dict()
    assert any(name.endswith("bias") for name in merged)
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, merged[name]), name
    assert fields(tmp_path / "out/model.gguf")["tokenizer.ggml.pre"] == "qwen2"


def test_how_a_folders_tokenizer_cuts_words_is_told_by_its_parts(llama: ModelSettings, tmp_path: Path) -> None:
    folder = ModelSettings(name="hub", path=model_source(llama), max_tokens=100)
    (tmp_path / "out").mkdir()
    save_gguf(trained(folder), load_tokenizer(folder), tmp_path / "out")
    assert fields(tmp_path / "out/model.gguf")["tokenizer.ggml.pre"] == "smollm"
    words: Any = load_tokenizer(folder)
    words.tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(ModelError, match="expected a tokenizer of byte pairs that cuts words as"):
        save_gguf(trained(folder), words, tmp_path / "other")


def test_what_llama_cpp_would_not_compute_is_refused(llama: ModelSettings, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(llama)
    with pytest.raises(ModelError, match="expected a language model of kind llama or qwen2, found gpt2"):
        save_gguf(trained(tiny_causal("gpt2", tmp_path / "g")), tokenizer, tmp_path)
    classifier = build_model(ModelSettings(name="tiny"), LoraSettings(), num_outputs=2)
    with pytest.raises(ModelError, match="expected a language model"):
        save_gguf(classifier, tokenizer, tmp_path)
    tiny = ModelSettings(name="tiny")
    with pytest.raises(ModelError, match="a tokenizer of its own, found model=tiny"):
        save_gguf(trained(tiny), load_tokenizer(tiny), tmp_path)
    model: Any = trained(llama)
    model.base_model.model.encoder.config.rope_parameters["rope_type"] = "yarn"
    with pytest.raises(ModelError, match="expected plain rotary positions.*found yarn"):
        save_gguf(model, tokenizer, tmp_path)
    assert not list(tmp_path.glob("*.gguf.tmp")) and not (tmp_path / "model.gguf").exists()
