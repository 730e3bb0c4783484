"""Small random encoders of several architectures, and steps on them that can be compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from tasks.data.batches import Tokenised
from tasks.models.lora import trainable_parameters
from tasks.scoring.evaluation import task_loss
from tasks.settings import ModelSettings

ARCHITECTURES = (
    "bert",
    "roberta",
    "xlm-roberta",
    "electra",
    "camembert",
    "distilbert",
    "mpnet",
    "albert",
    "modernbert",
    "gpt2",
)
LAYER_BY_LAYER = ("bert", "roberta", "xlm-roberta", "camembert")  # a small electra projects its embeddings first


def random_encoder(architecture: str, folder: Path, layers: int = 4, vocab_size: int = 100) -> ModelSettings:
    """Save a random encoder of hidden size 32 into ``folder`` and return the settings that load it."""
    from transformers import AutoConfig, AutoModel

    small = {
        "distilbert": {"dim": 32, "n_layers": layers, "n_heads": 2, "hidden_dim": 64},
        "gpt2": {"n_embd": 32, "n_layer": layers, "n_head": 2},
    }.get(
        architecture,
        {"hidden_size": 32, "num_hidden_layers": layers, "num_attention_heads": 2, "intermediate_size": 64},
    )
    special = {"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
    config = AutoConfig.for_model(architecture, vocab_size=vocab_size, max_position_embeddings=64, **special, **small)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        AutoModel.from_config(config).save_pretrained(folder)
    return ModelSettings(name="hub", path=str(folder), max_tokens=48)


def random_decoder(folder: Path, words: list[str]) -> str:
    """Save a random causal language model with a tokenizer of the given words into ``folder`` and return its path."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(["<unk>", "<end>", *words]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<end>").save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=256,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


def random_texts(count: int, seed: int = 0, longest: int = 20, outputs: int = 3) -> Tokenised:
    """Return random token ids of unequal lengths, as a RoBERTa tokenizer pads them (id 1)."""
    rng = np.random.default_rng(seed)
    ids = tuple(rng.integers(4, 100, rng.integers(3, longest + 1)).astype(np.int32) for _ in range(count))
    return Tokenised(ids, None, labels=rng.integers(0, outputs, count), pad_token_id=1)


@torch.no_grad()
def randomise(model: Any, seed: int = 3) -> None:
    """Give every trained tensor random values, so that no gradient is zero by construction."""
    generator = torch.Generator().manual_seed(seed)
    for value in trainable_parameters(model).values():
        value.normal_(std=0.05, generator=generator)


def loss_and_gradients(model: Any, batch: Any) -> tuple[float, dict[str, torch.Tensor]]:
    """One forward and backward pass."""
    model.zero_grad(set_to_none=True)
    loss = task_loss(model(**batch.inputs), batch.labels, model.kind)
    loss.backward()
    return float(loss.detach()), {name: value.grad.clone() for name, value in trainable_parameters(model).items()}
