"""The smallest bandwidth that serves a device at a given dropout rate: the one curve that FDMA decisions need.

With u = 1 - gamma everything a device does is affine in u: payload S = s0 + s1 u [bit], time left for the uplink
tau = T - s0/D - c0/f - (s1/D + c1/f) u [s], energy left for it e = E - kappa f^2 (c0 + c1 u) [J]. It is optimal to send
for all of tau with all of epsilon = min(e, P tau), so the smallest bandwidth is

    b_min = S ln2 / (tau L),   L = spectral efficiency [nat/s/Hz] solving ln(1 + y)/y = c, c = S N0 ln2 / (epsilon g),

closed form by Lambert's W_{-1} (`wireless.link.spectral_efficiency_nats`). b_min is convex and decreasing in gamma
(docs/formulation.md has the proof), with at most one kink, where e = P tau.

Under TDMA a device has the whole band W for a share of the time, so b_min / W is that share. Energy bounds it as above,
with epsilon = e, and the power cap bounds the rate of that share: b_min >= S ln2 / (tau ln(1 + P g/(N0 W))).
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from optimizer.problem import BoolArray, FloatArray, ResourceProblem
from optimizer.rootfinding import increasing_root
from wireless.link import LN2, log_mean_exp, spectral_efficiency_nats

_CLOSE = 1e-6  # margins below this have lost digits as a difference of logarithms


class Curve:
    """Smallest bandwidth of K devices against their dropout rates, falling."""

    max_dropout_rate: float
    rounding = 2e-15  # relative error of a bandwidth and of sums

    def bandwidth_and_slope(self, dropout_rate: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Smallest bandwidth [Hz], inf where none serves, and its derivative in gamma, (K,) each."""
        raise NotImplementedError

    def bandwidth_hz(self, dropout_rate: FloatArray) -> FloatArray:
        """Smallest bandwidth (K,) [Hz], inf where none serves."""
        return self.bandwidth_and_slope(dropout_rate)[0]

    def kink(self) -> FloatArray | float:
        """Dropout rate (K,) at which the slope jumps; NaN where it does not, or where bracketing has to find it."""
        return np.nan

    def feasible_from(self) -> FloatArray | float:
        """Open lower end of the dropout rates that some bandwidth serves, (K,) or a rate below all of them."""
        return 0.0

    def smallest_dropout_rate(
        self, bandwidth_hz: FloatArray, highest: FloatArray | None = None, *, in_time: bool = False
    ) -> FloatArray:
        """Smallest gamma (K,) that fits ``bandwidth_hz`` (K,); NaN if even ``highest`` (max_dropout_rate) does not.

        1/b_min is increasing and nearly linear where b_min explodes, which is what the root is searched on.
        ``in_time`` may raise `OutOfTime`.
        """
        top = np.full(bandwidth_hz.shape, self.max_dropout_rate) if highest is None else highest
        fits = self.bandwidth_hz(top) <= bandwidth_hz
        with np.errstate(divide="ignore"):
            target = np.where(fits, 1.0 / bandwidth_hz, 0.0)
            start = np.minimum(np.maximum(self.feasible_from(), 0.0), top)
            found = increasing_root(
                lambda gamma: 1.0 / self.bandwidth_hz(gamma) - target,
                np.where(fits, start, top),
                top,
                in_time=in_time,
            )
        return np.where(fits, found.high, np.nan)  # the side of the bracket that fits


