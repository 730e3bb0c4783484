"""What methods share whose devices have ranks of their own, by device class: rank cuts, scales, collected answers."""

from __future__ import annotations

from adapter import AdapterState, RoundReport
from adapter.delivery import Delivery
from strategy.averages.products import Answers
from strategy.methods.fedit import FedIT
from strategy.round.checks import Order
from strategy.round.sending import as_received


class RankedLora(FedIT):
    """Devices train the adapter at rank ``settings.ranks[k]``, without dropout."""

    required = {"factors": "both", "aggregation": "kept"}

    @property
    def ranks(self) -> list[int]:
        """Rank of every device."""
        return list(self.settings.ranks) or [self.spec.modules[0].r] * len(self.directory.node_ids)

    def delivered_rank(self, device: int) -> int:
        """Return the rank as a delivery names it: 0 for the layout's own."""
        rank = self.ranks[device]
        return 0 if rank == self.spec.modules[0].r else rank

    def scaling_of(self, state: AdapterState) -> float:
        """Return s_k of an adapter by its rank: s (r / r_k)**e, alpha / r_k unless the scale is common."""
        rank = next(iter(state.lora_A.values())).shape[0]
        return self.settings.scaling * (self.spec.modules[0].r / rank) ** self.settings.rank_exponent

    def delivery(self, server_round: int, device: int) -> Delivery:
        """Send both factors at the device's rank."""
        return Delivery("AB", rank=self.delivered_rank(device))

    def values(self, device: int) -> AdapterState:
        """Return the first components of the global adapter."""
        return super().values(device).cut_rank(self.ranks[device])

    def new_average(self) -> Answers:
        """Collect whole answers: their ranks differ."""
        return Answers(self.spec)

    def add(self, average: Answers, changes: AdapterState, order: Order, report: RoundReport) -> None:
        """Add the changes to what the device was sent."""
        received = as_received(self.values(order.device), self.settings.downlink_dtype)
        average.add(order.device, received, changes, order.mask, order.weight)
