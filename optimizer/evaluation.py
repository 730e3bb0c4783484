"""What an allocation really costs and is worth: rates, latency, energy and objective from the definitions.

Solvers build their `Solution` here and the checker recomputes it here, from the same `wireless.cost` as the round's ledger.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from optimizer.bound import GeneralizationBound, SeparableObjective
from optimizer.problem import BoolArray, FloatArray, IntArray, ResourceProblem, Solution, SolverStatus
from wireless.cost import RoundCost, compute_cycles, payload_bits, round_cost
from wireless.link import fdma_rate_bps, ofdma_rate_bps


@dataclass(frozen=True)
class Evaluation:
    """Uplink rate (K,) [bit/s], cost parts (K,) and weighted bound (K,) of an allocation, as if every device took part."""

    rate_bps: FloatArray
    cost: RoundCost
    value: FloatArray


def evaluate(
    problem: ResourceProblem,
    dropout_rate: FloatArray,
    tx_power_w: FloatArray,
    bandwidth_hz: FloatArray | None = None,
    objective: SeparableObjective | None = None,
    cpu_hz: FloatArray | None = None,
) -> Evaluation:
    """Return rate, cost and value of (gamma, p, b), elementwise over the devices.

    Parameters
    ----------
    problem : ResourceProblem
        The round's data.
    dropout_rate : ndarray
        Shape (K,), in [0, 1).
    tx_power_w : ndarray
        Shape (K,) under FDMA, (K, M) under OFDMA (zero where a subcarrier is not owned) [W].
    bandwidth_hz : ndarray, optional
        Shape (K,) [Hz], FDMA only.
    objective : SeparableObjective, optional
        What to report as value, the generalization bound if left out.
    cpu_hz : ndarray, optional
        Shape (K,), clocks that replace the problem's [Hz].

    Returns
    -------
    Evaluation
        Rate [bit/s], cost and weighted value, each per device.
    """
    if problem.access == "fdma":
        if bandwidth_hz is None:
            raise ValueError("an FDMA allocation needs bandwidth_hz, found None")
        rate = fdma_rate_bps(bandwidth_hz, tx_power_w, problem.channel_gain, problem.noise_psd_w_per_hz)
        power = tx_power_w
    else:
        rate = ofdma_rate_bps(tx_power_w, problem.channel_gain, problem.subcarrier_hz, problem.noise_psd_w_per_hz)
        power = tx_power_w.sum(axis=1)  # (K, M) -> (K,)
    bits = payload_bits(problem.fixed_bits, problem.droppable_bits, dropout_rate)
    cost = round_cost(
        uplink_bits=bits, downlink_bits=payload_bits(*problem.downlink_payload, dropout_rate),
        cycles=compute_cycles(problem.fixed_cycles, problem.adapter_cycles, dropout_rate),
        cpu_hz=problem.cpu_hz if cpu_hz is None else cpu_hz, capacitance=problem.capacitance,
        downlink_rate_bps=problem.downlink_rate_bps, uplink_rate_bps=rate, tx_power_w=power,
    )  # fmt: skip
    return Evaluation(rate, cost, (objective or GeneralizationBound()).value(problem, dropout_rate))


def make_solution(
    problem: ResourceProblem,
    *,
    method: str,
    status: SolverStatus,
    scheduled: BoolArray,
    dropout_rate: FloatArray,
    tx_power_w: FloatArray,
    bandwidth_hz: FloatArray | None = None,
    subcarrier_owner: IntArray | None = None,
    lower_bound: float = -np.inf,
    nodes: int = 0,
    iterations: int = 0,
    solve_time_s: float = 0.0,
    reasons: Sequence[str] = (),
    objective: SeparableObjective | None = None,
) -> Solution:
    """Complete a solver's decision (arrays of the whole fleet) to a `Solution`; who sits out is blanked here.

    Latency, energy and objective are computed by `evaluate`. A bound above the objective by rounding only (1e-12 relative)
    is lowered to it; a larger excess is left for the checker to report.
    """
    on = np.asarray(scheduled, dtype=np.bool_)
    gamma = np.where(on, dropout_rate, 0.0)
    power = np.where(on if problem.access == "fdma" else on[:, None], tx_power_w, 0.0)
    band = None if bandwidth_hz is None else np.where(on, bandwidth_hz, 0.0)
    found = evaluate(problem, gamma, power, band, objective)
    total = float(found.value[on].sum())
    if total < lower_bound <= total + 1e-12 * max(1.0, abs(total)):
        lower_bound = total
    owner = None if subcarrier_owner is None else np.asarray(subcarrier_owner, dtype=np.int64)
    return Solution(
        method=method, status=status, scheduled=on, dropout_rate=np.where(on, gamma, np.nan),
        latency_s=np.where(on, found.cost.latency_s, np.nan), energy_j=np.where(on, found.cost.energy_j, np.nan),
        tx_power_w=power, objective=total, lower_bound=float(lower_bound), bandwidth_hz=band, subcarrier_owner=owner,
        nodes=nodes, iterations=iterations, solve_time_s=solve_time_s,
        reasons=tuple(reasons) or ("",) * problem.num_devices,
    )  # fmt: skip


def nobody_scheduled(problem: ResourceProblem, method: str, reasons: Sequence[str] = (), solve_time_s: float = 0.0) -> Solution:
    """Return the solution in which every device sits the round out (status INFEASIBLE, objective and bound 0)."""
    zeros = np.zeros(problem.num_devices)
    ofdma = problem.access == "ofdma"
    return make_solution(
        problem, method=method, status=SolverStatus.INFEASIBLE, scheduled=np.zeros(problem.num_devices, dtype=np.bool_),
        dropout_rate=zeros, tx_power_w=np.zeros_like(problem.channel_gain), bandwidth_hz=None if ofdma else zeros,
        subcarrier_owner=np.full(problem.num_subcarriers, -1) if ofdma else None, lower_bound=0.0,
        solve_time_s=solve_time_s, reasons=tuple(reasons) or ("no device can be served",) * problem.num_devices,
    )  # fmt: skip
