"""LoRA modules: their exchange as arrays, changes of the base, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tasks.models.build import describe_model
from tasks.models.lora import adapter_spec, get_adapter, lora_layers, set_adapter, set_base, trainable_parameters
from tasks.settings import LoraSettings, ModelError
from tests.support.classifiers import logits, randomise


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
        with pytest.raises(ValueError, match="lora_A.*expected shape"):
            set_adapter(model, state)

    @pytest.mark.parametrize("factors", [("A",), ("B",), ("A", "B")])
    def test_factors(self, tiny_model, factors):
        model = tiny_model()
        names = trainable_parameters(model, factors).keys()
        assert {name.rsplit(".", 1)[1] for name in names if ".lora_" in name} == {
            f"lora_{factor}" for factor in factors
        }
        assert len(names) == 4 * len(factors) + 2

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


class TestErrors:
    def test_unknown_target_names_the_known_ones(self, tiny):
        with pytest.raises(ModelError, match="expected some of .*'query'.* found 'q_proj'"):
            describe_model(tiny, LoraSettings(target_modules=("q_proj",)), 2)

    def test_too_many_layers(self, tiny):
        with pytest.raises(ModelError, match="at most the encoder's 2 layers, found 3"):
            describe_model(tiny, LoraSettings(layers=3), 2)
