"""The smallest bandwidth that serves a device at a given dropout rate: the one curve that FDMA decisions need.

With u = 1 - gamma everything a device does is affine in u: payload S = s0 + s1 u [bit], time left for the uplink
tau = T - s0/D - c0/f - (s1/D + c1/f) u [s], energy left for it e = E - kappa f^2 (c0 + c1 u) [J]. It is optimal to send
for all of tau with all of epsilon = min(e, P tau), so the smallest bandwidth is

    b_min = S ln2 / (tau L),   L = spectral efficiency [nat/s/Hz] solving ln(1 + y)/y = c, c = S N0 ln2 / (epsilon g),

closed form by Lambert's W_{-1} (`wireless.link.spectral_efficiency_nats`). b_min is convex and decreasing in gamma
(docs/formulation.md has the proof), with at most one kink, where e = P tau.

Under TDMA a device has the whole band W for a share of the time, so b_min / W is that share. Energy bounds it as above,
with epsilon = e, and the power cap bounds the rate of that share: b_min >= S ln2 / (tau ln(1 + P g/(N0 W))).

A clock f in [f_min, f_max] that may be chosen trades energy (kappa f^2 per cycle), which the radio may spend, for time.
Against the computing time t = C/f the energy left, E - kappa C^3/t^2, is concave and the uplink time affine, so the
best clock is one more scalar root per device (`best_clock_hz`), and min over f of b_min is convex in ln(1 - gamma).
"""

from functools import cached_property
from typing import Any

import numpy as np

from optimizer.problem import BoolArray, FloatArray, ResourceProblem
from optimizer.rootfinding import increasing_root
from wireless.link import LN2, log_mean_exp, spectral_efficiency_nats


