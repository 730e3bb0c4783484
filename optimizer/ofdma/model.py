"""OFDMA: the affine data of every device, and the rate and power that a dropout rate asks for.

With dropout rate gamma, tau(gamma) = T - S/D - C/f is the time left for the uplink and eps(gamma) = E - kappa f^2 C the
energy left for it, both affine in gamma, as is the payload S. A device needs the rate r = S/(tau Delta) and may spend
the power q = min(P, eps/tau). docs/ofdma.md states the problem.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import numpy as np

from optimizer.objective import (
    GeneralizationBound,
    SeparableObjective,
    bound_gradient,
    bound_value,
    first_rise,
    is_convex,
)
from optimizer.ofdma.rising_objective import RisingObjective, RisingTable, rising_objective
from optimizer.problem import BoolArray, FloatArray, IntArray, ProblemError, ResourceProblem

PlugIn = Callable[[ResourceProblem, FloatArray], FloatArray]
LN2 = float(np.log(2.0))
BOUND = GeneralizationBound()
Device = IntArray | slice  # numbers of a model's devices, of the shape of what is asked; `EVERY` one in order
EVERY = slice(None)
NO_CHANNEL = 1e200  # stands for 1/0: never reached by any water level, and finite, so that sums stay finite


@dataclass(frozen=True)
class OfdmaModel:
    """The affine data of every device, shape (K,) unless stated; rates in bit/s/Hz of one subcarrier, powers in W.

    tau = tau0 + tau1 gamma [s], S/Delta = bits0 - bits1 gamma [s * bit/s/Hz], eps = joule0 + joule1 gamma [J].
    """

    problem: ResourceProblem  # these numbers come from it,
    index: IntArray  # and are those of these devices in it: a model may hold fewer
    objective: SeparableObjective  # phi_k
    tau0: FloatArray
    tau1: FloatArray
    bits0: FloatArray
    bits1: FloatArray
    joule0: FloatArray
    joule1: FloatArray
    power: FloatArray  # power cap P
    inv_snr: FloatArray  # (K, M), N0 Delta / g [W]: the power at which one subcarrier carries one bit/s/Hz
    # (K, M + 1), place of each subcarrier in its device's order from best to worst, and ``inv_snr`` in that order; the
    # last column is "no subcarrier", a channel that carries nothing.
    rank: IntArray
    sorted_inv_snr: FloatArray
    rate_low: FloatArray  # max(gamma0, smallest gamma with tau >= 0 and eps >= 0), above rate_high if never served
    rate_high: float  # gamma_max
    rising: RisingObjective | None = None  # for an objective that is not convex: what stands in for phi,
    table: RisingTable | None = None  # and what `value` and `slope` read of it (`optimizer.ofdma.rising_objective`)

    @property
    def num_devices(self) -> int:
        """K."""
        return int(self.inv_snr.shape[0])

    @property
    def num_subcarriers(self) -> int:
        """M."""
        return int(self.inv_snr.shape[1])

    def value(self, dropout_rate: FloatArray, device: Device = EVERY) -> FloatArray:
        """Weighted bound phi of ``device`` at ``dropout_rate``, both of one shape; infinite at infinite rates."""
        finite, who = np.isfinite(dropout_rate), self.index[device]
        gamma = np.where(finite, dropout_rate, 0.0)
        if self.table is not None:
            return np.where(finite, self.table.value(gamma, who), np.inf)
        return np.where(finite, self._true_value(gamma, who), np.inf)

    def _true_value(self, gamma: FloatArray, who: IntArray) -> FloatArray:
        """Return phi itself, of the problem's devices ``who``."""
        if isinstance(self.objective, GeneralizationBound):
            return self.problem.weights[who] * bound_value(gamma, self.problem.num_examples[who], self.problem.bound)
        return _each(self.objective.value, self.problem, gamma, who)

    def slope(self, dropout_rate: FloatArray, device: Device = EVERY) -> FloatArray:
        """Derivative phi' of ``device`` at ``dropout_rate``, both of one shape."""
        who = self.index[device]
        if self.table is not None:
            return self.table.slope(dropout_rate, who)
        if isinstance(self.objective, GeneralizationBound):
            number = self.problem.num_examples[who]
            return self.problem.weights[who] * bound_gradient(dropout_rate, number, self.problem.bound)
        return _each(self.objective.derivative, self.problem, dropout_rate, who)

    def convex_on(self, low: FloatArray, high: FloatArray) -> "OfdmaModel":
        """Return the model whose phi is convex on [low, high] (K,) and nowhere above this one's: itself, or hulls."""
        if self.rising is None or self.table is not self.rising.table:
            return self
        ends = np.zeros(self.problem.num_devices), np.full(self.problem.num_devices, self.rate_high)
        ends[0][self.index], ends[1][self.index] = np.minimum(low, self.rate_high), np.minimum(high, self.rate_high)
        return replace(self, table=self.table.hull(*ends))

    def choose_rates(self, least: FloatArray, device: IntArray) -> FloatArray:
        """Best dropout rate at or above ``least`` for each ``device``: ``least`` itself where phi is convex."""
        if self.rising is None:
            return least
        who, finite = self.index[device], np.isfinite(least)
        at = np.where(finite, least, 0.0)
        return np.where(finite, self.rising.choose(at, self._true_value(at, who), who), least)

    def subset(self, keep: BoolArray) -> "OfdmaModel":
        """Return the model of the devices marked in ``keep`` (K,)."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        arrays: dict[str, Any] = {name: value[keep] for name, value in values.items() if isinstance(value, np.ndarray)}
        return replace(self, **arrays)


def _each(function: PlugIn, problem: ResourceProblem, gamma: FloatArray, who: IntArray) -> FloatArray:
    """Values of a plug-in, which reads rates (..., K), for one device ``who`` per entry of ``gamma``."""
    spread = np.array(np.broadcast_to(gamma[..., None], (*gamma.shape, problem.num_devices)))
    return np.asarray(np.take_along_axis(function(problem, spread), who[..., None], axis=-1)[..., 0])


def build_model(problem: ResourceProblem, objective: SeparableObjective = BOUND) -> OfdmaModel:
    """Collect what the solvers need.

    Where the objective's curvature floor is negative, psi stands in for phi (`optimizer.ofdma.rising_objective`).
    Raises ProblemError for another access scheme.
    """
    if problem.access != "ofdma":
        raise ProblemError(f"access must be 'ofdma' here, found {problem.access!r}; FDMA has its own solvers")
    rising = None if is_convex(problem, objective) else rising_objective(problem, objective)
    slope = partial(objective.derivative, problem)
    free = first_rise(slope, problem.highest_rates) if rising is None else rising.best_rate()
    seconds = problem.fixed_cycles / problem.cpu_hz, problem.adapter_cycles / problem.cpu_hz
    watts = problem.capacitance * problem.cpu_hz**2
    bits = problem.fixed_bits + problem.droppable_bits
    download = problem.downlink_payload
    tau0 = problem.deadline_s - (download[0] + download[1]) / problem.downlink_rate_bps - seconds[0] - seconds[1]
    tau1 = download[1] / problem.downlink_rate_bps + seconds[1]
    joule1 = watts * problem.adapter_cycles
    joule0 = problem.energy_left_j - watts * problem.fixed_cycles - joule1
    with np.errstate(divide="ignore", over="ignore"):
        inverse = problem.noise_psd_w_per_hz * problem.subcarrier_hz / problem.channel_gain
    inverse = np.minimum(inverse, NO_CHANNEL)
    floor = np.maximum(_smallest_root(tau0, tau1), _smallest_root(joule0, joule1))
    rank, ordered = _channel_order(inverse)
    return OfdmaModel(
        problem=problem,
        index=np.arange(problem.num_devices),
        objective=objective,
        tau0=tau0,
        tau1=tau1,
        bits0=bits / problem.subcarrier_hz,
        bits1=problem.droppable_bits / problem.subcarrier_hz,
        joule0=joule0,
        joule1=joule1,
        power=problem.max_tx_power_w,
        inv_snr=inverse,
        rank=rank,
        sorted_inv_snr=ordered,
        rate_low=np.maximum(free, floor),
        rate_high=float(problem.max_dropout_rate),
        rising=rising,
        table=None if rising is None else rising.table,
    )


def _channel_order(inverse: FloatArray) -> tuple[IntArray, FloatArray]:
    """Place of every subcarrier in its device's order, and the ordered values; both (K, M + 1), see `OfdmaModel`."""
    num_devices, num_subcarriers = inverse.shape
    order = np.argsort(inverse, axis=1, kind="stable")
    rank = np.full((num_devices, num_subcarriers + 1), num_subcarriers, dtype=np.int64)
    np.put_along_axis(rank, order, np.broadcast_to(np.arange(num_subcarriers), order.shape), axis=1)
    ordered = np.take_along_axis(inverse, order, axis=1)
    return rank, np.concatenate([ordered, np.full((num_devices, 1), NO_CHANNEL)], axis=1)


