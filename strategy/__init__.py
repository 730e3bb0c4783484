"""Federated methods as Flower strategies, and what they share.

References
----------
[Xie2026] Xie et al., FedLoDrop: Federated LoRA with Dropout, arXiv 2510.12078.
"""

from strategy.base import LoraStrategy
from strategy.fedit import FedIT
from strategy.fedlodrop import FedLoDrop
from strategy.ffa_lora import FFALora
from strategy.rolora import RoLora
from strategy.settings import StrategySettings

STRATEGIES: dict[str, type[LoraStrategy]] = {
    "fedit": FedIT,
    "fedlodrop": FedLoDrop,
    "ffa_lora": FFALora,
    "rolora": RoLora,
}

__all__ = ["STRATEGIES", "FFALora", "FedIT", "FedLoDrop", "LoraStrategy", "RoLora", "StrategySettings"]
