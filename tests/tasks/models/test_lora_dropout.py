"""PEFT's input dropout: drawn from the seed, off when scoring, no way around the masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from adapter import gather, sample_mask
from adapter.masked_training import masked_adapter
from tasks.data.batches import tokenise
from tasks.data.intents import generate_prompts
from tasks.models.build import build_model
from tasks.models.lora import adapter_spec as spec_of
from tasks.models.lora import get_adapter, lora_layers
from tasks.models.tokenizer import load_tokenizer
from tasks.settings import LoraSettings, ModelSettings
from tests.support.runs import rounds, run

TINY = ModelSettings(name="tiny", max_tokens=32)


def _loss(model, seed: int) -> float:
    data = tokenise(load_tokenizer(TINY), generate_prompts(num_train=8, num_validation=2, num_test=2, seed=0)[0])
    batch = data.batch(range(8))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        loss = torch.nn.functional.cross_entropy(model(**batch.inputs), batch.labels)
        loss.backward()
    return float(loss.detach())


def test_dropped_inputs_come_from_the_seed_and_masks_hold() -> None:
    model = build_model(TINY, LoraSettings(r=4, lora_dropout=0.5), num_outputs=1, kind="causal")
    with torch.no_grad():
        for _, layer in lora_layers(model):
            layer.lora_B["default"].weight.normal_()
    assert _loss(model, 1) == _loss(model, 2), "nothing is dropped when scoring"
    model.train()
    assert _loss(model, 1) == _loss(model, 1) != _loss(model, 2)
    spec, layers = spec_of(model), dict(lora_layers(model))
    mask, before = sample_mask(spec, 3, 0.5), get_adapter(model)
    model.zero_grad()
    with masked_adapter(layers, spec, gather(spec, before, mask), mask, scale=4.0, factors=("A", "B")):
        _loss(model, 1)
        for module, kept in zip(spec.modules, mask.modules, strict=True):
            gradient = layers[module.name].lora_A["default"].weight.grad
            dropped = np.setdiff1d(np.arange(module.in_features), kept.columns)
            assert gradient[:, kept.columns].abs().sum() > 0 and not gradient[:, dropped].any()
        kept_back = gather(spec, get_adapter(model), mask)
    assert kept_back.lora_A[spec.modules[0].name].shape[1] == mask.modules[0].columns.size


def test_equal_seeds_give_equal_federations(tmp_path: Path) -> None:
    losses = []
    for name, rate in (("one", 0.3), ("two", 0.3), ("none", 0.0)):
        extra = (f"lora.lora_dropout={rate}", "run.num_rounds=1", "network.num_devices=2")
        assert run(tmp_path / name, *extra) == 0
        losses.append([row["train_loss"] for row in rounds(tmp_path / name)[-1]["devices"]])
    assert losses[0] == losses[1] != losses[2]
