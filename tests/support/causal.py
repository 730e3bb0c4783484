"""Tiny random causal models of whatever architecture transformers knows, from one set of small sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tasks.settings import ModelSettings

EVERY = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
# One of each build: plain, scaled or capped logits, mixtures of experts, state spaces, old and new.
CAUSAL = (
    "bloom",
    "cohere",
    "cohere2_moe",
    "ernie4_5_moe",
    "exaone4",
    "falcon_mamba",
    "gemma",
    "gemma2",
    "gemma3_text",
    "glm4",
    "gpt2",
    "gpt_bigcode",
    "gpt_neox",
    "gpt_oss",
    "granite",
    "granitemoe",
    "hunyuan_v1_dense",
    "llama",
    "llama4_text",
    "minicpm3",
    "ministral3",
    "mixtral",
    "modernbert-decoder",
    "mpt",
    "nanochat",
    "nemotron",
    "olmo2",
    "olmoe",
    "opt",
    "phi",
    "phi3",
    "qwen2",
    "qwen2_moe",
    "qwen3",
    "qwen3_moe",
    "rwkv",
    "smollm3",
    "stablelm",
    "starcoder2",
)
NOT_CAUSAL = ("bert", "big_bird", "electra", "megatron-bert", "roberta", "roformer", "xlm", "xlm-roberta-xl")
_SMALL: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "head_dim": 16,
    "pad_token_id": 1,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "initializer_range": 0.2,
    "shared_expert_intermediate_size": 32,
}
_SPECIAL: dict[str, dict[str, Any]] = {
    "gemma2": {"final_logit_softcapping": 5.0},
    "gpt_neox": {"rotary_pct": 1.0},
    "granite": {"logits_scaling": 3.0},
    "opt": {"word_embed_proj_dim": 16, "do_layer_norm_before": False},  # like OPT-350m
}


def tiny_causal(architecture: str, folder: Path) -> ModelSettings:
    """Save a random causal model into ``folder`` and return the settings that load it.

    Raises
    ------
    ValueError
        If the architecture cannot be made from these sizes, or becomes large.
    """
    config = AutoConfig.for_model(architecture, **_SMALL | _SPECIAL.get(architecture, {}))
    factory: Any = AutoModelForCausalLM
    with torch.device("meta"):
        size = sum(value.numel() for value in factory.from_config(config).parameters())
    if size > 2_000_000:
        raise ValueError(f"{architecture} has {size} parameters at the smallest")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        factory.from_config(config).float().save_pretrained(folder)
    return ModelSettings(name="hub", path=str(folder), max_tokens=32)
