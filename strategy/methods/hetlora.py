r"""HetLoRA [Cho2024]: devices train the first r_k components; the server pads with zeros and weighs by the size of the product.

    device k gets A[:r_k], B[:, :r_k];      A <- sum w_k pad(A_k) / sum w_k,  w_k = ||B_k A_k||_F,  the same for B

The scale s is common, for the components of all devices are one adapter's. A device may prune itself
(client_app/pruning.py): when the product of the norms of its last components shrinks under their regulariser, it
answers without them and keeps the lower rank. The head is averaged by examples.

References
----------
[Cho2024] Cho et al., Heterogeneous LoRA for Federated Fine-tuning of On-Device Foundation Models, EMNLP 2024.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from adapter import AdapterState, RoundReport
from adapter.state import FloatArray
from strategy.averages.products import Answers, Pair
from strategy.methods.ranked import RankedLora
from strategy.round.checks import Order
from strategy.round.sending import as_received


def product_norm(pairs: list[Pair]) -> float:
    r"""Return :math:`(\sum_j \|B_jA_j\|_F^2)^{1/2}` over modules, from the small matrices B^T B and A A^T."""
    return float(np.sqrt(sum(max(0.0, float(np.sum((B.T @ B) * (A @ A.T)))) for B, A in pairs)))


class HetLora(RankedLora):
    """Up and down r_k (m + n) numbers, fewer once a device has pruned itself."""

    prunable = True

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._ranks = super().ranks

    @property
    def ranks(self) -> list[int]:
        """Rank of every device after its prunings."""
        return self._ranks

    def add(self, average: Answers, changes: AdapterState, order: Order, report: RoundReport) -> None:
        """Add the changes to the components that the device kept."""
        received = as_received(self.values(order.device), self.settings.downlink_dtype)
        if report.rank:
            received = received.cut_rank(report.rank)
            self._ranks[order.device] = report.rank
        average.add(order.device, received, changes, order.mask, order.weight)

    def finish(self, average: Answers) -> AdapterState:
        """Pad, weigh and average."""
        answers = list(average)
        names = [module.name for module in self.spec.modules]
        by_module = [average.pairs(name) for name in names]
        norms = np.array([product_norm([pairs[k] for pairs in by_module]) for k in range(len(answers))])
        weights = norms / norms.sum() if norms.sum() > 0 else average.shares()  # nobody moved lora_B: plain averaging
        new = AdapterState({}, {}, average.mean_head())
        padded = [answer.state.padded(self.spec) for answer in answers]
        for name in names:
            new.lora_A[name] = np.sum(
                [w * p.lora_A[name] for w, p in zip(weights, padded, strict=True)], axis=0
            ).astype("f4")
            new.lora_B[name] = np.sum(
                [w * p.lora_B[name] for w, p in zip(weights, padded, strict=True)], axis=0
            ).astype("f4")
        return new

    def replaced(self, device: int) -> None:
        """Start a newcomer with the rank of its class, whatever its predecessor pruned itself to."""
        super().replaced(device)
        self._ranks[device] = super().ranks[device]

    def memory(self) -> tuple[dict[str, Any], dict[str, FloatArray]]:
        """Return what `LoraStrategy.memory` does, and the ranks."""
        facts, tensors = super().memory()
        return facts | {"ranks": list(self._ranks)}, tensors

    def restore(self, facts: Mapping[str, Any], tensors: Mapping[str, FloatArray]) -> None:
        """Go on from `memory`."""
        super().restore(facts, tensors)
        self._ranks = [int(rank) for rank in facts.get("ranks", self._ranks)]
