"""Settings of the wrong kind are refused in one line."""

from __future__ import annotations

import pytest

from tasks.settings import LoraSettings, ModelError, ModelSettings


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

    @pytest.mark.parametrize("values", [{"lora_alpha": 0}, {"target_modules": ()}])
    def test_lora_settings(self, values):
        with pytest.raises(ModelError, match="lora\\."):
            LoraSettings(**values)
