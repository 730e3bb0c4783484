"""The FedLoDrop resource problem (this project's statement) and its answer, as arrays.

Shapes: K devices, M subcarriers (OFDMA only). SI units everywhere, float64. docs/formulation.md states the problem.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from wireless.cost import payload_bits

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.signedinteger[Any]]
_LARGEST = 1e50  # of any number in a problem, and the inverse of the smallest but 0


class ProblemError(ValueError):
    """A resource problem that cannot be used; the message names the field, the value found and what was expected."""


class InfeasibleProblemError(ValueError):
    """A device set that cannot be served together, even at the largest dropout rate."""


class SolverStatus(StrEnum):
    """How a solve ended; the values are those of the solution file."""

    OPTIMAL = "optimal"  # the certified gap is below the requested one
    FEASIBLE = "feasible"  # valid, without a certificate that it is the best
    TIME_LIMIT = "time_limit"  # valid, stopped by the clock; lower_bound still holds
    INFEASIBLE = "infeasible"  # no device can be served


def number(value: object, name: str) -> float:
    """Return a number as a float; a truth value and a text are none."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        raise ProblemError(f"{name} must be a number, found {value!r:.80}")
    try:
        return float(value)
    except OverflowError as error:
        raise ProblemError(f"{name} is too large for a number") from error


def _checked(value: object, name: str, shape: tuple[int, ...] = (), *, positive: bool = False) -> FloatArray:
    """Return numbers >= 0 in a shape, a single one broadcast; products of a few must stay in the range of float64."""
    value = value if shape else number(value, name)
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ProblemError(f"{name} must hold numbers, found {value!r:.80}") from error
    if array.shape not in ((), shape):
        raise ProblemError(f"{name} must be a number or have shape {shape}, found shape {array.shape}")
    size = np.abs(array)
    bad = ~(size <= _LARGEST) | (array < 0) | ((size < 1 / _LARGEST) & ((array != 0) | positive))
    if bad.any():
        index = tuple(np.argwhere(bad)[0])
        where = f"devices[{index[0]}].{name}" + "".join(f"[{m}]" for m in index[1:]) if index else name
        sizes = f"{1 / _LARGEST:g} to {_LARGEST:g}"
        rule = f"> 0 ({sizes})" if positive else f">= 0 (0 or {sizes})"
        raise ProblemError(f"{where} must be finite and {rule}, found {float(array[index])!r}")
    return np.array(np.broadcast_to(array, shape))


@dataclass(frozen=True)
class BoundConstants:
    """Constants of the generalization bound: a, C, rho, Lambda, lambda, delta of docs/formulation.md."""

    empirical_scale: float
    loss_bound: float
    lipschitz: float
    curvature_min: float
    sparsity_regularization: float
    confidence: float

    def __post_init__(self) -> None:
        """Refuse values for which the bound is not defined."""
        for item in fields(self):
            positive = item.name in ("curvature_min", "confidence")
            _checked(getattr(self, item.name), f"bound.{item.name}", positive=positive)
        if self.confidence >= 1:
            raise ProblemError(f"bound.confidence must be below 1, found {self.confidence!r}")


ACCESSES, GOALS = ("fdma", "tdma", "ofdma"), ("time", "tradeoff")


@dataclass(frozen=True)
class Goal:
    """What a problem asks for instead of the least bound within its deadline; ``deadline_s`` is then the longest one.

    ``"time"``: the shortest deadline at which devices of weight ``min_weight`` have a mean bound of at most
    ``max_bound``; ``"tradeoff"``: the least bound + energy_weight_per_j * energy + time_weight_per_s * deadline.
    """

    objective: str
    max_bound: float | None = None  # needed by "time"
    min_weight: float = 1.0  # share of the weight, in (0, 1]
    energy_weight_per_j: float = 0.0  # of all devices' energy together
    time_weight_per_s: float = 0.0

    def __post_init__(self) -> None:
        """Refuse a goal that says nothing or contradicts itself."""
        if self.objective not in GOALS:
            raise ProblemError(f"objective must be one of {', '.join(GOALS)}, found {self.objective!r:.80}")
        for name in ("energy_weight_per_j", "time_weight_per_s"):
            _checked(getattr(self, name), f"objective.{name}")
        if _checked(self.min_weight, "objective.min_weight", positive=True) > 1:
            raise ProblemError(f"objective.min_weight must lie in (0, 1], found {self.min_weight!r}")
        if (self.objective == "time") != (self.max_bound is not None):
            rule = "is needed by 'time'" if self.objective == "time" else "belongs to 'time' only"
            raise ProblemError(f"objective.max_bound {rule}, found {self.max_bound!r}")
        if self.max_bound is not None:
            _checked(self.max_bound, "objective.max_bound", positive=True)


