"""The two-layer network of RoLoRA's toy experiment; `tasks.data.mnist` says how it departs from the paper's."""

from collections import OrderedDict
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from tasks.data.mnist import PIXELS
from tasks.models.transformer import TINY_SEED
from tasks.settings import Kind, ModelSettings


class _NoWeight(nn.Linear):
    """A weight that stays zero, so that its product need not be computed."""

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels.new_zeros(len(pixels), self.out_features)


class ImageClassifier(nn.Module):
    """W_out ReLU(W0 x), with LoRA on W0."""

    kind: Kind = "classification"

    def __init__(self, settings: ModelSettings, num_outputs: int) -> None:
        super().__init__()
        self.name_or_path = "fedlodrop-mlp"
        self.settings = settings
        self.num_outputs = num_outputs
        kind = nn.Linear if settings.frozen_weight else _NoWeight
        hidden = OrderedDict(dense=kind(PIXELS, settings.hidden_size, bias=False), relu=nn.ReLU())
        encoder: Any = nn.ModuleDict({"layer": nn.ModuleList([nn.Sequential(hidden)])})
        # What the choice of modules and the operation count ask a transformer for.
        encoder.config = SimpleNamespace(
            model_type="mlp", hidden_size=settings.hidden_size, num_hidden_layers=1, num_attention_heads=1
        )
        encoder.config.get_text_config = lambda: encoder.config
        self.encoder = encoder
        self.head: nn.Module = nn.Linear(settings.hidden_size, num_outputs)
        self.head_std: float = settings.hidden_size**-0.5  # outputs of order one: this head may stay as it is drawn
        weight = self.encoder["layer"][0].dense.weight
        if not settings.frozen_weight:
            nn.init.zeros_(weight)
        elif not weight.is_meta:
            # Like published weights, W0 does not vary with the run's seed.
            nn.init.kaiming_uniform_(weight, a=5**0.5, generator=torch.Generator().manual_seed(TINY_SEED))

    def forward(self, pixels: Tensor) -> Tensor:
        """Return logits, ``(batch, 784)`` -> ``(batch, outputs)``."""
        logits: Tensor = self.head(self.encoder["layer"][0](pixels))
        return logits
