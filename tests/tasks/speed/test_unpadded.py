"""Packed rows: the same losses and gradients as padded batches, for every encoder that is run layer by layer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tasks.data.batches import Batch
from tasks.models.build import build_base, build_model
from tasks.scoring.evaluation import evaluate
from tasks.settings import LoraSettings, ModelSettings
from tasks.speed.unpadded import hidden_states, plan_packing, run_layers, runs_layer_by_layer
from tests.support.encoders import (
    ARCHITECTURES,
    LAYER_BY_LAYER,
    loss_and_gradients,
    random_encoder,
    random_texts,
    randomise,
)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=24))
def test_every_token_gets_its_own_place(lengths: list[int]) -> None:
    packing, longest = plan_packing(lengths), max(lengths)
    if packing is None:
        return
    assert packing.segments.shape[0] < len(lengths) and packing.segments.shape[1] == longest
    places = packing.scatter.view(len(lengths), longest)
    taken = [int(places[text, token]) for text, length in enumerate(lengths) for token in range(length)]
    assert len(set(taken)) == len(taken) == sum(lengths)
    flat_segments = packing.segments.reshape(-1)
    for text, length in enumerate(lengths):
        for token in range(length):
            place = int(places[text, token])
            assert int(packing.gather[place]) == text * longest + token and int(flat_segments[place]) == text
    assert int((flat_segments == -1).sum()) == flat_segments.numel() - sum(lengths)


def test_texts_of_one_length_are_left_alone() -> None:
    assert plan_packing([7, 7, 7]) is None and plan_packing([5]) is None
    halved = plan_packing([10, 5, 5, 5, 5])
    assert halved is not None and halved.segments.shape == (3, 10)


def _same_step(model: Any, batch: Batch) -> None:
    base = model.base_model.model
    assert base.layered is hidden_states
    loss, gradients = loss_and_gradients(model, batch)
    base.layered = None
    plain_loss, plain = loss_and_gradients(model, batch)
    base.layered = hidden_states
    assert plan_packing(batch.inputs["attention_mask"].sum(dim=1).tolist()) is not None
    assert loss == pytest.approx(plain_loss, abs=1e-5)
    for name, value in plain.items():
        assert value.abs().max() > 0, name
        torch.testing.assert_close(gradients[name], value, rtol=1e-4, atol=1e-5 * float(value.abs().max()), msg=name)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("architecture", ["bert", "roberta"])
def test_packed_rows_give_the_same_loss_and_gradients(architecture: str, pooling: str, tmp_path: Path) -> None:
    settings = random_encoder(architecture, tmp_path)
    settings = ModelSettings(name="hub", path=settings.path, pooling=pooling, max_tokens=48)  # type: ignore[arg-type]
    model = build_model(settings, LoraSettings(r=4), num_outputs=3)
    randomise(model)
    _same_step(model.train(), random_texts(12).batch(np.arange(12)))


def test_token_types_survive_the_packing(tiny_model: Any) -> None:
    model = tiny_model()
    randomise(model)
    data = random_texts(10)
    types = tuple((np.arange(len(ids)) > len(ids) // 2).astype(np.int32) for ids in data.input_ids)
    paired = replace(data, token_types=types)
    _same_step(model, paired.batch(np.arange(10)))
    with torch.no_grad():
        assert not torch.allclose(
            model(**paired.batch(np.arange(10)).inputs), model(**data.batch(np.arange(10)).inputs)
        )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_only_encoders_that_prove_it_are_run_layer_by_layer(architecture: str, tmp_path: Path) -> None:
    settings = random_encoder(architecture, tmp_path)
    base = build_base(settings, num_outputs=2)
    assert (base.layered is not None) == (architecture in LAYER_BY_LAYER)
    data = random_texts(9, outputs=2)
    loss, predictions = evaluate(base, data, batch_size=4)
    single = [evaluate(base, data.subset([i]))[1] for i in range(9)]
    np.testing.assert_allclose(predictions, np.concatenate(single), atol=1e-5)
    assert np.isfinite(loss)


def test_an_encoder_that_does_more_than_its_layers_is_not(tmp_path: Path) -> None:
    encoder = build_base(random_encoder("bert", tmp_path), num_outputs=2).encoder
    assert runs_layer_by_layer(encoder)
    plain = encoder.forward
    encoder.forward = lambda **inputs: type("Out", (), {"last_hidden_state": 2 * plain(**inputs).last_hidden_state})
    assert not runs_layer_by_layer(encoder)
    assert not runs_layer_by_layer(torch.nn.Linear(2, 2))


def test_eager_attention_takes_the_same_mask(tmp_path: Path) -> None:
    base = build_base(random_encoder("bert", tmp_path), num_outputs=2)
    batch = random_texts(6).batch(np.arange(6))
    with torch.no_grad():
        fast = base(**batch.inputs)
        base.encoder.set_attn_implementation("eager")
        torch.testing.assert_close(base(**batch.inputs), fast, atol=1e-5, rtol=1e-5)
        padded = run_layers(base.encoder, torch.randn(2, 5, 32), torch.tensor([[1] * 5, [1] * 3 + [0] * 2]))
    assert torch.isfinite(padded).all()


def test_minilm_learns_the_same_from_packed_rows() -> None:
    from tasks.models.files import find_minilm
    from tasks.settings import ModelError

    try:
        find_minilm()
    except ModelError as error:
        pytest.skip(str(error))
    model = build_model(ModelSettings(), LoraSettings(), num_outputs=3)
    randomise(model)
    data = random_texts(8)
    _same_step(model, replace(data, pad_token_id=0).batch(np.arange(8)))
