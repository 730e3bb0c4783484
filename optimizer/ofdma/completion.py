"""OFDMA: from an ownership to a solution; the power is the least that the payload needs, the rest of the band saves energy.

At the rate r = S/(tau Delta) every device uses all its time, because the energy of a bit falls with the rate.
Water-filling gives the least power for r. Subcarriers that the objective does not need go where they save most energy.

References
----------
[Xie2026] FedLoDrop, arXiv 2510.12078 (the problem in words).
"""

from __future__ import annotations

import numpy as np

from optimizer.certificate import NOT_PROVEN, Certificate, can_be_verified
from optimizer.checker import make_solution
from optimizer.fdma.admission import Admission
from optimizer.ofdma.local_search import local_search, owned_mask
from optimizer.ofdma.model import OfdmaModel, power_budget, required_rate, uplink_time
from optimizer.ofdma.waterfilling import list_members, set_rates, sort_members, waterfill_power
from optimizer.problem import FloatArray, InfeasibleProblemError, IntArray, Solution, SolverStatus

_ROUNDING = 1e-10  # a set may exceed its power budget by this share: Newton ends on the short side by about 1e-13


def least_power(model: OfdmaModel, owner: IntArray, gamma: FloatArray) -> FloatArray:
    """Water-filled power [W] of every device on every subcarrier, (K, M), for the rates that ``gamma`` (K,) asks for."""
    device = np.arange(model.num_devices)
    owned = owned_mask(owner, model.num_devices)
    rate = required_rate(model, gamma, device)
    sets = sort_members(model, device, list_members(owned))
    total = waterfill_power(sets, rate)
    used = np.maximum(np.sum(sets.threshold < total[:, None], axis=1), 1)
    level = (total + np.take_along_axis(sets.inv_sum, used[:, None] - 1, axis=1)[:, 0]) / used
    power = np.where(owned & (rate > 0)[:, None], np.maximum(level[:, None] - model.inv_snr, 0.0), 0.0)
    # The level loses digits where inv_snr is far above the power: scale to the total that was asked for.
    spent = power.sum(axis=1)
    factor = np.divide(total, spent, out=np.ones_like(total), where=spent > 0)
    return power * np.where(np.abs(factor - 1) < 1e-6, factor, 1.0)[:, None]


def save_energy(model: OfdmaModel, owner: IntArray, gamma: FloatArray, *, max_rounds: int = 60) -> IntArray:
    """Reassign subcarriers at fixed dropout rates so that the fleet spends less energy; no device's rate changes.

    Moves and swaps as in `local_search`, on the uplink energy tau q; sets that exceed the power budget cost more than
    any energy saved.
    """
    each = np.arange(model.num_devices)
    rate, tau = required_rate(model, gamma, each), uplink_time(model, gamma, each)
    budget = power_budget(model, gamma, each)
    price = 1.0 + 10.0 * float(np.sum(budget * tau))

    def energy(device: IntArray, members: IntArray) -> FloatArray:
        power = waterfill_power(sort_members(model, device, members), rate[device])
        limit = budget[device] * (1 + _ROUNDING)
        over = np.minimum(power - limit, 1e6) / np.maximum(limit, 1e-12)
        return np.where(power <= limit, power * tau[device], price * (1.0 + np.maximum(over, 0.0)))

    improved, _ = local_search(model, owner, value=energy, max_rounds=max_rounds)
    return improved


def finish(
    model: OfdmaModel,
    owner: IntArray,
    *,
    method: str,
    status: SolverStatus,
    lower_bound: float,
    admission: Admission | None = None,
    certificate: Certificate | None = None,
    gamma: FloatArray | None = None,
    save: bool = True,
    nodes: int = 0,
    iterations: int = 0,
) -> Solution:
    """Complete an ownership of the model's devices to a `Solution` of the whole problem (``solve_time_s`` left at zero).

    Parameters
    ----------
    model : OfdmaModel
        The devices that take part.
    owner : ndarray
        (M,) device of the model or -1; every device must be served.
    method, status, lower_bound, admission, nodes, iterations
        Copied into the solution.
    certificate : mapping, optional
        Proves the bound; left out where the verifier cannot know the objective.
    gamma : ndarray, optional
        (K,) dropout rates; the best ones for ``owner`` when left out.
    save : bool
        Whether to reassign subcarriers to save energy.

    Raises
    ------
    InfeasibleProblemError
        When ``owner`` does not serve every device.
    """
    device = np.arange(model.num_devices)
    if gamma is None:
        gamma = model.choose_rates(set_rates(model, device, owned_mask(owner, model.num_devices)), device)
    if not np.all(np.isfinite(gamma)):
        short = [model.problem.device_ids[k] for k in model.index[~np.isfinite(gamma)]]
        raise InfeasibleProblemError(
            f"the ownership leaves {', '.join(short)} without enough subcarriers; repair it first"
        )
    if save:
        owner = save_energy(model, owner, gamma)
    count = model.problem.num_devices
    on, rate = np.zeros(count, dtype=bool), np.zeros(count)
    power = np.zeros(model.problem.channel_gain.shape)
    on[model.index], rate[model.index], power[model.index] = True, gamma, least_power(model, owner, gamma)
    return make_solution(
        model.problem,
        method=method,
        status=status,
        scheduled=on,
        dropout_rate=rate,
        tx_power_w=power,
        subcarrier_owner=np.where(owner >= 0, model.index[owner], -1),
        lower_bound=lower_bound,
        nodes=nodes,
        iterations=iterations,
        objective=model.objective,
        reasons=admission.reasons if admission else (),
        admission=admission.claim if admission else NOT_PROVEN,
        certificate=certificate if can_be_verified(model.problem, model.objective) else None,
    )
