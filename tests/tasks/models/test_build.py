"""The built model: seeded, described without weights, for encoders of other architectures."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import PeftModel

from tasks.data.batches import tokenise
from tasks.export.huggingface import save_adapter
from tasks.models.build import build_base, build_model, describe_model
from tasks.models.lora import adapter_spec, get_adapter, set_adapter, trainable_parameters
from tasks.models.tokenizer import load_tokenizer
from tasks.scoring.evaluation import evaluate
from tasks.settings import LoraSettings, ModelSettings
from tests.support.classifiers import EXAMPLES, PLAIN, randomise


class TestBuild:
    def test_same_seed_gives_the_same_bits(self, tiny_model):
        ours, theirs = get_adapter(tiny_model(seed=5)), get_adapter(tiny_model(seed=5))
        for field in ("lora_A", "lora_B", "head"):
            for name, value in getattr(ours, field).items():
                np.testing.assert_array_equal(value, getattr(theirs, field)[name])

    def test_another_seed_gives_another_adapter_on_the_same_encoder(self, tiny_model, tiny):
        one, two = tiny_model(seed=1), tiny_model(seed=2)
        name = adapter_spec(one).modules[0].name
        assert not np.array_equal(get_adapter(one).lora_A[name], get_adapter(two).lora_A[name])
        layer = "base_model.model.encoder.encoder.layer.0.output.dense"
        assert torch.equal(one.get_submodule(layer).weight, two.get_submodule(layer).weight)

    def test_another_process_gives_the_same_bits(self, tiny_model):
        code = (
            "import hashlib, numpy as np; from tasks.models.build import *;"
            "m = build_model(ModelSettings(name='tiny', max_tokens=32), LoraSettings(r=4), num_outputs=3, seed=0);"
            "print(hashlib.sha256(b''.join(p.detach().numpy().tobytes() for p in m.parameters())).hexdigest())"
        )
        import hashlib

        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
        ours = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in tiny_model(seed=0).parameters()))
        assert found.splitlines()[-1] == ours.hexdigest()

    def test_the_global_generator_is_left_alone(self, tiny_model):
        before = torch.get_rng_state()
        tiny_model()
        assert torch.equal(before, torch.get_rng_state())

    def test_b_starts_at_zero_and_a_is_kaiming_uniform(self, tiny_model):
        state = get_adapter(tiny_model())
        assert all((value == 0).all() for value in state.lora_B.values())
        for value in state.lora_A.values():
            bound = 1 / np.sqrt(value.shape[1])  # sqrt(6 / ((1 + 5) in_features))
            assert np.abs(value).max() <= bound
            assert np.abs(value).max() > 0.9 * bound

    def test_only_the_adapter_requires_gradients(self, tiny_model):
        model = tiny_model()
        trained = {id(parameter) for parameter in trainable_parameters(model).values()}
        assert {id(parameter) for parameter in model.parameters() if parameter.requires_grad} == trained

    def test_peft_input_dropout_is_off(self, tiny_model):
        assert tiny_model().peft_config["default"].lora_dropout == 0.0

    @pytest.mark.parametrize(("rslora", "scaling"), [(False, 2.0), (True, 4.0)])
    def test_scaling(self, tiny_model, rslora, scaling):
        model = tiny_model(r=4, lora_alpha=8.0, use_rslora=rslora)
        layer = model.get_submodule(adapter_spec(model).modules[0].name)
        assert layer.scaling["default"] == scaling == LoraSettings(r=4, lora_alpha=8.0, use_rslora=rslora).scaling

    def test_upper_layers_only(self, tiny_model):
        names = [module.name for module in adapter_spec(tiny_model(layers=1)).modules]
        assert len(names) == 2
        assert all(".layer.1." in name for name in names)

    def test_dense_targets_do_not_reach_the_head(self, tiny):
        settings = replace(tiny, head="mlp")
        model = build_model(settings, LoraSettings(r=2, target_modules=("dense",)), num_outputs=3)
        assert all(".encoder." in module.name for module in adapter_spec(model).modules)
        assert len(adapter_spec(model).head) == 4

    def test_frozen_head_is_neither_trained_nor_sent(self, tiny):
        model = build_model(replace(tiny, freeze_head=True), LoraSettings(r=2), num_outputs=3)
        assert adapter_spec(model).head == ()
        assert get_adapter(model).head == {}
        assert all(".lora_" in name for name in trainable_parameters(model))
        assert all("lora_" in name for name, value in model.named_parameters() if value.requires_grad)

    def test_padding_changes_nothing(self, tiny_model, tiny):
        model = tiny_model()
        randomise(model)
        data = tokenise(load_tokenizer(tiny), EXAMPLES)
        together = evaluate(model, data, batch_size=3)[1]
        alone = evaluate(model, data, batch_size=1)[1]
        np.testing.assert_allclose(together, alone, atol=1e-5)


class TestDescription:
    @pytest.mark.parametrize(
        "lora", [LoraSettings(), LoraSettings(r=2, layers=1), LoraSettings(target_modules=("key", "dense"))], ids=str
    )
    @pytest.mark.parametrize("head", ["linear", "mlp"])
    def test_equals_the_built_model(self, tiny, lora, head):
        settings = replace(tiny, head=head)
        model = build_model(settings, lora, num_outputs=3)
        described = describe_model(settings, lora, 3)
        assert described.spec == adapter_spec(model)
        encoder = model.base_model.model.encoder
        assert described.base_parameters == sum(v.numel() for n, v in encoder.named_parameters() if "lora_" not in n)


@pytest.mark.parametrize("architecture", ["distilbert", "roberta", "gpt2", "albert", "mpnet", "modernbert"])
def test_local_folder_of_another_architecture(architecture, tmp_path, tiny):
    """Default targets, description and export work for encoders with other names, and for GPT-2's transposed layers."""
    from transformers import AutoConfig, AutoModel

    small = {
        "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64},
        "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2},
    }.get(architecture, {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64})
    special = {"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
    config = AutoConfig.for_model(architecture, vocab_size=100, max_position_embeddings=64, **special, **small)
    AutoModel.from_config(config).save_pretrained(tmp_path / "base")
    settings = ModelSettings(name="hub", path=str(tmp_path / "base"), max_tokens=32)
    lora = LoraSettings(r=2, target_modules=None)
    model = build_model(settings, lora, num_outputs=2, compute=PLAIN)
    assert describe_model(settings, lora, 2).spec == adapter_spec(model)
    randomise(model)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        before = model(input_ids=ids, attention_mask=torch.ones_like(ids))
        state = get_adapter(model)
        save_adapter(model, tmp_path / "adapter")
        loaded = PeftModel.from_pretrained(build_base(settings, num_outputs=2, seed=4), tmp_path / "adapter").eval()
        assert torch.equal(loaded(input_ids=ids, attention_mask=torch.ones_like(ids)), before)
        delta = {
            m.name: LoraSettings(r=2).scaling * state.lora_B[m.name] @ state.lora_A[m.name]
            for m in adapter_spec(model).modules
        }
        if architecture != "albert":  # one set of weights, listed once
            set_adapter(
                model, replace(state, lora_B={name: 0 * value for name, value in state.lora_B.items()}, base=delta)
            )
            torch.testing.assert_close(
                model(input_ids=ids, attention_mask=torch.ones_like(ids)), before, atol=1e-5, rtol=1e-5
            )


class TestMiniLM:
    def test_layout_and_size(self, minilm):
        described = describe_model(minilm, LoraSettings(), 16)
        assert described.spec.droppable_parameters == 6 * 2 * 8 * (384 + 384)
        assert described.spec.head_parameters == 16 * 385
        assert described.base_parameters == 22_565_376
