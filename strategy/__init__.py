"""Federated methods as Flower strategies, and what they share.

References
----------
[Xie2026] Xie et al., FedLoDrop: Federated LoRA with Dropout, arXiv 2510.12078.
"""

from adapter.plugins import PluginError, load_plugin
from strategy.base import LoraStrategy
from strategy.methods.fedex_lora import FedExLora
from strategy.methods.fedit import FedIT
from strategy.methods.fedlodrop import FedLoDrop
from strategy.methods.fedsa_lora import FedSALora
from strategy.methods.ffa_lora import FFALora
from strategy.methods.flexlora import FlexLora
from strategy.methods.flora import FLora
from strategy.methods.hetlora import HetLora
from strategy.methods.local import Local
from strategy.methods.rolora import RoLora
from strategy.settings import MethodError, StrategySettings

STRATEGIES: dict[str, type[LoraStrategy]] = {
    "centralized": FedIT,  # of a fleet of one device, see conf.schema
    "fedex_lora": FedExLora,
    "fedit": FedIT,
    "fedlodrop": FedLoDrop,
    "fedsa_lora": FedSALora,
    "ffa_lora": FFALora,
    "flexlora": FlexLora,
    "flora": FLora,
    "hetlora": HetLora,
    "local": Local,
    "rolora": RoLora,
}

__all__ = ["STRATEGIES", "FedIT", "FedLoDrop", "HetLora", "LoraStrategy", "StrategySettings", "method"]


def method(name: str) -> type[LoraStrategy]:
    """Return the class of a method by its name, or by the import path of one's own, ``my.module:LateFreeze``."""
    if ":" not in name:
        if name not in STRATEGIES:
            raise MethodError(f"strategy.name must be one of {', '.join(sorted(STRATEGIES))}, found {name!r}")
        return STRATEGIES[name]
    found = load_plugin(name, "strategy.class")
    if not (isinstance(found, type) and issubclass(found, LoraStrategy)):
        raise PluginError(f"strategy.class: expected a subclass of strategy.LoraStrategy, found {name!r}")
    return found
