"""Methods whose devices have ranks of their own, by device class: rank cuts, scales, collected answers."""

from typing import Any

from adapter import AdapterState
from adapter.protocol import Delivery
from strategy.aggregation import Averaged
from strategy.aggregation.products import Pair, WholeAnswers, stack
from strategy.base import LoraStrategy


class RankedLora(LoraStrategy):
    """Devices train the adapter at rank ``ranks[k]``; a subclass says how to `combine` their answers."""

    required = {"factors": "both", "aggregation": "kept"}

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.ranks = self.class_ranks()

    def class_ranks(self) -> list[int]:
        """Return the rank of every device by its class."""
        return list(self.settings.ranks) or [self.spec.rank] * len(self.directory.node_ids)

    def delivered_rank(self, device: int) -> int:
        """Return the rank as a delivery names it: 0 for the layout's own."""
        return 0 if self.ranks[device] == self.spec.rank else self.ranks[device]

    def scaling_of(self, state: AdapterState) -> float:
        """Return s_k of an adapter by its rank: s (r / r_k)**e, alpha / r_k unless the scale is common."""
        return self.settings.scaling * (self.spec.rank / state.rank) ** self.settings.rank_exponent

    def delivery(self, server_round: int, device: int) -> Delivery:
        """Send both factors at the device's rank."""
        return Delivery("AB", rank=self.delivered_rank(device))

    def values(self, device: int) -> AdapterState:
        """Return the first components of the global adapter."""
        return super().values(device).cut_rank(self.ranks[device])

    def stacked(self, answers: WholeAnswers) -> dict[str, Pair]:
        """Return factors of the mean product of every module, each device's at its own scale."""
        shares, scalings = answers.shares(), [self.scaling_of(state) for state in answers.states]
        return {m.name: stack(answers.pairs(m.name), shares, scalings) for m in self.spec.modules}

    def next_start(self) -> AdapterState:
        """Return the factors that the seed gives for the round after this one."""
        return AdapterState.seeded(self.spec, self.settings.seed, self.ledger.server_round + 1)

    def new_average(self) -> WholeAnswers:
        """Collect whole answers: their ranks differ."""
        return WholeAnswers(self.spec, self.combine)

    def combine(self, answers: WholeAnswers) -> Averaged:
        """Return the new global adapter."""
        raise NotImplementedError
