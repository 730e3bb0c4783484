"""FedSA-LoRA [Guo2025]: lora_A is shared and averaged; lora_B and the head stay on the device that trained them.

The result is one model per device. Its score is the mean over devices of their own models on their own held-out
examples: it is recorded as personalised and never stands where the score of a global model does.

References
----------
[Guo2025] Guo et al., Selective Aggregation for Low-Rank Adaptation in Federated Learning, ICLR 2025, arXiv 2410.01463.
"""

from adapter.protocol import Delivery
from strategy.base import LoraStrategy


class FedSALora(LoraStrategy):
    """Both factors train, lora_A travels: r n numbers up and down, and no head."""

    required = {"factors": "both", "aggregation": "kept"}
    personalised = True

    def delivery(self, server_round: int, device: int) -> Delivery:
        """Send lora_A, and say which own part the device must still have."""
        return Delivery("A", personal=self.book.personal(device))

    def evaluation_delivery(self, device: int) -> Delivery:
        """Send the new lora_A; the device adds its own part."""
        return Delivery("A", personal=self.book.personal(device))
