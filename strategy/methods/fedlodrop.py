"""FedLoDrop [Xie2026]: every device trains a random sub-adapter whose size fits its channel, deadline and energy.

Columns of lora_A and rows of lora_B are dropped at a rate gamma_k that the resource optimizer chooses per device and
round; the mask comes from a shared seed, only survivors travel, and every entry is averaged over the devices that kept
it.

Departure from [Xie2026]: masks keep a fixed count per matrix by default (``mask="bernoulli"`` draws independently),
kept factors are scaled by 1/(1-gamma) while training, and entries nobody kept stay as they were; docs/architecture.md
says why.
"""

from __future__ import annotations

from strategy.base import LoraStrategy


class FedLoDrop(LoraStrategy):
    """FedLoDrop as a Flower strategy; all of it is what `LoraStrategy` shares, with the budget's dropout limit."""
