r"""FedLoDrop [Xie2026]: every device trains a random sub-adapter whose size fits its channel, deadline and energy.

One round:

1. *Plan.* The server chooses every device's dropout rate gamma_k, bandwidth and transmit power so that the bound of the
   loss is least within the deadline and the energy budgets (`optimizer.allocator`).
2. *Mask.* Device k keeps a share 1 - gamma_k of the columns of lora_A and of the rows of lora_B. The mask comes from a
   seed of 8 bytes that both ends share; it never travels.
3. *Send.* The survivors A[:, columns] and B[rows, :] and the head go to the device, S = s0 + s1 (1 - gamma_k) bits.
4. *Train.* The device takes its local steps on diag(m_B) B A diag(m_A) / (1 - gamma_k)^2
   (`adapter.masked_training.masked_adapter`) and answers with the changes of the survivors, again S bits.
5. *Average.* Every column and row is averaged over the devices K(c) that kept it (`strategy.aggregation.kept`).

Departure from [Xie2026]: masks keep a fixed count per matrix by default (``mask="bernoulli"`` draws independently),
kept factors are scaled by 1/(1-gamma) while training, and entries nobody kept stay as they were; docs/architecture.md
says why.
"""

import functools

from adapter import AdapterMask, AdapterSpec, AdapterState, gather, sample_mask
from adapter.mask import Factors
from strategy.base import LoraStrategy

_sample = functools.lru_cache(maxsize=1)(sample_mask)  # drawn twice in a row: to check an answer, and to add it


class FedLoDrop(LoraStrategy):
    """FedLoDrop as a Flower strategy; `LoraStrategy` calls these in every round."""

    def max_dropout_rate(self) -> float | None:
        """Plan: the optimizer chooses gamma_k up to the budget's limit."""
        return None

    def draw_mask(self, layout: AdapterSpec, seed: int, dropout_rate: float, factors: Factors) -> AdapterMask:
        """Mask: draw the survivors of the factors that train, as the device does from the same seed."""
        return _sample(layout, seed, dropout_rate, self.settings.mask, factors)

    def cut(self, layout: AdapterSpec, values: AdapterState, mask: AdapterMask, factors: Factors) -> AdapterState:
        """Send: the surviving columns of lora_A and rows of lora_B, and the head."""
        return gather(layout, values, mask, factors)
