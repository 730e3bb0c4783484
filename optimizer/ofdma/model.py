"""OFDMA: the affine data of every device, and the rate and power that a dropout rate asks for.

With dropout rate gamma, tau(gamma) = T - S/D - C/f is the time left for the uplink and eps(gamma) = E - kappa f^2 C the
energy left for it, both affine in gamma, as is the payload S. A device needs the rate r = S/(tau Delta) and may spend
the power q = min(P, eps/tau). docs/ofdma.md states the problem.
"""

import copy
from collections.abc import Callable
from functools import partial

import numpy as np

from optimizer.objective import EVERY, GeneralizationBound, Part, SeparableObjective, first_rise
from optimizer.ofdma.rising_objective import RisingTable, rising_objective
from optimizer.problem import BoolArray, FloatArray, IntArray, ProblemError, ResourceProblem

PlugIn = Callable[[ResourceProblem, FloatArray], FloatArray]
LN2 = float(np.log(2.0))
BOUND = GeneralizationBound()
NO_CHANNEL = 1e200  # stands for 1/0: never reached by any water level, and finite, so that sums stay finite


class OfdmaModel:
    """The affine data of every device, shape (K,) unless stated; rates in bit/s/Hz of one subcarrier, powers in W.

    tau = tau0 + tau1 gamma [s], S/Delta = bits0 - bits1 gamma [s * bit/s/Hz], eps = joule0 + joule1 gamma [J]. Raises
    ProblemError for another access scheme.
    """

    def __init__(self, problem: ResourceProblem, objective: SeparableObjective = BOUND) -> None:
        if problem.access != "ofdma":
            raise ProblemError(f"access must be 'ofdma' here, found {problem.access!r}; FDMA has its own solvers")
        self.problem, self.objective, self.num_subcarriers = problem, objective, problem.num_subcarriers
        self.index = np.arange(problem.num_devices)  # numbers in the problem: a model may hold fewer devices
        fixed_s, adapter_s = problem.fixed_cycles / problem.cpu_hz, problem.adapter_cycles / problem.cpu_hz
        fixed, droppable = problem.downlink_payload
        self.tau0 = problem.deadline_s - (fixed + droppable) / problem.downlink_rate_bps - fixed_s - adapter_s
        self.tau1 = droppable / problem.downlink_rate_bps + adapter_s
        self.bits0 = (problem.fixed_bits + problem.droppable_bits) / problem.subcarrier_hz
        self.bits1 = problem.droppable_bits / problem.subcarrier_hz
        joule_per_cycle = problem.capacitance * problem.cpu_hz**2
        self.joule1 = joule_per_cycle * problem.adapter_cycles
        self.joule0 = problem.energy_left_j - joule_per_cycle * problem.fixed_cycles - self.joule1
        self.power = problem.max_tx_power_w  # power cap P
        with np.errstate(divide="ignore", over="ignore"):
            inverse = problem.noise_psd_w_per_hz * problem.subcarrier_hz / problem.channel_gain
        # (K, M), N0 Delta / g [W]: the power at which one subcarrier carries one bit/s/Hz
        self.inv_snr = np.minimum(inverse, NO_CHANNEL)
        self.rank, self.sorted_inv_snr = _channel_order(self.inv_snr)  # (K, M + 1) each
        # Where phi is not convex, psi stands in for it, and `table` is what `value` and `slope` read.
        self.rising = rising_objective(problem, objective)
        self.table: RisingTable | None = None if self.rising is None else self.rising.table
        slope = partial(objective.derivative, problem)
        best = first_rise(slope, problem.highest_rates) if self.rising is None else self.rising.best_rate()
        floor = np.maximum(_smallest_root(self.tau0, self.tau1), _smallest_root(self.joule0, self.joule1))
        self.rate_low = np.maximum(best, floor)  # the least that leaves time and energy; never served above rate_high
        self.rate_high = problem.highest_rates

    @property
    def num_devices(self) -> int:
        """K."""
        return len(self.index)

    @property
    def devices(self) -> IntArray:
        """Numbers of the devices, 0 to K - 1."""
        return np.arange(self.num_devices)

    def value(self, dropout_rate: FloatArray, device: Part = EVERY) -> FloatArray:
        """Weighted bound phi of ``device`` at ``dropout_rate``, both of one shape; infinite at infinite rates."""
        finite = np.isfinite(dropout_rate)
        phi = self._true_value if self.table is None else self.table.value
        return np.where(finite, phi(np.where(finite, dropout_rate, 0.0), self.index[device]), np.inf)

    def _true_value(self, gamma: FloatArray, who: IntArray) -> FloatArray:
        """Return phi itself, of the problem's devices ``who``."""
        if type(self.objective) is GeneralizationBound:  # a subclass may have another value
            return self.objective.value(self.problem, gamma, who)
        return self._each(self.objective.value, gamma, who)

    def slope(self, dropout_rate: FloatArray, device: Part = EVERY) -> FloatArray:
        """Derivative phi' of ``device`` at ``dropout_rate``, both of one shape."""
        who = self.index[device]
        if self.table is not None:
            return self.table.slope(dropout_rate, who)
        if type(self.objective) is GeneralizationBound:
            return self.objective.derivative(self.problem, dropout_rate, who)
        return self._each(self.objective.derivative, dropout_rate, who)

    def _each(self, function: PlugIn, gamma: FloatArray, who: IntArray) -> FloatArray:
        """Values of a plug-in, which reads rates (..., K), for one device ``who`` per entry of ``gamma``."""
        spread = np.array(np.broadcast_to(gamma[..., None], (*gamma.shape, self.problem.num_devices)))
        return np.asarray(np.take_along_axis(function(self.problem, spread), who[..., None], axis=-1)[..., 0])

    def convex_on(self, low: FloatArray, high: FloatArray) -> "OfdmaModel":
        """Return the model whose phi is convex on [low, high] (K,) and nowhere above this one's: itself, or hulls."""
        if self.rising is None or self.table is not self.rising.table:
            return self
        ends = np.zeros(self.problem.num_devices), self.problem.highest_rates
        ends[0][self.index], ends[1][self.index] = np.minimum(low, self.rate_high), np.minimum(high, self.rate_high)
        hulled = copy.copy(self)
        hulled.table = self.table.hull(*ends)
        return hulled

    def choose_rates(self, least: FloatArray) -> FloatArray:
        """Best dropout rates (K,) at or above ``least`` (K,): ``least`` itself where phi is convex."""
        if self.rising is None:
            return least
        at = np.where(np.isfinite(least), least, 0.0)
        best = self.rising.choose(at, self._true_value(at, self.index), self.index)
        return np.where(np.isfinite(least), best, least)

    def subset(self, keep: BoolArray) -> "OfdmaModel":
        """Return the model of the devices marked in ``keep`` (K,)."""
        part = copy.copy(self)
        vars(part).update({name: value[keep] for name, value in vars(self).items() if isinstance(value, np.ndarray)})
        return part


