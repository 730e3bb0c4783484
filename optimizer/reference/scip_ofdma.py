"""Reference solver for OFDMA with a handful of subcarriers: the full mixed-integer model by SCIP (see `optimizer.scip`)."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from optimizer.bound import SeparableObjective
from optimizer.evaluation import nobody_scheduled
from optimizer.ofdma_admission import admit_ofdma
from optimizer.ofdma_model import build_model
from optimizer.ofdma_power import finish
from optimizer.problem import ResourceProblem, Solution
from optimizer.scip import check_objective, run_scip


def solve_scip_ofdma(
    problem: ResourceProblem, *, objective: SeparableObjective | None = None, time_limit_s: float = 10.0, gap: float = 1e-4
) -> Solution:
    """Admit devices and solve their full model by SCIP.

    Only the ownership is taken from SCIP; rates and power follow from it exactly, so its tolerances leave no trace.

    Parameters
    ----------
    problem : ResourceProblem
        OFDMA.
    objective : SeparableObjective, optional
        Only the generalization bound can be written into the model; anything else is refused.
    time_limit_s, gap : float
        SCIP's limits.

    Returns
    -------
    Solution
        OPTIMAL, or TIME_LIMIT with SCIP's bound.

    Raises
    ------
    AllocationError
        If SCIP has no solution when its time is over, or had to be ended.
    InfeasibleProblemError
        If SCIP's ownership serves a device only within its tolerances.
    """
    check_objective(objective)
    began = time.perf_counter()
    fit = admit_ofdma(build_model(problem, objective))
    if not fit.admission.scheduled.any():
        return nobody_scheduled(problem, "scip", fit.admission.reasons, time.perf_counter() - began)
    answer = run_scip(problem.subset(fit.admission.scheduled), time_limit_s, gap)
    share = np.array(answer["share"])  # (K, M)
    owner = np.where(share.max(axis=0) > 0.5, share.argmax(axis=0), -1)
    solution = finish(
        fit.model, owner, method="scip", status=answer["status"], lower_bound=answer["bound"], reasons=fit.admission.reasons
    )  # fmt: skip
    return replace(solution, solve_time_s=time.perf_counter() - began)
