"""What tests do with a small classifier: ask for its logits, give its adapter other values, place it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tasks.data.batches import tokenise
from tasks.data.examples import TextExamples
from tasks.models.lora import trainable_parameters
from tasks.models.tokenizer import load_tokenizer
from tasks.scoring.evaluation import evaluate
from tasks.settings import ComputeSettings, ModelSettings

PLAIN = ComputeSettings(device="cpu", fused_lora=False)  # PEFT's own layers: equal operations, so equal bits
FUSED = ComputeSettings(device="cpu")
EXAMPLES = TextExamples(("wake me up", "play some jazz in the kitchen", "stop"), np.array([0, 1, 2]))


def logits(model: Any, settings: ModelSettings) -> np.ndarray:
    return evaluate(model, tokenise(load_tokenizer(settings), EXAMPLES))[1]


def randomise(model: Any, seed: int = 1) -> None:
    """Give every trained tensor other values; a fresh adapter would change nothing, since B = 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trainable_parameters(model).values():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