_POSITIVE = ("num_examples", "downlink_rate_bps", "cpu_hz", "min_cpu_hz", "max_cpu_hz")  # other arrays may hold zeros
_OF_A_WAY = set("noise fixed_bits droppable_bits downlink_fixed_bits downlink_droppable_bits adapter_cycles".split())
Ways = Mapping[str, Mapping[str, FloatArray | float]]


@dataclass(frozen=True)
class ResourceProblem:
    """One round's data: who is there, over which channel, with which budgets.

    Arrays have shape (K,), scalars are broadcast; `subset` keeps ``total_examples``, so that a device has the same
    weight whoever sits out.
    """

    access: str  # "fdma" (continuous bandwidth), "tdma" (time shares of the whole band) or "ofdma" (owned subcarriers)
    deadline_s: float  # T
    noise_psd_w_per_hz: float  # N0
    max_dropout_rate: float  # in [0, 1)
    bound: BoundConstants  # constants of the objective
    device_ids: tuple[str, ...]  # K names, for reports
    num_examples: FloatArray
    channel_gain: FloatArray  # (K,), under OFDMA (K, M)
    downlink_rate_bps: FloatArray
    cpu_hz: FloatArray
    capacitance: FloatArray  # kappa [W s^3]
    fixed_cycles: FloatArray
    adapter_cycles: FloatArray
    max_tx_power_w: FloatArray
    energy_budget_j: FloatArray
    droppable_bits: FloatArray
    fixed_bits: FloatArray
    total_bandwidth_hz: float = 0.0  # uplink bandwidth W; under OFDMA num_subcarriers * subcarrier_hz
    subcarrier_hz: float = 0.0  # width of one subcarrier, OFDMA only
    total_examples: float = 0.0  # of the whole fleet, which weights are divided by; 0: the sum over these devices
    downlink_fixed_bits: FloatArray | None = None  # of the download where its numbers have another type;
    downlink_droppable_bits: FloatArray | None = None  # None: those of the uplink
    min_cpu_hz: FloatArray | None = None  # range of the clocks where the allocator may choose them, both or neither;
    max_cpu_hz: FloatArray | None = None  # ``cpu_hz`` lies within it
    circuit_energy_j: FloatArray | None = None  # what taking part costs whatever is computed and sent
    noise: FloatArray | None = None  # relative variance of what arrives, E|Q(x) - x|^2 / |x|^2, by rounding on the wire
    goal: Goal | None = None  # what to minimise instead of the bound
    choices: Ways = field(default_factory=dict)  # ways to send, by name, one of which is chosen for every device, such
    # as number types or ranks: ``noise``, and what replaces the bits of either direction and ``adapter_cycles``
    shared_downlink: bool = False  # everyone who takes part downloads at the rate of the slowest of them

    def __post_init__(self) -> None:
        """Broadcast scalars to (K,) float64 arrays and check every value once."""
        if self.access not in ACCESSES:
            raise ProblemError(f"access must be one of {', '.join(ACCESSES)}, found {self.access!r}")
        if not self.device_ids:
            raise ProblemError("devices must name at least one device, found none")
        width = "subcarrier_hz" if self.access == "ofdma" else "total_bandwidth_hz"
        for name in ("deadline_s", "noise_psd_w_per_hz", width):
            _checked(getattr(self, name), name, positive=True)
        if not 0 <= number(self.max_dropout_rate, "max_dropout_rate") < 1:
            raise ProblemError(f"max_dropout_rate must lie in [0, 1), found {self.max_dropout_rate!r}")
        shape = (self.num_devices,)
        checked: dict[str, Any] = {}
        for name in self._per_device:
            checked[name] = _checked(getattr(self, name), name, shape, positive=name in _POSITIVE)
        if self.access == "ofdma":
            shape = np.shape(self.channel_gain)
            if len(shape) != 2 or shape[0] != self.num_devices or shape[1] == 0:
                raise ProblemError(f"channel_gain must have shape ({self.num_devices}, num_subcarriers), found {shape}")
            checked["total_bandwidth_hz"] = float(shape[1] * self.subcarrier_hz)
        checked["channel_gain"] = _checked(self.channel_gain, "channel_gain", shape)
        if _checked(self.total_examples, "total_examples") == 0:
            checked["total_examples"] = float(checked["num_examples"].sum())
        checked["choices"] = {name: self._checked_way(name, parts) for name, parts in self.choices.items()}
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        self._check_clock_range()

    def _check_clock_range(self) -> None:
        if (self.min_cpu_hz is None) != (self.max_cpu_hz is None):
            raise ProblemError("min_cpu_hz and max_cpu_hz must be given together, found one of them")
        if self.choices and self.min_cpu_hz is not None:
            raise ProblemError("choices of how to send need fixed clocks, found min_cpu_hz")
        low, high = self.clock_range_hz
        for k in np.flatnonzero(~((low <= self.cpu_hz) & (self.cpu_hz <= high)))[:1]:
            limits = f"[min_cpu_hz, max_cpu_hz] = [{low[k]:g}, {high[k]:g}]"
            raise ProblemError(f"devices[{k}].cpu_hz must lie in {limits}, found {self.cpu_hz[k]:g}")

    def _checked_way(self, name: str, parts: Mapping[str, FloatArray | float]) -> dict[str, FloatArray]:
        for key in parts.keys() - _OF_A_WAY or {"noise"} - parts.keys():
            raise ProblemError(f"choices.{name}.{key} is {'unknown' if key in parts else 'missing'}")
        return {key: _checked(value, f"choices.{name}.{key}", (self.num_devices,)) for key, value in parts.items()}

    def chosen(self, choice: IntArray) -> "ResourceProblem":
        """Return the problem in which device k sends as ``choice`` (K,) says, an index into ``choices``."""
        parts: dict[str, Any] = {}
        usual = dict(zip(("downlink_fixed_bits", "downlink_droppable_bits"), self.downlink_payload, strict=True))
        for name in set().union(*self.choices.values()):
            own = usual.get(name, getattr(self, name))
            table = np.stack([way.get(name, own) for way in self.choices.values()])
            parts[name] = table[choice, np.arange(choice.size)]
        return replace(self, choices={}, **parts)

    def without(self, keep: BoolArray) -> "ResourceProblem":
        """Return the problem in which only devices ``keep`` (K,) can be served: the others lack the circuit energy."""
        budget, circuit = np.where(keep, self.energy_budget_j, 0.0), np.where(keep, self.circuit_j, 1.0)
        return replace(self, energy_budget_j=budget, circuit_energy_j=circuit)

    def decided(self, scheduled: BoolArray, choice: IntArray | None) -> "ResourceProblem":
        """Return what is left of the problem once it is known who takes part (K,) and, with choices, how (K,)."""
        plain = self.chosen(np.maximum(choice, 0)) if self.choices and choice is not None else self
        if not self.shared_downlink:
            return plain
        rates = np.where(scheduled, self.downlink_rate_bps[scheduled].min(initial=np.inf), self.downlink_rate_bps)
        return replace(plain, shared_downlink=False, downlink_rate_bps=rates)

    def radiated_w(self, tx_power_w: FloatArray, bandwidth_hz: FloatArray | None) -> FloatArray:
        """Power (K,) [W] that uploads radiate on average: all subcarriers', or the share of time that one sends."""
        if self.access == "ofdma":
            return np.asarray(tx_power_w.sum(axis=1))
        share = 1.0 if bandwidth_hz is None or self.access == "fdma" else bandwidth_hz / self.total_bandwidth_hz
        return tx_power_w * share

    @property
    def _per_device(self) -> tuple[str, ...]:
        arrays = (item.name for item in fields(self) if item.type in (FloatArray, FloatArray | None))
        return tuple(name for name in arrays if name != "channel_gain" and getattr(self, name) is not None)

    @property
    def downlink_payload(self) -> tuple[FloatArray, FloatArray]:
        """Fixed and droppable bits of the download, shape (K,) each."""
        fixed, droppable = self.downlink_fixed_bits, self.downlink_droppable_bits
        return self.fixed_bits if fixed is None else fixed, self.droppable_bits if droppable is None else droppable

    def download_s(self, dropout_rate: FloatArray) -> FloatArray:
        """Time of the download at dropout rates (..., K) [s]."""
        return payload_bits(*self.downlink_payload, dropout_rate) / self.downlink_rate_bps

    def cycles(self, dropout_rate: FloatArray) -> FloatArray:
        """Work of the local update at dropout rates (..., K) [cycle]."""
        return payload_bits(self.fixed_cycles, self.adapter_cycles, dropout_rate)  # the same affine law

    def uplink_bits(self, dropout_rate: FloatArray) -> FloatArray:
        """Size of the upload at dropout rates (..., K) [bit]."""
        return payload_bits(self.fixed_bits, self.droppable_bits, dropout_rate)

    @property
    def circuit_j(self) -> FloatArray:
        """What taking part costs whatever is computed and sent, (K,) [J]."""
        return np.zeros(self.num_devices) if self.circuit_energy_j is None else self.circuit_energy_j

    @property
    def energy_left_j(self) -> FloatArray:
        """What circuits leave of the budget for computing and sending (K,) [J]; below 0 nothing can be served."""
        return self.energy_budget_j - self.circuit_j

    @property
    def clock_range_hz(self) -> tuple[FloatArray, FloatArray]:
        """Slowest and fastest clocks (K,) [Hz]; the clocks themselves where they are fixed."""
        low, high = self.min_cpu_hz, self.max_cpu_hz
        return self.cpu_hz if low is None else low, self.cpu_hz if high is None else high

    @property
    def highest_rates(self) -> FloatArray:
        """``max_dropout_rate`` for every device, (K,)."""
        return np.full(self.num_devices, self.max_dropout_rate)

    @property
    def shortest_s(self) -> FloatArray:
        """What download and computation take at least, whatever is dropped, (K,) [s]."""
        top = self.highest_rates
        return self.download_s(top) + self.cycles(top) / self.clock_range_hz[1]

    @property
    def num_devices(self) -> int:
        """K."""
        return len(self.device_ids)

    def at_clock(self, cpu_hz: FloatArray) -> "ResourceProblem":
        """Return the problem whose clocks are fixed at ``cpu_hz`` (K,) [Hz]."""
        return replace(self, cpu_hz=cpu_hz, min_cpu_hz=None, max_cpu_hz=None)

    @property
    def num_subcarriers(self) -> int:
        """M under OFDMA, else 0."""
        return int(self.channel_gain.shape[1]) if self.access == "ofdma" else 0

    @property
    def weights(self) -> FloatArray:
        """w_k = n_k / sum n, over the whole fleet, shape (K,)."""
        return self.num_examples / self.total_examples

    def subset(self, keep: BoolArray | IntArray) -> "ResourceProblem":
        """Return the problem of the devices ``keep`` (mask (K,) or indices) with unchanged weights and resources."""
        index = np.flatnonzero(keep) if (chosen := np.asarray(keep)).dtype == np.bool_ else chosen
        if chosen.dtype == np.bool_ and index.size == self.num_devices:
            return self
        if index.size == 0:
            raise InfeasibleProblemError("a problem needs at least one device, the subset is empty")
        found: dict[str, Any] = {name: getattr(self, name)[index] for name in ("channel_gain", *self._per_device)}
        found["device_ids"] = tuple(self.device_ids[i] for i in index)
        ways: Any = self.choices.items()
        found["choices"] = {way: {name: value[index] for name, value in parts.items()} for way, parts in ways}
        return replace(self, **found)


