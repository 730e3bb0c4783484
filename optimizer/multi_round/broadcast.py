"""A shared downlink: whoever takes part downloads at the rate of the slowest of them.

For a given slowest device the problem is that of docs/formulation.md without the slower ones, with one downlink rate;
all its proofs and certificates hold. So every rate at which somebody could be the slowest is tried, in rising order,
until those who are left weigh less than what is served already.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from optimizer.certificate import HEAVIEST, NOT_PROVEN
from optimizer.fdma.admission import rank
from optimizer.problem import ResourceProblem, Solution
from optimizer.timing import remaining_s, time_is_up, time_limit


def solve_broadcast(problem: ResourceProblem, solve: Callable[[ResourceProblem], Solution]) -> Solution:
    """Answer a problem with a shared downlink by ``solve``, which answers those without: most weight, then least cost.

    The bound is that of the scheduled devices at their common rate.
    """
    own, weights, proven = problem.downlink_rate_bps, problem.weights, True
    rates, answers = np.unique(own), list[Solution]()
    for tried, rate in enumerate(rates):
        keep = own >= rate
        most = max((float(weights[one.scheduled].sum()) for one in answers), default=-1.0)
        if answers and (weights[keep].sum() < most * (1 - 1e-12) or time_is_up()):
            proven &= not time_is_up()
            break
        common = replace(problem.without(keep), shared_downlink=False, downlink_rate_bps=np.where(keep, rate, own))
        with time_limit(remaining_s() / (2 if tried + 1 < rates.size else 1)):
            found = solve(common)
        proven &= found.admission == HEAVIEST
        if own[found.scheduled].min(initial=np.inf) > rate and found.scheduled.any():
            continue  # they are served faster at a later rate
        told = f"a downlink of {rate:.4g} bit/s for everyone who takes part is faster than its own"
        reasons = tuple(reason if kept else told for reason, kept in zip(found.reasons, keep, strict=True))
        answers.append(replace(found, reasons=reasons))  # at the highest rate nobody is faster
    return replace(min(answers, key=partial(rank, problem)), admission=HEAVIEST if proven else NOT_PROVEN)
