"""The devices' batteries over a run: what is left, and what the policy allots to a round (docs/multi_round.md)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from optimizer.multi_round.battery import allowances
from optimizer.problem import ResourceProblem, Solution
from strategy.round.fleet import FloatArray, IntArray


@dataclass
class Batteries:
    """Energy left of all devices, (K,) [J], inf for one on the mains, and the price per joule of the last plan."""

    full_j: FloatArray
    num_rounds: int
    priced: bool  # False: every round may spend what is left

    def __post_init__(self) -> None:
        """Begin charged."""
        self.charge_j, self.price_per_j = self.full_j.copy(), np.zeros_like(self.full_j)

    def allot(
        self, problem: ResourceProblem, devices: IntArray, server_round: int, channel: Callable[[int], FloatArray]
    ) -> ResourceProblem:
        """Return the round's problem with what each participant may spend in place of its budget."""
        charge = self.charge_j[devices]
        if not self.priced:
            return replace(problem, energy_budget_j=np.minimum(charge, problem.energy_budget_j))
        now, left = channel(server_round)[devices], max(self.num_rounds - server_round + 1, 1)
        scale = np.divide(problem.channel_gain, now, out=np.ones_like(now), where=now > 0)  # what measurements say
        seen = [channel(earlier)[devices] * scale for earlier in range(max(1, server_round - 10), server_round)]
        gains = np.array(seen).reshape(-1, devices.size)
        spend, price = allowances(problem, gains, np.minimum(charge, left * problem.energy_budget_j), left)
        self.price_per_j[devices] = price
        return replace(problem, energy_budget_j=spend)

    def explained(self, problem: ResourceProblem, devices: IntArray, solution: Solution) -> Solution:
        """Return the plan with the reasons of those whom the policy allots nothing."""
        reasons = list(solution.reasons)
        for position in np.flatnonzero(np.isfinite(self.full_j[devices]) & ~solution.scheduled):
            left, price = self.charge_j[devices[position]], self.price_per_j[devices[position]]
            held = f"{left:.4g} J of {self.full_j[devices[position]]:.4g} J left"
            if left > 0 and problem.energy_budget_j[position] <= 0:
                reasons[position] = f"saves its battery for later rounds, {held} at {price:.3g} per joule"
            elif left <= problem.energy_budget_j[position] and reasons[position].startswith("energy budget"):
                reasons[position] = f"its battery is empty, {held}"
        return replace(solution, reasons=tuple(reasons))

    def told(self, device: int, allotted_j: float) -> str:
        """Say what a device's battery held as the round began, and what it was allowed to spend."""
        left, full = self.charge_j[device], self.full_j[device]
        if np.isinf(full):
            return "It is on the mains: no battery holds it back."
        price = f" at a price of {self.price_per_j[device]:.3g} per joule" if self.priced else ""
        return f"Its battery held {left:.4g} J of {full:.4g} J and the round might take {allotted_j:.4g} J{price}."

    def spend(self, devices: IntArray, energy_j: FloatArray) -> None:
        """Take what a round cost its participants, (participants,) [J]."""
        self.charge_j[devices] = np.maximum(self.charge_j[devices] - energy_j, 0.0)

    def to_facts(self) -> dict[str, Any]:
        """Return the charges for a checkpoint, None for a device on the mains."""
        return {"charge_j": [left if np.isfinite(left) else None for left in self.charge_j.tolist()]}

    def restore(self, facts: Mapping[str, Any]) -> None:
        """Inverse of `to_facts`."""
        self.charge_j = np.array([np.inf if left is None else left for left in facts["charge_j"]])