def _channel_order(inverse: FloatArray) -> tuple[IntArray, FloatArray]:
    """Place of every subcarrier in its device's order, best first, and ``inverse`` so; last column: no subcarrier."""
    order = np.argsort(inverse, axis=1, kind="stable")
    rank = np.pad(np.argsort(order, axis=1), ((0, 0), (0, 1)), constant_values=inverse.shape[1])
    ordered = np.take_along_axis(inverse, order, axis=1)
    return rank, np.pad(ordered, ((0, 0), (0, 1)), constant_values=NO_CHANNEL)


def _smallest_root(constant: FloatArray, slope: FloatArray) -> FloatArray:
    """Smallest gamma >= 0 with constant + slope gamma >= 0 (slope >= 0); infinite when there is none."""
    usable = slope > 0
    gamma = np.divide(-constant, slope, out=np.zeros_like(constant), where=usable)
    gamma = np.where(constant + slope * gamma < 0, np.nextafter(gamma, np.inf), gamma)
    return np.where(constant >= 0, 0.0, np.where(usable, gamma, np.inf))


def uplink_time(model: OfdmaModel, gamma: FloatArray, device: Part = EVERY) -> FloatArray:
    """Uplink time tau [s] at the given rates, never below zero."""
    return np.maximum(model.tau0[device] + model.tau1[device] * gamma, 0.0)


def power_budget(model: OfdmaModel, gamma: FloatArray, device: Part = EVERY) -> FloatArray:
    """Power budget q = min(P, eps/tau) [W] at the given rates."""
    tau = uplink_time(model, gamma, device)
    energy = np.maximum(model.joule0[device] + model.joule1[device] * gamma, 0.0)
    ratio = np.divide(energy, tau, out=np.full_like(tau, np.inf), where=tau > 0)
    return np.minimum(model.power[device], ratio)


def required_rate(model: OfdmaModel, gamma: FloatArray, device: Part = EVERY) -> FloatArray:
    """S/(tau Delta) [bit/s/Hz] at the given rates; infinite where no time is left."""
    tau = uplink_time(model, gamma, device)
    bits = np.maximum(model.bits0[device] - model.bits1[device] * gamma, 0.0)
    rate = np.divide(bits, tau, out=np.full_like(tau, np.inf), where=tau > 0)
    return np.where(bits > 0, rate, 0.0)
