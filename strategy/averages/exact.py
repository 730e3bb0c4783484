"""``aggregation=exact``: the mean of products, split into the product of means and an update of the base (see fedex_lora.py).

With dropout the target is sum p_k B_k A_k over whole factors, where what a device dropped counts as unchanged; the
factors therefore become the means of ``previous``. Where one factor alone trains the other is common, the residual is
zero and the mean of ``previous`` is exact by itself.
"""

from __future__ import annotations

from adapter import AdapterMask, AdapterSpec, AdapterState
from adapter.base_update import Update
from strategy.averages.products import Answers, as_update, mean_factors, residual


class ExactAverage:
    """Means and residual of one round.

    Parameters
    ----------
    spec : AdapterSpec
        Layout of the adapter.
    scaling : float
        s of the product.
    """

    def __init__(self, spec: AdapterSpec, scaling: float) -> None:
        self.answers = Answers(spec)
        self.scaling = scaling

    def add(self, device: int, received: AdapterState, changes: AdapterState, mask: AdapterMask, weight: float) -> None:
        """Add one device's changes, see `strategy.products.Answers.add`."""
        self.answers.add(device, received, changes, mask, weight)

    def finish(self) -> tuple[AdapterState, Update | None]:
        """Return the mean factors in float32, and what the base takes up so that nothing is lost."""
        shares, new, factors = self.answers.shares(), AdapterState({}, {}, self.answers.mean_head()), {}
        for module in self.answers.spec.modules:
            pairs = self.answers.pairs(module.name)
            mean_B, mean_A = mean_factors(pairs, shares)
            new.lora_A[module.name], new.lora_B[module.name] = mean_A.astype("f4"), mean_B.astype("f4")
            if len(pairs) > 1:
                factors[module.name] = residual(pairs, shares, mean_B, self.scaling)
        return new, as_update(factors) if factors else None
