r"""FLoRA [Wang2024]: the devices' factors are stacked into one update of the base; every round starts anew.

    W0 <- W0 + [B_1 .. B_K] [p_1 s_1 A_1; ..; p_K s_K A_K],     A, B drawn again

The product is exact and ranks may differ. Fresh factors come from the seed and the round, so they cost no bytes.

References
----------
[Wang2024] Wang et al., FLoRA: Federated Fine-Tuning Large Language Models with Heterogeneous Low-Rank Adaptations,
    arXiv 2409.05976.
"""

from dataclasses import replace

from adapter import AdapterState
from adapter.protocol import Delivery
from strategy.aggregation import Averaged
from strategy.aggregation.products import WholeAnswers, as_update
from strategy.methods.ranked import RankedLora


class FLora(RankedLora):
    """Stacking: up r_k (m + n) numbers, down min(m n, sum r_k (m + n))."""

    changes_base = True

    def delivery(self, server_round: int, device: int) -> Delivery:
        """Send no factors: they are drawn from the round."""
        return Delivery("", rank=self.delivered_rank(device), seed_round=server_round)

    def evaluation_delivery(self, device: int) -> Delivery:
        """Send the base and the head; the factors of the next round have B = 0 and change nothing."""
        return self.book.with_base(Delivery("", seed_round=self.ledger.server_round + 1), device)

    def values(self, device: int) -> AdapterState:
        """Return the round's fresh factors at the device's rank."""
        fresh = AdapterState.seeded(self.spec, self.settings.seed, self.ledger.server_round)
        return replace(fresh, head=self._state.head, base=self._state.base).cut_rank(self.ranks[device])

    def combine(self, answers: WholeAnswers) -> Averaged:
        """Stack the answers onto the base."""
        return Averaged(replace(self.next_start(), head=answers.mean_head()), as_update(self.stacked(answers)))
