"""OFDMA: from an ownership to a solution; power is the least that the payload needs, spare subcarriers save energy.

At the rate r = S/(tau Delta) every device uses all its time, because the energy of a bit falls with the rate.
Water-filling gives the least power for r. Subcarriers that the objective does not need go where they save most energy.
"""

from collections.abc import Callable

import numpy as np

from optimizer.fdma.admission import Admission
from optimizer.ofdma.admission import admit_ofdma
from optimizer.ofdma.local_search import local_search
from optimizer.ofdma.model import OfdmaModel, power_budget, required_rate, uplink_time
from optimizer.ofdma.waterfilling import fleet_rates, list_members, owned_mask, sort_members, waterfill_power
from optimizer.problem import FloatArray, InfeasibleProblemError, IntArray, ResourceProblem, Solution
from optimizer.solver_interface import Arguments, Decision
from optimizer.timing import time_is_up

_ROUNDING = 1e-10  # a set may exceed its power budget by this share: Newton ends on the short side by about 1e-13


def least_power(model: OfdmaModel, owner: IntArray, gamma: FloatArray) -> FloatArray:
    """Water-filled power (K, M) [W] of every device on every subcarrier, for the rates that ``gamma`` (K,) asks for."""
    owned, rate = owned_mask(owner, model.num_devices), required_rate(model, gamma)
    sets = sort_members(model, model.devices, list_members(owned))
    total = waterfill_power(sets, rate)
    level = sets.best * sets.level(total)[1]  # above the best subcarrier's inv
    above = model.inv_snr - sets.best[:, None]
    power = np.where(owned & (rate > 0)[:, None], np.maximum(level[:, None] - above, 0.0), 0.0)
    # The level loses digits where inv_snr is far above the power: scale to the total that was asked for.
    spent = power.sum(axis=1)
    factor = np.divide(total, spent, out=np.ones_like(total), where=spent > 0)
    return power * np.where(np.abs(factor - 1) < 1e-6, factor, 1.0)[:, None]


def save_energy(model: OfdmaModel, owner: IntArray, gamma: FloatArray) -> IntArray:
    """Reassign subcarriers at fixed dropout rates so that the fleet spends less energy; no device's rate changes.

    Moves and swaps as in `local_search`, on the uplink energy tau q; sets that exceed the power budget cost more than
    any energy saved. Nothing is begun when time is up.
    """
    if time_is_up():
        return owner
    rate, tau, budget = required_rate(model, gamma), uplink_time(model, gamma), power_budget(model, gamma)
    price = 1.0 + 10.0 * float(np.sum(budget * tau))

    def energy(device: IntArray, members: IntArray) -> FloatArray:
        power = waterfill_power(sort_members(model, device, members), rate[device])
        limit = budget[device] * (1 + _ROUNDING)
        over = np.minimum(power - limit, 1e6) / np.maximum(limit, 1e-12)
        return np.where(power <= limit, power * tau[device], price * (1.0 + np.maximum(over, 0.0)))

    return local_search(model, owner, value=energy, max_rounds=60)[0]


def on_admitted(
    problem: ResourceProblem, arguments: Arguments, decide: Callable[[OfdmaModel, IntArray, Arguments], Decision]
) -> Solution:
    """Admit devices and complete what ``decide`` (model, an ownership that serves them, arguments) says about them."""
    previous = None if arguments.warm_start is None else arguments.warm_start.subcarrier_owner
    if previous is not None:  # does it fit this problem?
        previous = np.asarray(previous, dtype=np.int64)  # a method of the user's own may give a list
        known = previous.shape == (problem.num_subcarriers,) and previous.max(initial=-1) < problem.num_devices
        previous = previous if known else None
    fit = admit_ofdma(OfdmaModel(problem, arguments.objective), previous)
    if not fit.admission.scheduled.any():
        return fit.admission.nobody(problem)
    return finish(fit.model, fit.admission, decide(fit.model, fit.owner, arguments), arguments)


def finish(model: OfdmaModel, admission: Admission, decision: Decision, arguments: Arguments) -> Solution:
    """Complete a decision about the model's devices to a `Solution` of the whole problem.

    Without dropout rates in the decision the best ones for its ownership are taken, and subcarriers that they do not
    need save energy. Raises InfeasibleProblemError when the ownership does not serve every device.
    """
    gamma, owner = decision.dropout_rate, decision.owner
    assert owner is not None
    if gamma is None:
        gamma = model.choose_rates(fleet_rates(model, owner))
        if not np.all(np.isfinite(gamma)):
            short = ", ".join(model.problem.device_ids[k] for k in model.index[~np.isfinite(gamma)])
            raise InfeasibleProblemError(f"the ownership leaves {short} without enough subcarriers; repair it first")
        owner = save_energy(model, owner, gamma)
    rate, power = np.zeros(model.problem.num_devices), np.zeros(model.problem.channel_gain.shape)
    rate[model.index], power[model.index] = gamma, least_power(model, owner, gamma)
    mine = np.where(owner >= 0, model.index[owner], -1)
    return admission.complete(model.problem, decision, arguments, rate=rate, tx_power_w=power, subcarrier_owner=mine)
