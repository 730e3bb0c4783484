r"""HetLoRA [Cho2024]: devices train the first r_k components; the server pads and weighs by the products' norms.

    device k gets A[:r_k], B[:, :r_k];      A <- sum w_k pad(A_k) / sum w_k,  w_k = ||B_k A_k||_F,  the same for B

The scale s is common, for the components of all devices are one adapter's. A device may prune itself
(`client_app.training.tail_norm`): when the product of the norms of its last components shrinks under their regulariser,
it answers without them and keeps the lower rank. The head is averaged by examples.

References
----------
[Cho2024] Cho et al., Heterogeneous LoRA for Federated Fine-tuning of On-Device Foundation Models, EMNLP 2024.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from adapter import AdapterState
from adapter.state import FloatArray
from strategy.aggregation import Averaged
from strategy.aggregation.products import Pair, WholeAnswers, weighted_sum
from strategy.methods.ranked import RankedLora
from strategy.round.checks import Order
from strategy.round.ledger import Received


def product_norm(pairs: list[Pair]) -> float:
    r"""Return :math:`(\sum_j \|B_jA_j\|_F^2)^{1/2}` over modules, from the small matrices B^T B and A A^T."""
    return float(np.sqrt(sum(max(0.0, float(np.sum((B.T @ B) * (A @ A.T)))) for B, A in pairs)))


class HetLora(RankedLora):
    """Up and down r_k (m + n) numbers, fewer once a device has pruned itself."""

    prunable = True

    def accept(self, order: Order, received: Received) -> None:
        """Keep the rank that a device pruned itself to."""
        super().accept(order, received)
        if received.report.rank:
            self.ranks[order.device] = received.report.rank

    def combine(self, answers: WholeAnswers) -> Averaged:
        """Pad, weigh and average."""
        by_module = [answers.pairs(module.name) for module in self.spec.modules]
        norms = np.array([product_norm(list(pairs)) for pairs in zip(*by_module, strict=True)])
        weights = norms / norms.sum() if norms.sum() > 0 else answers.shares()  # nobody moved lora_B: plain averaging
        padded = [state.padded(self.spec) for state in answers.states]
        lora_A, lora_B = (weighted_sum(padded, weights, part) for part in ("lora_A", "lora_B"))
        return Averaged(AdapterState(lora_A, lora_B, answers.mean_head()))

    def replaced(self, device: int) -> None:
        """Start a newcomer with the rank of its class, whatever its predecessor pruned itself to."""
        super().replaced(device)
        self.ranks[device] = self.class_ranks()[device]

    def memory(self) -> tuple[dict[str, Any], dict[str, FloatArray]]:
        """Return what `LoraStrategy.memory` does, and the ranks."""
        facts, tensors = super().memory()
        return facts | {"ranks": list(self.ranks)}, tensors

    def restore(self, facts: Mapping[str, Any], tensors: Mapping[str, FloatArray]) -> None:
        """Go on from `memory`."""
        super().restore(facts, tensors)
        self.ranks = [int(rank) for rank in facts.get("ranks", self.ranks)]
