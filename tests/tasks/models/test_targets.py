"""Which modules get factors: all that were named, or a refusal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel

from tasks.models.build import build_base, build_model, describe_model, model_notes
from tasks.models.lora import adapter_spec
from tasks.settings import ComputeSettings, LoraSettings, ModelError, ModelSettings
from tests.support.causal import tiny_causal
from tests.support.encoders import random_encoder, randomise
from tests.tasks.models.test_causal_models import IDS, MASK, PREDICT

LAYERS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def kinds(model: Any) -> set[str]:
    return {module.name.rsplit(".", 1)[1] for module in adapter_spec(model).modules}


def test_a_named_output_layer_is_adapted(tmp_path: Path) -> None:
    settings, lora = tiny_causal("llama", tmp_path), LoraSettings(r=2, target_modules=("q_proj", "lm_head"))
    float32 = ComputeSettings(device="cpu", dtype="float32")
    model = build_model(settings, lora, num_outputs=1, kind="causal", compute=float32)
    assert kinds(model) == {"q_proj", "lm_head"}
    described = describe_model(settings, lora, 1, "causal")
    assert described.spec == adapter_spec(model)
    plain = describe_model(settings, LoraSettings(r=2, target_modules=("q_proj",)), 1, "causal").flops
    assert described.flops.frozen_per_token == plain.frozen_per_token
    assert described.flops.attention_per_pair == plain.attention_per_pair
    randomise(model)
    with torch.no_grad():
        ours = model(input_ids=IDS, attention_mask=MASK, predict=PREDICT)
        whole = model.base_model.model.encoder(input_ids=IDS, attention_mask=MASK).logits
        merged = model.merge_and_unload().encoder(input_ids=IDS, attention_mask=MASK).logits
    torch.testing.assert_close(ours, whole[PREDICT])
    torch.testing.assert_close(merged, whole, rtol=1e-4, atol=1e-4)


def test_an_output_layer_that_is_the_word_table_is_refused(tmp_path: Path) -> None:
    settings = tiny_causal("gemma2", tmp_path)  # tied
    for build in (build_model, describe_model):
        with pytest.raises(ModelError, match="found 'lm_head', which shares them with the input embeddings"):
            build(settings, LoraSettings(target_modules=("q_proj", "lm_head")), num_outputs=1, kind="causal")


@pytest.mark.parametrize("target", ["project_in", "project_out"])
def test_a_projection_outside_the_layers_is_adapted(target: str, tmp_path: Path) -> None:
    settings, lora = tiny_causal("opt", tmp_path), LoraSettings(r=2, target_modules=("q_proj", target))
    model = build_model(settings, lora, num_outputs=1, kind="causal")
    assert kinds(model) == {"q_proj", target} and describe_model(settings, lora, 1, "causal").spec == adapter_spec(
        model
    )


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_what_the_upper_layers_do_not_have_is_refused(target: str, tmp_path: Path) -> None:
    lora = LoraSettings(target_modules=("q_proj", target), layers=1)
    with pytest.raises(ModelError, match=f"lora.target_modules: expected .* found '{target}'"):
        describe_model(tiny_causal("llama", tmp_path), lora, 1, "causal")


def test_all_linear_means_every_linear_module_of_the_layers(tmp_path: Path) -> None:
    settings = tiny_causal("llama", tmp_path)
    model = build_model(settings, LoraSettings(target_modules=("all-linear",)), num_outputs=1, kind="causal")
    assert kinds(model) == LAYERS
    upper = describe_model(settings, LoraSettings(target_modules=("all-linear",), layers=1), 1, "causal").spec
    assert len(upper.modules) == len(LAYERS)
    encoder = random_encoder("bert", tmp_path / "bert", layers=2)
    spec = describe_model(encoder, LoraSettings(target_modules=("all-linear",)), 2).spec
    assert {module.name.rsplit(".", 1)[1] for module in spec.modules} == {"query", "key", "value", "dense"}
    assert len(spec.modules) == 2 * 6


@pytest.mark.parametrize(
    ("architecture", "chosen"), [("llama", None), ("gpt_neox", None), ("phi3", "o_proj, qkv_proj")]
)
def test_a_choice_that_nobody_published_is_said(architecture: str, chosen: str | None, tmp_path: Path) -> None:
    settings = tiny_causal(architecture, tmp_path)
    notes = model_notes(build_model(settings, LoraSettings(), num_outputs=1, kind="causal"), LoraSettings())
    assert len(notes) == (chosen is not None)
    assert all("all-linear" in note and str(chosen) in note for note in notes)


@pytest.mark.parametrize("shared", ["down_proj", "shared_expert_gate"])
def test_names_of_shared_experts_stay_what_they_are(shared: str, tmp_path: Path) -> None:
    """PEFT reads such names as those of an older layout, in which they belonged to the experts."""
    settings, lora = tiny_causal("qwen2_moe", tmp_path), LoraSettings(r=2, target_modules=(shared,))
    model = build_model(settings, lora, num_outputs=1, kind="causal")
    assert kinds(model) == {shared} and describe_model(settings, lora, 1, "causal").spec == adapter_spec(model)


def test_the_experts_that_a_token_meets_are_counted(tmp_path: Path) -> None:
    few, all_of_them = (
        describe_model(_experts(tmp_path / str(count), count), LoraSettings(r=2), 1, "causal").flops.frozen_per_token
        for count in (1, 4)
    )
    expert = 3 * 32 * 64  # gate, up and down projection
    assert all_of_them - few == 2 * 3 * expert * (2 * 2)  # 2 layers, forward and the input's gradient


def _experts(folder: Path, count: int) -> ModelSettings:
    tiny_causal("mixtral", folder)
    config = AutoConfig.from_pretrained(folder)
    config.num_experts_per_tok = count
    config.save_pretrained(folder)
    return ModelSettings(name="hub", path=str(folder), max_tokens=32)


def test_an_encoder_decoder_is_refused_as_a_classifier(tmp_path: Path) -> None:
    small = {"vocab_size": 100, "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2}
    AutoModel.from_config(AutoConfig.for_model("t5", **small)).save_pretrained(tmp_path)
    settings = ModelSettings(name="hub", path=str(tmp_path), max_tokens=32)
    for kind in ("classification", "causal"):
        for build in (build_base, lambda model, **options: describe_model(model, LoraSettings(), **options)):
            with pytest.raises(ModelError, match=r"model.path: expected .*, found .*'t5'") as caught:
                build(settings, num_outputs=2, kind=kind)
            assert "\n" not in str(caught.value)


def test_a_decoder_with_a_narrower_output_classifies(tmp_path: Path) -> None:
    settings = tiny_causal("opt", tmp_path)  # states of 32, put out as 16
    model = build_model(settings, LoraSettings(r=2), num_outputs=3)
    assert describe_model(settings, LoraSettings(r=2), 3).spec == adapter_spec(model)
    assert model(input_ids=IDS, attention_mask=MASK).shape == (2, 3)
