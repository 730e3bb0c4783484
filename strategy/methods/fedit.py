"""FedIT: federated averaging of whole LoRA factors, the method FedLoDrop is compared with.

The radio plan, the messages and the account are the same, with the dropout rate held at zero: a device takes part if
its whole adapter fits the deadline and its energy.
"""

from strategy.base import LoraStrategy


class FedIT(LoraStrategy):
    """Plain FedAvg of lora_A and lora_B, which is what `LoraStrategy` does as it stands."""
