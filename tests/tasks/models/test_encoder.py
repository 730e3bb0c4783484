"""Encoder and pooling: dropout, padding, pretrained weights, and folders that are not there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tasks.data.batches import tokenise
from tasks.data.examples import TextExamples
from tasks.models.bases import pool
from tasks.models.build import build_base
from tasks.models.tokenizer import load_tokenizer
from tasks.settings import ModelError, ModelSettings


class TestPooling:
    def test_dropout_reaches_the_encoder(self, tiny):
        model = build_base(replace(tiny, dropout=0.3), num_outputs=2)
        assert {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)} == {0.3}

    def test_pooling(self):
        hidden = torch.arange(12.0).reshape(1, 3, 4)
        mask = torch.tensor([[1, 1, 0]])
        assert torch.equal(pool(hidden, mask, "mean"), hidden[:, :2].mean(1))
        assert torch.equal(pool(hidden, mask, "cls"), hidden[:, 0])

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


class TestErrors:
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
