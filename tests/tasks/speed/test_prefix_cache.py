"""States of the frozen prefix: the same losses as without, whoever computed them, and new ones when anything changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tasks.data.batches import Tokenised, sample_batches
from tasks.models.build import build_model
from tasks.models.lora import trainable_parameters
from tasks.models.placement import keep_states
from tasks.scoring.evaluation import evaluate, task_loss
from tasks.settings import LoraSettings, ModelSettings, PrefixSettings
from tasks.speed.block_store import BlockStore
from tasks.speed.frozen_linear import FrozenLinear
from tasks.speed.prefix_cache import PrefixCache, open_prefix_cache
from tests.support.encoders import loss_and_gradients, random_encoder, random_texts, randomise


def _model(tmp_path: Path, architecture: str = "bert", layers: Any = 2, **settings: Any) -> Any:
    base = random_encoder(architecture, tmp_path / architecture)
    model = build_model(
        ModelSettings(name="hub", path=base.path, max_tokens=48, **settings),
        LoraSettings(r=4, layers=layers),
        num_outputs=3,
    )
    randomise(model)
    return model


def _cache(model: Any, folder: Path | None = None, memory_mib: float = 16.0) -> PrefixCache:
    return PrefixCache(model, BlockStore(memory_mib, folder, 16.0))


def _losses(model: Any, data: Any, steps: int = 8) -> list[float]:
    """Losses of a short training with AdamW."""
    optimizer = torch.optim.AdamW(trainable_parameters(model).values(), lr=1e-2)
    losses = []
    for index in sample_batches(len(data), 8, rng=np.random.default_rng(0), steps=steps):
        optimizer.zero_grad()
        batch = data.batch(index)
        loss = task_loss(model(**batch.inputs), batch.labels, model.kind)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("architecture", ["bert", "roberta"])
def test_training_sees_the_same_losses(architecture: str, layers: int, tmp_path: Path) -> None:
    data = random_texts(70)
    plain = _losses(_model(tmp_path, architecture, layers), data)
    model = _model(tmp_path, architecture, layers)
    cache = _cache(model)
    assert cache.layers == 4 - layers
    np.testing.assert_allclose(_losses(model, cache.source(data)), plain, atol=1e-5)
    assert cache.store.misses == 3  # 70 examples are 3 blocks
    assert np.ptp(plain) > 0.01


def test_gradients_and_scores_are_the_same(tmp_path: Path) -> None:
    model, data = _model(tmp_path), random_texts(50)
    source = _cache(model).source(data)
    loss, gradients = loss_and_gradients(model, source.batch(np.arange(12)))
    expected, wanted = loss_and_gradients(model, data.batch(np.arange(12)))
    assert loss == pytest.approx(expected, abs=1e-5)
    for name, value in wanted.items():
        torch.testing.assert_close(gradients[name], value, rtol=1e-4, atol=1e-5 * float(value.abs().max()), msg=name)
    cached, plain = evaluate(model, source, 16), evaluate(model, data, 16)
    assert cached[0] == pytest.approx(plain[0], abs=1e-5)
    np.testing.assert_allclose(cached[1], plain[1], atol=1e-5)


def test_states_do_not_depend_on_who_asked_first(tmp_path: Path) -> None:
    data, order = random_texts(64), np.random.default_rng(3).permutation(64)
    model = _model(tmp_path)
    one, two = _cache(model).source(data), _cache(model).source(data)
    for i in order:
        one.batch([i])
    for start in (48, 0):
        two.batch(np.arange(start, start + 16))
    np.testing.assert_array_equal(one.batch(np.arange(64)).inputs["states"], two.batch(np.arange(64)).inputs["states"])


def test_memory_disk_and_a_second_process_give_the_same_bits(tmp_path: Path) -> None:
    data, index = random_texts(64), np.arange(20)
    model = _model(tmp_path)
    first = _cache(model, tmp_path / "s").source(data).batch(index).inputs["states"]
    other = _cache(_model(tmp_path), tmp_path / "s", memory_mib=0)  # a model of its own, as in another process
    np.testing.assert_array_equal(other.source(data).batch(index).inputs["states"], first)
    assert other.store.misses == 0 and other.store.report()["hit_rate"] == 1.0
    bounded = _cache(model, None, memory_mib=0)  # neither memory nor disk: computed every time, still right
    np.testing.assert_array_equal(bounded.source(data).batch(index).inputs["states"], first)


def test_padding_is_not_stored(tmp_path: Path) -> None:
    data = random_texts(32)
    cache = _cache(_model(tmp_path), tmp_path / "s")
    cache.source(data).batch(np.arange(32))
    assert cache.store.memory_bytes() == int(data.lengths.sum()) * 32 * 4


def test_every_ingredient_of_the_states_is_in_the_key(tmp_path: Path) -> None:
    model, data = _model(tmp_path), random_texts(20)
    cache = _cache(model, tmp_path / "s")

    def misses(cache: PrefixCache, data: Tokenised) -> int:
        before = cache.store.misses
        cache.source(data).batch(np.arange(len(data)))
        return cache.store.misses - before

    assert misses(cache, data) == 1 and misses(cache, data) == 0
    assert misses(cache, random_texts(20, seed=1)) == 1
    types = tuple((np.arange(len(ids)) % 2).astype(np.int32) for ids in data.input_ids)
    assert misses(cache, replace(data, token_types=types)) == 1
    assert misses(_cache(_model(tmp_path, layers=3), tmp_path / "s"), data) == 1
    with torch.no_grad():
        adapted = dict(model.named_parameters())[
            "base_model.model.encoder.encoder.layer.2.attention.self.query.base_layer.weight"
        ]
        adapted.add_(1.0)
    assert misses(cache, data) == 0, "a change in an adapted layer leaves the prefix as it is"
    with torch.no_grad():
        model.base_model.model.encoder.encoder.layer[0].output.dense.weight.mul_(1.5)
    assert misses(cache, data) == 1
    model.base_model.model.encoder.encoder.layer[0].output.dense.__class__ = FrozenLinear
    assert misses(cache, data) == 1, "another library rounds otherwise"
    torch.testing.assert_close(
        model(**cache.source(data).batch(np.arange(9)).inputs),
        model(**data.batch(np.arange(9)).inputs),
        atol=1e-5,
        rtol=1e-4,
    )


@pytest.mark.parametrize(
    ("architecture", "layers", "settings", "reason"),
    [
        ("bert", "all", {}, ""),
        ("distilbert", 2, {}, "distilbert models cannot be run layer by layer"),
        ("bert", 2, {"dropout": 0.1}, "model.dropout"),
    ],
)
def test_where_there_is_no_cache_it_is_said(
    architecture: str, layers: Any, settings: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    base = random_encoder(architecture, tmp_path / "b")
    lora = LoraSettings(r=4, layers=layers, target_modules=None)
    model = build_model(ModelSettings(name="hub", path=base.path, max_tokens=48, **settings), lora, num_outputs=3)
    cache, why = open_prefix_cache(model, PrefixSettings(folder=str(tmp_path / "s")))
    assert cache is None and reason in why and (reason or not why)
    assert keep_states(_model(tmp_path), None) == (None, "")


@pytest.mark.slow
def test_minilm_trains_on_the_same_losses() -> None:
    from tasks.models.files import find_minilm
    from tasks.settings import ModelError

    try:
        find_minilm()
    except ModelError as error:
        pytest.skip(str(error))
    data, losses = random_texts(96), []
    for cached in (False, True):
        model = build_model(ModelSettings(), LoraSettings(layers=3), num_outputs=3)
        losses.append(_losses(model, _cache(model).source(data) if cached else data, steps=20))
    np.testing.assert_allclose(losses[0], losses[1], atol=1e-5)