class BandwidthCurve:
    """b_min(gamma) of K devices, with coefficients of shape (K,); ``cpu_hz`` (..., K) [Hz] replaces their own clocks.

    S = fixed_bits + droppable_bits u [bit], tau = time_s - time_slope_s u [s], e = energy_j - energy_slope_j u [J],
    P = max_tx_power_w, and ``noise_to_gain`` = N0 / g [W/Hz], inf for a dead channel.
    """

    close = 1e-6  # margins below this have lost digits as a difference of logarithms

    def __init__(self, problem: ResourceProblem, cpu_hz: FloatArray | None = None) -> None:
        self.problem, self.clock = problem, problem.cpu_hz if cpu_hz is None else cpu_hz
        self.fixed_bits, self.droppable_bits = problem.fixed_bits, problem.droppable_bits
        download, rate = problem.downlink_payload, problem.downlink_rate_bps
        self.time_s = problem.deadline_s - download[0] / rate - problem.fixed_cycles / self.clock
        self.time_slope_s = download[1] / rate + problem.adapter_cycles / self.clock
        joules_per_cycle = problem.capacitance * self.clock**2
        self.energy_j = problem.energy_left_j - joules_per_cycle * problem.fixed_cycles
        self.energy_slope_j = joules_per_cycle * problem.adapter_cycles
        self.max_tx_power_w = problem.max_tx_power_w
        with np.errstate(divide="ignore", over="ignore"):
            self.noise_to_gain = problem.noise_psd_w_per_hz / problem.channel_gain
        self.shared_hz = problem.total_bandwidth_hz if problem.access == "tdma" else None

    @cached_property
    def _log_wideband_j(self) -> FloatArray:
        """ln(ln2 N0/g), the least energy per bit; a sum of logarithms, for the product may underflow."""
        with np.errstate(divide="ignore"):
            return np.log(self.noise_to_gain) + np.log(LN2)

    @cached_property
    def full_nats(self) -> FloatArray:
        """Spectral efficiency (K,) [nat/s/Hz] at full power over the whole band, TDMA."""
        assert self.shared_hz is not None
        return np.log1p(self.max_tx_power_w / (self.noise_to_gain * self.shared_hz))

    @cached_property
    def _full_power_j(self) -> FloatArray:
        """Energy per bit (K,) [J/bit] at full power over the whole band, TDMA."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.max_tx_power_w * LN2 / ((self.shared_hz or 0.0) * self.full_nats)

    def cap_j(self, dropout_rate: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Energy (K,) [J] that an upload radiates where the power cap binds, and its derivative in gamma."""
        if self.shared_hz is None:
            return self.max_tx_power_w * self.uplink_time_s(dropout_rate), self.max_tx_power_w * self.time_slope_s
        return self._full_power_j * self.uplink_bits(dropout_rate), -self._full_power_j * self.droppable_bits

    def uplink_time_s(self, dropout_rate: FloatArray) -> FloatArray:
        """Time left for the uplink, tau(gamma) [s]."""
        return self.time_s - self.time_slope_s * (1.0 - dropout_rate)

    def uplink_bits(self, dropout_rate: FloatArray) -> FloatArray:
        """Payload, S(gamma) [bit]."""
        return self.fixed_bits + self.droppable_bits * (1.0 - dropout_rate)

    def energy_left_j(self, dropout_rate: FloatArray) -> tuple[FloatArray, FloatArray]:
        """What the budget leaves for the uplink, e(gamma) [J], and its derivative in gamma."""
        return self.energy_j - self.energy_slope_j * (1.0 - dropout_rate), self.energy_slope_j

    def bandwidth_and_slope(self, dropout_rate: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return b_min [Hz], inf where none serves, and its derivative in gamma (one-sided at the kink), (K,) each.

        d ln b_min = d ln S - d ln tau - d ln L, and L follows its margin z = -ln c by dz = F'(L) dL.
        """
        time, bits = self.uplink_time_s(dropout_rate), self.uplink_bits(dropout_rate)
        left_j, energy_slope = self.energy_left_j(dropout_rate)
        energy = left_j
        if self.shared_hz is None:  # under TDMA the cap bounds the rate of a share instead
            cap_j, cap_slope = self.cap_j(dropout_rate)
            energy, energy_slope = np.minimum(left_j, cap_j), np.where(left_j < cap_j, energy_slope, cap_slope)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            margin = np.log(energy) - np.log(bits) - self._log_wideband_j
            close = np.abs(margin) < self.close
            if close.any():
                margin[close] = _margin(self.problem, self.clock, dropout_rate, close)
            possible = (time > 0) & (margin > 0)  # NaN where the energy is negative, -inf where it is zero
            efficiency = spectral_efficiency_nats(np.where(possible, margin, 1.0))
            band = bits * LN2 / (time * efficiency)
            bits_slope = self.droppable_bits / bits
            efficiency_slope = (energy_slope / energy + bits_slope) / log_mean_exp(efficiency)[1]
            slope = -band * (bits_slope + self.time_slope_s / time + efficiency_slope / efficiency)
            if self.shared_hz is not None:
                capped = bits * LN2 / (time * self.full_nats)
                shrinks = np.where(np.isinf(capped), np.inf, capped * (bits_slope + self.time_slope_s / time))
                slope, band = np.where(capped > band, -shrinks, slope), np.maximum(band, capped)
        silent = bits <= 0  # nothing to send needs no band, only the time to compute
        band = np.where(possible, band, np.inf)
        band = np.where(silent, np.where((time >= 0) & (left_j >= 0), 0.0, np.inf), band)
        return band, np.where(silent, 0.0, np.where(possible, slope, -np.inf))

    def bandwidth_hz(self, dropout_rate: FloatArray) -> FloatArray:
        """Smallest bandwidth (K,) [Hz], inf where none serves."""
        return self.bandwidth_and_slope(dropout_rate)[0]

    def smallest_dropout_rate(
        self, bandwidth_hz: FloatArray, highest: FloatArray | None = None, *, in_time: bool = False
    ) -> FloatArray:
        """Smallest gamma (K,) that fits ``bandwidth_hz`` (K,); NaN if even ``highest`` (max_dropout_rate) does not.

        1/b_min is increasing and nearly linear where b_min explodes, which is what the root is searched on.
        ``in_time`` may raise `OutOfTime`.
        """
        top = np.full(bandwidth_hz.shape, self.problem.max_dropout_rate) if highest is None else highest
        fits = self.bandwidth_hz(top) <= bandwidth_hz
        with np.errstate(divide="ignore"):
            target = np.where(fits, 1.0 / bandwidth_hz, 0.0)
            start = np.where(fits, np.minimum(np.maximum(self.feasible_from(), 0.0), top), top)
            found = increasing_root(lambda gamma: 1.0 / self.bandwidth_hz(gamma) - target, start, top, in_time=in_time)
        return np.where(fits, found.high, np.nan)  # the side of the bracket that fits

    def kink(self) -> FloatArray:
        """Dropout rate at which energy budget and power cap change places; may lie outside [0, 1], NaN if never."""
        difference = self.energy_slope_j - self.max_tx_power_w * self.time_slope_s
        surplus = self.energy_j - self.max_tx_power_w * self.time_s
        if self.shared_hz is not None:
            difference = self.energy_slope_j + self._full_power_j * self.droppable_bits
            surplus = self.energy_j - self._full_power_j * self.fixed_bits
        with np.errstate(divide="ignore", invalid="ignore"):
            return 1.0 - surplus / difference

    def feasible_from(self) -> FloatArray:
        """Open lower end (K,) of the dropout rates that some finite bandwidth serves; > max_dropout_rate if none."""
        wideband_j = self.noise_to_gain * LN2  # energy per bit over unlimited bandwidth [J/bit]
        fixed_j, dropped_j, power = wideband_j * self.fixed_bits, wideband_j * self.droppable_bits, self.max_tx_power_w
        # Each row reads constant - slope * u > 0: time, energy budget, power cap.
        rows = [
            (self.time_s, self.time_slope_s),
            (self.energy_j - fixed_j, self.energy_slope_j + dropped_j),
            (power * self.time_s - fixed_j, power * self.time_slope_s + dropped_j),
        ][: 3 if self.shared_hz is None else 2]
        largest = np.full_like(self.time_s, np.inf)
        with np.errstate(divide="ignore", invalid="ignore"):
            for constant, slope in rows:
                bound = np.where(slope > 0, constant / slope, np.where(constant > 0, np.inf, -np.inf))
                largest = np.minimum(largest, np.where(np.isnan(bound), -np.inf, bound))
        return 1.0 - largest


def _margin(p: ResourceProblem, cpu_hz: FloatArray, dropout_rate: FloatArray, at: BoolArray) -> FloatArray:
    """Log of the energy left over the least that carries the payload, of ``at`` (..., K), in extended precision."""
    k = np.nonzero(at)[-1]

    def exact(values: FloatArray) -> Any:
        return values[k].astype(np.longdouble)

    kept = 1 - dropout_rate[at].astype(np.longdouble)
    hertz = np.broadcast_to(cpu_hz, at.shape)[at].astype(np.longdouble)
    cycles = exact(p.fixed_cycles) + exact(p.adapter_cycles) * kept
    down = exact(p.downlink_payload[0]) + exact(p.downlink_payload[1]) * kept
    time = p.deadline_s - down / exact(p.downlink_rate_bps) - cycles / hertz
    left = exact(p.energy_budget_j) - exact(p.circuit_j) - exact(p.capacitance) * hertz**2 * cycles
    energy = left if p.access == "tdma" else np.minimum(left, exact(p.max_tx_power_w) * time)
    bits = exact(p.fixed_bits) + exact(p.droppable_bits) * kept
    need = bits * p.noise_psd_w_per_hz * np.log(np.longdouble(2)) / exact(p.channel_gain)
    return np.asarray(np.log1p((energy - need) / need), dtype=np.float64)


def best_clock_hz(p: ResourceProblem, dropout_rate: FloatArray) -> FloatArray:
    """Clock (..., K) [Hz] in its range that needs the least bandwidth at ``dropout_rate`` (..., K).

    The sign of d ln b_min/dt = 1/tau - (d ln epsilon/dt)/(F'(L) L) changes once, from - (starved of energy) to + (of
    time). Where energy and cap meet at the best clock b_min has a kink in f, and the slope of the envelope is not that
    of b_min at this clock.
    """
    cycles, bits = p.cycles(dropout_rate), p.uplink_bits(dropout_rate)
    (slowest, fastest), free_s = p.clock_range_hz, p.deadline_s - p.download_s(dropout_rate)
    with np.errstate(divide="ignore", over="ignore"):
        least_j = bits * LN2 * p.noise_psd_w_per_hz / p.channel_gain  # to carry the bits over unlimited bandwidth
    tdma = p.access == "tdma"
    full_j = BandwidthCurve(p).cap_j(dropout_rate)[0] if tdma else None  # at full power, however long it takes
    cap_slope = 0.0 if tdma else -p.max_tx_power_w

    def slope(busy_s: FloatArray) -> FloatArray:
        left_s = free_s - busy_s
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            left_j = p.energy_left_j - p.capacitance * cycles**3 / busy_s**2
            cap_j = p.max_tx_power_w * left_s if full_j is None else np.where(left_s > 0, full_j, 0.0)
            energy = np.minimum(left_j, cap_j)
            efficiency = spectral_efficiency_nats(np.where(energy > least_j, np.log(energy / least_j), 1.0))
            energy_slope = np.where(left_j < cap_j, 2 * p.capacitance * cycles**3 / busy_s**3, cap_slope)
            value = 1 / left_s - energy_slope / energy / (log_mean_exp(efficiency)[1] * efficiency)
        value = np.where(cap_j <= least_j, np.inf, np.where(left_j <= least_j, -np.inf, value))
        return np.where(np.isnan(value), np.inf, value)

    tolerance = 1e-14 * p.deadline_s  # finer than this the slope is noise, and the search crawls
    found = increasing_root(slope, cycles / fastest, cycles / slowest, tolerance=tolerance)
    return np.clip(cycles / np.maximum(found.low, 1e-300), slowest, fastest)
