"""The frozen base of causal tasks: a decoder that predicts the tokens of the responses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tasks.encoder import TINY_SEED, adjusted, hub_config, pretrained
from tasks.settings import Kind, ModelError, ModelSettings
from tasks.tokenizer import TINY_VOCABULARY


class CausalModel(nn.Module):
    """A causal language model that computes logits only where they are asked for.

    Parameters
    ----------
    decoder : nn.Module
        A Hugging Face model with a language-model head.
    settings : ModelSettings
        Where it came from.
    """

    kind: Kind = "causal"
    num_outputs = 1
    head: nn.Module | None = None  # the decoder's own head is part of the frozen base

    def __init__(self, decoder: Any, settings: ModelSettings) -> None:
        super().__init__()
        self.config: Any = decoder.config
        self.name_or_path = getattr(decoder.config, "_name_or_path", "") or f"fedlodrop-{settings.name}-causal"
        self.settings = settings
        self.encoder = decoder  # the name under which every base keeps its transformer

    def forward(self, input_ids: Tensor, attention_mask: Tensor, predict: Tensor) -> Tensor:
        """Return logits where ``predict`` is true, ``(batch, tokens)`` -> ``(predicted tokens, vocabulary)``."""
        hidden = self.encoder.base_model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        chosen = hidden[predict]  # (predicted tokens, hidden): a prompt of 100 tokens costs no 100 rows of the vocabulary
        logits: Tensor = self.encoder.get_output_embeddings()(chosen)
        return logits


def build_decoder(model: ModelSettings) -> CausalModel:
    """Build a causal model with its weights; a random one is drawn from the global generator, which the caller forks.

    Raises
    ------
    ModelError
        If the model is none that predicts tokens, or cannot be loaded.
    """
    config = decoder_config(model)
    if model.name == "tiny":
        torch.default_generator.manual_seed(TINY_SEED)
        return CausalModel(random_decoder(config).float(), model)
    from transformers import AutoModelForCausalLM

    return CausalModel(pretrained(AutoModelForCausalLM, str(model.path), model, config=config), model)


def decoder_config(model: ModelSettings) -> Any:
    """Return the decoder's configuration.

    Raises
    ------
    ModelError
        If the settings name an encoder or an image model.
    """
    if model.name not in ("tiny", "hub"):
        raise ModelError(
            f"model.name: expected tiny or hub for task=instruct (a causal language model), found {model.name!r}; "
            "try model=tiny, or model=hub model.path=<hub id or folder>"
        )
    if model.name == "hub":
        return adjusted(hub_config(str(model.path)), model)
    from transformers import LlamaConfig

    # Wide initial weights: with the usual 0.02 a random model of this size is too flat for LoRA to teach it anything.
    config = LlamaConfig(
        vocab_size=TINY_VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=64, max_position_embeddings=max(model.max_tokens, 128), initializer_range=0.3,
    )  # fmt: skip
    return adjusted(config, model)


def random_decoder(config: Any) -> Any:
    """Return a causal model with random weights (on the meta device: with none).

    Raises
    ------
    ModelError
        If the architecture has no causal language model.
    """
    from transformers import AutoModelForCausalLM

    factory: Any = AutoModelForCausalLM
    try:
        return factory.from_config(config)
    except ValueError as error:  # "Unrecognized configuration class" with a list of hundreds
        raise ModelError(
            f"model.path: expected a causal language model for task=instruct, found architecture {config.model_type!r}"
        ) from error
