"""What a solution carries so that `optimizer.verify` can prove its lower bound; docs/certificates.md gives the form.

A certificate is plain data (numbers, lists, dicts), made by whoever found the bound and believed by nobody: the
verifier recomputes every bound from it. Only the generalization bound can be verified; a plug-in objective gets none.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from optimizer.objective import GeneralizationBound, SeparableObjective, free_bound, free_rates
from optimizer.problem import FloatArray, ResourceProblem

Certificate = Mapping[str, Any]
HEAVIEST, NOT_PROVEN = "heaviest", "not proven"


def can_be_verified(objective: SeparableObjective) -> bool:
    """Whether the verifier knows the objective: the generalization bound."""
    return type(objective) is GeneralizationBound


def price_certificate(price_per_hz: float, dropout_rate: FloatArray) -> Certificate:
    """FDMA: a price on bandwidth, and the dropout rates (K,) with which the devices that take part answer it."""
    return {"price_per_hz": float(price_per_hz), "dropout_rate": dropout_rate.tolist()}


def shortened(certificate: Certificate | None, dropout_rate: FloatArray) -> Certificate | None:
    """Tell an FDMA certificate's rates by how far they are from those of the allocation (K,), in units of 1e-13.

    ``shift`` n stands for rate (1 + 1e-13 n): half as long. Rates that are nowhere near stay as they are.
    """
    own = np.array((certificate or {}).get("dropout_rate", []))
    if certificate is None or not own.size or not np.allclose(own, dropout_rate, rtol=1e-6, atol=0.0):
        return certificate
    apart = np.divide(own - dropout_rate, dropout_rate, out=np.zeros_like(own), where=dropout_rate > 0)
    return {"price_per_hz": certificate["price_per_hz"], "shift": np.rint(apart / 1e-13).astype(int).tolist()}


@dataclass(frozen=True)
class Leaf:
    """OFDMA: a bound on one part of the search space, the sum of floors less prices.

    ``price`` (M,) on subcarriers and ``floor`` (K,) on what every device's set costs with these prices.
    """

    bound: float
    price: FloatArray
    floor: FloatArray

    def certificate(self) -> Certificate:
        """Return its plain form."""
        return {"price": self.price.tolist(), "floor": self.floor.tolist()}


def free_proof(problem: ResourceProblem, objective: SeparableObjective) -> tuple[float, Certificate | None]:
    """`free_bound`, what a rule's bound rests on, and its certificate if it can be verified."""
    bound = free_bound(problem, objective)
    if not can_be_verified(objective):
        return bound, None
    rate = free_rates(problem, objective)
    if problem.access != "ofdma":
        return bound, price_certificate(0.0, rate)
    return bound, Leaf(bound, np.zeros(problem.num_subcarriers), objective.value(problem, rate)).certificate()