def _smallest_root(constant: FloatArray, slope: FloatArray) -> FloatArray:
    """Smallest gamma >= 0 with constant + slope gamma >= 0 (slope >= 0); infinite when there is none."""
    usable = slope > 0
    gamma = np.divide(-constant, slope, out=np.zeros_like(constant), where=usable)
    gamma = np.where(constant + slope * gamma < 0, np.nextafter(gamma, np.inf), gamma)
    return np.where(constant >= 0, 0.0, np.where(usable, gamma, np.inf))


def uplink_time(model: OfdmaModel, gamma: FloatArray, device: Device = EVERY) -> FloatArray:
    """Uplink time tau [s] at the given rates, never below zero."""
    return np.maximum(model.tau0[device] + model.tau1[device] * gamma, 0.0)


def power_budget(model: OfdmaModel, gamma: FloatArray, device: Device = EVERY) -> FloatArray:
    """Power budget q = min(P, eps/tau) [W] at the given rates."""
    tau = uplink_time(model, gamma, device)
    energy = np.maximum(model.joule0[device] + model.joule1[device] * gamma, 0.0)
    ratio = np.divide(energy, tau, out=np.full_like(tau, np.inf), where=tau > 0)
    return np.minimum(model.power[device], ratio)


def required_rate(model: OfdmaModel, gamma: FloatArray, device: Device = EVERY) -> FloatArray:
    """S/(tau Delta) [bit/s/Hz] at the given rates; infinite where no time is left."""
    tau = uplink_time(model, gamma, device)
    bits = np.maximum(model.bits0[device] - model.bits1[device] * gamma, 0.0)
    rate = np.divide(bits, tau, out=np.full_like(tau, np.inf), where=tau > 0)
    return np.where(bits > 0, rate, 0.0)
