"""A contract for causal models of every architecture: transformers' own logits, causal or refused, adapted by default."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tasks.models.build import build_base, build_model, describe_model
from tasks.models.lora import adapter_spec, trainable_parameters
from tasks.settings import LoraSettings, ModelError
from tests.support.causal import CAUSAL, EVERY, NOT_CAUSAL, tiny_causal

IDS = torch.tensor([[5, 9, 7, 11, 6, 8, 12], [4, 13, 10, 15, 9, 1, 1]])
MASK = torch.tensor([[1] * 7, [1] * 5 + [0] * 2])
PREDICT = torch.tensor([[0, 0, 1, 1, 0, 1, 0], [0, 1, 0, 1, 1, 0, 0]], dtype=torch.bool)
LORA = LoraSettings(r=2)


def check_logits(architecture: str, folder: Path) -> None:
    settings = tiny_causal(architecture, folder)
    base = build_base(settings, num_outputs=1, kind="causal")
    theirs = AutoModelForCausalLM.from_pretrained(settings.path, dtype=torch.float32).eval()
    with torch.no_grad():
        ours = base(input_ids=IDS, attention_mask=MASK, predict=PREDICT)
        expected = theirs(input_ids=IDS, attention_mask=MASK).logits
    assert ours.shape == (6, expected.shape[-1])
    torch.testing.assert_close(ours, expected[PREDICT], rtol=1e-5, atol=1e-6 * float(expected.abs().max()))


@pytest.mark.parametrize("architecture", CAUSAL)
def test_logits_are_those_of_transformers(architecture: str, tmp_path: Path) -> None:
    check_logits(architecture, tmp_path)


def test_only_the_answers_cost_an_output_row(tmp_path: Path) -> None:
    base = build_base(tiny_causal("gemma2", tmp_path), num_outputs=1, kind="causal")
    rows: list[int] = []
    base.encoder.get_output_embeddings().register_forward_hook(lambda _, args, out: rows.append(out[..., 0].numel()))
    base(input_ids=IDS, attention_mask=MASK, predict=PREDICT)
    assert rows == [int(PREDICT.sum())]


@pytest.mark.parametrize("architecture", NOT_CAUSAL)
def test_a_model_that_sees_later_tokens_is_refused(architecture: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="expected a causal language model.*later tokens change") as caught:
        build_base(tiny_causal(architecture, tmp_path), num_outputs=1, kind="causal")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("architecture", CAUSAL)
def test_default_modules_are_adapted_and_described(architecture: str, tmp_path: Path) -> None:
    settings = tiny_causal(architecture, tmp_path)
    model = build_model(settings, LORA, num_outputs=1, kind="causal")
    assert describe_model(settings, LORA, 1, "causal").spec == adapter_spec(model)
    trained = trainable_parameters(model, ("B",))
    model.train()(input_ids=IDS, attention_mask=MASK, predict=PREDICT).square().mean().backward()
    assert any(value.grad is not None and value.grad.abs().max() > 0 for value in trained.values())


@pytest.mark.slow
@pytest.mark.parametrize("architecture", sorted({*EVERY} - {*CAUSAL, *NOT_CAUSAL}))
def test_every_other_architecture(architecture: str, tmp_path: Path) -> None:
    """Whatever can be built from the small sizes gives transformers' logits, or is refused because it is not causal."""
    try:
        check_logits(architecture, tmp_path)
    except AssertionError:
        raise
    except Exception as error:
        assert "missing" not in str(error)
        if "later tokens change" not in str(error):
            pytest.skip(f"cannot be made this small: {type(error).__name__}")