@dataclass(frozen=True)
class BandwidthCurve(Curve):
    """Coefficients of b_min(gamma) for K devices, each of shape (K,).

    S = fixed_bits + droppable_bits u [bit], tau = time_s - time_slope_s u [s], e = energy_j - energy_slope_j u [J],
    P = max_tx_power_w, and ``noise_to_gain`` = N0 / g [W/Hz], inf for a dead channel.
    """

    fixed_bits: FloatArray
    droppable_bits: FloatArray
    time_s: FloatArray
    time_slope_s: FloatArray
    energy_j: FloatArray
    energy_slope_j: FloatArray
    max_tx_power_w: FloatArray
    noise_to_gain: FloatArray
    max_dropout_rate: float
    source: tuple[ResourceProblem, FloatArray] | None = None  # the problem and its clocks, where digits are short
    shared_hz: float | None = None  # W under TDMA

    @classmethod
    def of(cls, problem: ResourceProblem, cpu_hz: FloatArray | None = None) -> "BandwidthCurve":
        """Return the curves of a problem's devices; ``cpu_hz`` (..., K) [Hz] replaces the problem's own clocks."""
        clock = problem.cpu_hz if cpu_hz is None else cpu_hz
        joules_per_cycle = problem.capacitance * clock**2
        with np.errstate(divide="ignore", over="ignore"):
            noise_to_gain = problem.noise_psd_w_per_hz / problem.channel_gain
        download = problem.downlink_payload
        return cls(
            fixed_bits=problem.fixed_bits,
            droppable_bits=problem.droppable_bits,
            time_s=problem.deadline_s - download[0] / problem.downlink_rate_bps - problem.fixed_cycles / clock,
            time_slope_s=download[1] / problem.downlink_rate_bps + problem.adapter_cycles / clock,
            energy_j=problem.energy_left_j - joules_per_cycle * problem.fixed_cycles,
            energy_slope_j=joules_per_cycle * problem.adapter_cycles,
            max_tx_power_w=problem.max_tx_power_w,
            noise_to_gain=noise_to_gain,
            max_dropout_rate=problem.max_dropout_rate,
            source=(problem, clock),
            shared_hz=problem.total_bandwidth_hz if problem.access == "tdma" else None,
        )

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
            return self.max_tx_power_w * self.uplink_time_s(dropout_rate), self._cap_slope_j
        return self._full_power_j * self.uplink_bits(dropout_rate), -self._full_power_j * self.droppable_bits

    @cached_property
    def _cap_slope_j(self) -> FloatArray:
        """Slope of the energy P tau that the power cap allows."""
        return self.max_tx_power_w * self.time_slope_s

    def uplink_time_s(self, dropout_rate: FloatArray) -> FloatArray:
        """Time left for the uplink, tau(gamma) [s]."""
        return self.time_s - self.time_slope_s * (1.0 - dropout_rate)

    def uplink_bits(self, dropout_rate: FloatArray) -> FloatArray:
        """Payload, S(gamma) [bit]."""
        return self.fixed_bits + self.droppable_bits * (1.0 - dropout_rate)

    def _energy_left(self, dropout_rate: FloatArray, time_s: FloatArray) -> tuple[FloatArray, FloatArray]:
        """What the budget leaves for the uplink [J], and its derivative in gamma; ``time_s`` is tau."""
        return self.energy_j - self.energy_slope_j * (1.0 - dropout_rate), self.energy_slope_j

    def bandwidth_and_slope(self, dropout_rate: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return b_min [Hz] and its derivative in gamma (one-sided at the kink), shape (K,) each.

        d ln b_min = d ln S - d ln tau - d ln L, and L follows its margin z = -ln c by dz = F'(L) dL.
        """
        kept = 1.0 - dropout_rate
        time, bits = self.time_s - self.time_slope_s * kept, self.fixed_bits + self.droppable_bits * kept
        (left_j, left_slope), cap_j = self._energy_left(dropout_rate, time), self.max_tx_power_w * time
        if self.shared_hz is not None:
            cap_j = np.full_like(time, np.inf)  # the cap bounds the rate of a share instead
        energy, energy_slope = np.minimum(left_j, cap_j), np.where(left_j < cap_j, left_slope, self._cap_slope_j)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            margin = np.log(energy) - np.log(bits) - self._log_wideband_j
            close = np.abs(margin) < _CLOSE
            if self.source is not None and close.any():
                margin[close] = _margin(*self.source, dropout_rate, close)
            possible = (time > 0) & (margin > 0)  # NaN where the energy is negative, -inf where it is zero
            everywhere = bool(possible.all())
            efficiency = spectral_efficiency_nats(margin if everywhere else np.where(possible, margin, 1.0))
            band = bits * LN2 / (time * efficiency)
            bits_slope = self.droppable_bits / bits
            efficiency_slope = (energy_slope / energy + bits_slope) / log_mean_exp(efficiency)[1]
            slope = -band * (bits_slope + self.time_slope_s / time + efficiency_slope / efficiency)
            if self.shared_hz is not None:
                capped = bits * LN2 / (time * self.full_nats)
                shrinks = np.where(np.isinf(capped), np.inf, capped * (bits_slope + self.time_slope_s / time))
                slope, band = np.where(capped > band, -shrinks, slope), np.maximum(band, capped)
        silent = bits <= 0  # nothing to send needs no band, only the time to compute
        if everywhere and not silent.any():
            return band, slope
        band = np.where(possible, band, np.inf)
        band = np.where(silent, np.where((time >= 0) & (left_j >= 0), 0.0, np.inf), band)
        return band, np.where(silent, 0.0, np.where(possible, slope, -np.inf))

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
