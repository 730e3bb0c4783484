r"""HetLoRA's rank self-pruning [Cho2024]: a regulariser on the last components, and their removal once they shrank.

With r' = max(1, floor(decay r)) the loss gains :math:`\lambda\sum_j \|B_j[:, r':]\|_F\|A_j[r':]\|_F` over the modules
j. If that sum is smaller after the local steps than before, the device keeps the first r' components only.

References
----------
[Cho2024] Cho et al., Heterogeneous LoRA for Federated Fine-tuning of On-Device Foundation Models, EMNLP 2024.
"""

import math
from collections.abc import Mapping

import torch

from adapter import AdapterSpec


def pruned_rank(decay: float | None, rank: int) -> int:
    """Rank that a pruning leaves, at least 1; ``decay`` None: no pruning."""
    return rank if decay is None else max(1, math.floor(decay * rank))


def tail_norm(parameters: Mapping[str, torch.nn.Parameter], spec: AdapterSpec, rank: int) -> torch.Tensor:
    """Sum over modules of the norms' product of the components beyond a rank; 0 for none."""
    norm, total = torch.linalg.vector_norm, torch.zeros(())
    for module in spec.modules if rank < spec.rank else ():
        A, B = parameters[f"{module.name}.lora_A"], parameters[f"{module.name}.lora_B"]
        total = total.to(A.device) + norm(B[:, rank : module.r]) * norm(A[rank : module.r])
    return total
