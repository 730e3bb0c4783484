"""The frozen base of any task: a text classifier, a causal language model or the network for images."""

from typing import cast

import torch
from torch import nn

from tasks.models.decoder import CausalModel, build_decoder, decoder_config, random_decoder
from tasks.models.encoder import TextClassifier, encoder_config, last_sees_all, load_encoder, random_encoder
from tasks.models.image import ImageClassifier
from tasks.models.placement import layered
from tasks.settings import Kind, ModelSettings

BaseModel = TextClassifier | CausalModel | ImageClassifier


def build_base(model: ModelSettings, *, num_outputs: int, kind: Kind = "classification", seed: int = 0) -> BaseModel:
    """Build the frozen base without an adapter, in evaluation mode, in float32 (4 bits where asked for).

    ``num_outputs`` is the number of classes, or 1; ``seed`` draws the head and leaves the global generator as it was.
    `ModelError` if the base cannot be located, verified or loaded, or does not fit the task.
    """
    base: BaseModel
    with torch.random.fork_rng(devices=[]):  # constructors draw from the global generator
        if kind == "causal":
            base = build_decoder(model)
        elif model.name == "mlp":
            base = ImageClassifier(model, num_outputs)
        else:
            base = TextClassifier(load_encoder(model), model, num_outputs, kind)
            base.layered = layered(base.encoder)
            loaded = model.name in ("hub", "smollm2")
            base.causal = loaded and model.pooling == "cls" and last_sees_all(base.encoder.eval())
    if base.head is not None:
        _draw_head(base.head, torch.Generator().manual_seed(seed), cast(float, base.head_std))
        base.head.to(next(base.encoder.parameters()).device)
    return base.requires_grad_(False).eval()


def build_shapes(model: ModelSettings, *, num_outputs: int, kind: Kind = "classification") -> BaseModel:
    """Build the base for its names and shapes, on PyTorch's meta device."""
    causal, pixels = kind == "causal", model.name == "mlp"
    # Outside the context: a model that is not unpacked yet must not be read onto the meta device.
    config = None if pixels and not causal else decoder_config(model) if causal else encoder_config(model)
    with torch.device("meta"):
        if causal:
            return CausalModel(random_decoder(config), model)
        if pixels:
            return ImageClassifier(model, num_outputs)
        return TextClassifier(random_encoder(config), model, num_outputs, kind)


def _draw_head(head: nn.Module, generator: torch.Generator, std: float) -> None:
    for module in head.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=std, generator=generator)
            nn.init.zeros_(module.bias)