@dataclass(frozen=True)
class Solution:
    """What a solver hands out; entries of devices that sit out are NaN (0 for bandwidth and power)."""

    method: str  # name of the allocator
    status: SolverStatus
    scheduled: BoolArray  # (K,) who takes part
    dropout_rate: FloatArray  # (K,)
    latency_s: FloatArray  # (K,)
    energy_j: FloatArray  # (K,)
    tx_power_w: FloatArray  # (K,) while sending, under OFDMA (K, M)
    objective: float  # weighted bound over the scheduled devices
    lower_bound: float  # a certificate for the same devices, -inf where there is none
    bandwidth_hz: FloatArray | None = None  # (K,); under TDMA the share of time, of W; None under OFDMA
    subcarrier_owner: IntArray | None = None  # (M,) device index or -1, OFDMA only
    nodes: int = 0
    iterations: int = 0
    solve_time_s: float = 0.0  # wall time of the solver alone
    reasons: tuple[str, ...] = ()  # K entries, why a device sits out, "" for scheduled ones
    notes: tuple[str, ...] = ()  # how this came about, such as a method that failed before this one took over
    cpu_hz: FloatArray | None = None  # (K,) chosen clocks, None where the problem fixes them
    certificate: Mapping[str, Any] | None = None  # proves ``lower_bound`` (`optimizer.certificate`) to the verifier
    admission: str = "not proven"  # "heaviest" where it is proven that no heavier set of devices can be served
    verified: Mapping[str, float] | None = None  # lower_bound and gap that the verifier proved, in time_s, where asked
    deadline_s: float | None = None  # chosen for the problem's goal; objective and lower_bound are then the goal's
    choice: IntArray | None = None  # (K,) index into the problem's choices, -1 for who sits out; None without choices

    @property
    def gap(self) -> float:
        """(objective - lower_bound) / max(|objective|, 1e-12)."""
        return float((self.objective - self.lower_bound) / max(abs(self.objective), 1e-12))
