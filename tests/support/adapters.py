"""Small adapter layouts and a LoRA layer of a few lines, for tests that need no language model."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from adapter import AdapterSpec, AdapterState, ModuleShape


def small_spec() -> AdapterSpec:
    """Two modules of unequal shape and a head of two tensors."""
    return AdapterSpec(
        modules=(ModuleShape("q", 40, 24, 4), ModuleShape("v", 24, 40, 4)),
        head=(("head.weight", (3, 8)), ("head.bias", (3,))),
    )


def random_state(spec: AdapterSpec, seed: int = 0) -> AdapterState:
    """Return standard-normal float32 values."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    return AdapterState(
        {m.name: draw(m.r, m.in_features) for m in spec.modules},
        {m.name: draw(m.out_features, m.r) for m in spec.modules},
        {name: draw(*shape) for name, shape in spec.head},
    )


class LoraLinear(nn.Module):
    """PEFT's layout: frozen base, lora_A and lora_B keyed by adapter name, a scaling per adapter."""

    def __init__(self, out_features: int, in_features: int, r: int, scaling: float = 2.0) -> None:
        super().__init__()
        self.base = nn.Linear(in_features, out_features, bias=False)
        self.base.weight.requires_grad_(False)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(in_features, r, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(r, out_features, bias=False)})
        self.scaling = {"default": scaling}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, in_features) -> (batch, out_features)."""
        return self.base(x) + self.scaling["default"] * self.lora_B["default"](self.lora_A["default"](x))
