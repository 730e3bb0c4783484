"""``aggregation=exact``: the mean of products as the product of means and an update of the base (fedex_lora.py).

With dropout the target is sum p_k B_k A_k over whole factors, where what a device dropped counts as unchanged; the
factors therefore become the means of ``previous``. Where one factor alone trains the other is common, the residual is
zero and the mean of ``previous`` is exact by itself.
"""

from __future__ import annotations

from adapter import AdapterState
from strategy.averages.average import Averaged
from strategy.averages.products import WholeAnswers, as_update, mean_factors, residual


def exact_mean(answers: WholeAnswers, scaling: float) -> Averaged:
    """Return the mean factors, and what the base takes up so that no part of the mean product is lost."""
    shares, new, factors = answers.shares(), AdapterState({}, {}, answers.mean_head()), {}
    for module in answers.spec.modules:
        pairs = answers.pairs(module.name)
        mean_B, mean_A = mean_factors(pairs, shares)
        new.lora_A[module.name], new.lora_B[module.name] = mean_A.astype("f4"), mean_B.astype("f4")
        if len(pairs) > 1:
            factors[module.name] = residual(pairs, shares, mean_B, scaling)
    return Averaged(new, as_update(factors) if factors else None)
