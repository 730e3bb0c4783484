"""Federated methods as Flower strategies, and what they share.

References
----------
[Xie2026] Xie et al., FedLoDrop: Federated LoRA with Dropout, arXiv 2510.12078.
"""

from strategy.base import LoraStrategy, StrategySettings
from strategy.fedit import FedIT
from strategy.fedlodrop import FedLoDrop

STRATEGIES: dict[str, type[LoraStrategy]] = {"fedit": FedIT, "fedlodrop": FedLoDrop}

__all__ = ["STRATEGIES", "FedIT", "FedLoDrop", "LoraStrategy", "StrategySettings"]
