"""RoLoRA [Chen2025]: alternating minimisation, lora_B in odd rounds and lora_A in even ones; one factor travels.

One factor is common and frozen in every round, so the mean of products is the product of means, and unlike FFA-LoRA
both factors learn. lora_B comes first: while B = 0 the gradient of A is zero.

Devices hold both factors. A round brings the factor that was averaged last, r m or r n numbers, and takes the active
one back.

References
----------
[Chen2025] Chen et al., Robust Federated Finetuning of LLMs via Alternating Optimization of LoRA, arXiv 2502.01755
    (first version: arXiv 2409.02346).
"""

from strategy.base import LoraStrategy


class RoLora(LoraStrategy):
    """FedLoDrop's ``factors=alternate`` with the dropout rate held at zero."""

    required = {"factors": "alternate"}
