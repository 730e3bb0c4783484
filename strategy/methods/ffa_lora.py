"""FFA-LoRA [Sun2024]: lora_A is common, drawn from the seed and never trained; lora_B is averaged.

With one A for all, the mean of products is the product of means: sum p_i B_i A = (sum p_i B_i) A. lora_A never travels.

References
----------
[Sun2024] Sun et al., Improving LoRA in Privacy-preserving Federated Learning, ICLR 2024, arXiv 2403.12313.
"""

from strategy.base import LoraStrategy


class FFALora(LoraStrategy):
    """FedLoDrop's ``factors=b_only`` with the dropout rate held at zero."""

    required = {"factors": "b_only"}
