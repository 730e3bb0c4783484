r"""HetLoRA's rank self-pruning [Cho2024]: a regulariser on the last components, and their removal once they shrank.

With r' = max(1, floor(decay r)) the loss gains :math:`\lambda\sum_j \|B_j[:, r':]\|_F\|A_j[r':]\|_F` over the modules
j. If that sum is smaller after the local steps than before, the device keeps the first r' components only.

References
----------
[Cho2024] Cho et al., Heterogeneous LoRA for Federated Fine-tuning of On-Device Foundation Models, EMNLP 2024.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from adapter import AdapterSpec


@dataclass(frozen=True)
class PruningSettings:
    """``decay`` of the rank per pruning, None: no pruning; ``weight`` lambda of the regulariser."""

    decay: float | None = None
    weight: float = 0.0

    def pruned_rank(self, rank: int) -> int:
        """Rank that a pruning leaves, at least 1."""
        return rank if self.decay is None else max(1, math.floor(self.decay * rank))

    def tail(self, parameters: Mapping[str, torch.nn.Parameter], spec: AdapterSpec) -> torch.Tensor:
        """Sum over modules of the norms' product of the components that a pruning would remove; 0 for none."""
        first, norm, total = self.pruned_rank(spec.rank), torch.linalg.vector_norm, torch.zeros(())
        for module in spec.modules if first < spec.rank else ():
            A, B = parameters[f"{module.name}.lora_A"], parameters[f"{module.name}.lora_B"]
            total = total.to(A.device) + norm(B[:, first : module.r]) * norm(A[first : module.r])
        return total
