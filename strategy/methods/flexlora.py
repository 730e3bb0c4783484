r"""FlexLoRA [Bai2024]: the mean product is decomposed, and every device gets as many of its components as it has rank.

    D = sum p_k s_k B_k A_k = U S V^T;   device k:  top r_k of D,  B_k = U sqrt(S / s_k),  A_k = sqrt(S / s_k) V^T

D is never formed: the stacked factors go through two thin QR decompositions (`strategy.aggregation.products`). The
server keeps the top r = lora.r components; exact but for that truncation.

Departure from [Bai2024]: a component with singular value zero would have neither gradient; such a row of lora_A gets
its seeded value and the column of lora_B stays zero, which leaves the product as it is.

References
----------
[Bai2024] Bai et al., Federated Fine-tuning of Large Language Models under Heterogeneous Tasks and Client Resources,
    arXiv 2402.11505.
"""

import numpy as np

from adapter import AdapterState
from strategy.aggregation import Averaged
from strategy.aggregation.products import WholeAnswers, truncated
from strategy.methods.ranked import RankedLora

_NEGLIGIBLE = 1e-7  # relative to the largest singular value; float32 resolves no less


class FlexLora(RankedLora):
    """Up and down r_k (m + n) numbers."""

    def values(self, device: int) -> AdapterState:
        """Return the top components, scaled to the device: its s_k B_k A_k is their product."""
        state = super().values(device)
        factor = np.float32(np.sqrt(self.settings.scaling / self.scaling_of(state)))
        if factor == 1 or not any(value.any() for value in state.lora_B.values()):
            return state  # before the first decomposition lora_A is the seeded one, for every rank
        return state.map(lambda value: factor * value, ("lora_A", "lora_B"))

    def combine(self, answers: WholeAnswers) -> Averaged:
        """Decompose the mean product."""
        fresh, new = self.next_start().lora_A, AdapterState({}, {}, answers.mean_head())
        for name, (left, right) in self.stacked(answers).items():
            U, S, Vt = truncated(left, right, self.spec.rank)
            root = np.sqrt(S / self.settings.scaling)
            alive = (S > _NEGLIGIBLE * S.max(initial=0.0))[:, None]
            new.lora_A[name] = np.where(alive, root[:, None] * Vt, fresh[name]).astype(np.float32)
            new.lora_B[name] = np.where(alive.T, U * root, 0.0).astype(np.float32)
        return Averaged(new)
