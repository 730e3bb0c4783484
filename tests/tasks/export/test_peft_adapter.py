"""A saved adapter is what PEFT loads, reproducible, with a card whose code runs."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from peft import PeftModel

from tasks.export.huggingface import save_adapter
from tasks.models.build import build_base, build_model, describe_model
from tasks.models.lora import adapter_spec, get_adapter
from tasks.models.placement import place
from tasks.settings import LoraSettings
from tests.support.classifiers import FUSED, PLAIN, logits, randomise


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


class TestMiniLM:
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
