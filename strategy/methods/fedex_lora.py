r"""FedEx-LoRA [Singhal2025]: factors are averaged, and the base takes up what that leaves out, so the product is exact.

    A <- sum p_k A_k,    B <- sum p_k B_k,    W0 <- W0 + s (sum p_k B_k A_k - B A)

The residual has rank (K-1) r and is sent as factors, or densely where that is smaller. It has the orientation of the
product, (out_features, in_features), whatever way round a module stores its weight.

References
----------
[Singhal2025] Singhal et al., FedEx-LoRA: Exact Aggregation for Federated and Efficient Fine-Tuning of Foundation
    Models, arXiv 2410.09432.
"""

from strategy.base import LoraStrategy


class FedExLora(LoraStrategy):
    """FedLoDrop's ``aggregation=exact`` with the dropout rate held at zero."""

    required = {"factors": "both", "aggregation": "exact"}
    changes_base = True
