"""The FedLoDrop resource problem (this project's statement) and its answer, as arrays.

Shapes: K devices, M subcarriers (OFDMA only). SI units everywhere, float64. docs/formulation.md states the problem.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from wireless.cost import compute_cycles, payload_bits

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
            _check_scalar(f"bound.{item.name}", getattr(self, item.name), positive=positive)
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
            raise ProblemError(f"objective must be one of {', '.join(GOALS)}, found {self.objective!r}")
        for name in ("energy_weight_per_j", "time_weight_per_s"):
            _check_scalar(f"objective.{name}", getattr(self, name), positive=False)
        _check_scalar("objective.min_weight", self.min_weight, positive=True)
        if self.min_weight > 1:
            raise ProblemError(f"objective.min_weight must lie in (0, 1], found {self.min_weight!r}")
        if (self.objective == "time") != (self.max_bound is not None):
            rule = "is needed by 'time'" if self.objective == "time" else "belongs to 'time' only"
            raise ProblemError(f"objective.max_bound {rule}, found {self.max_bound!r}")
        if self.max_bound is not None:
            _check_scalar("objective.max_bound", self.max_bound, positive=True)


@dataclass(frozen=True)
class Choice:
    """One way to send an update, such as a number type or a rank; (K,) each, None: as in the problem."""

    name: str
    noise: FloatArray | float  # relative variance of what arrives, E|Q(x) - x|^2 / |x|^2
    fixed_bits: FloatArray | None = None
    droppable_bits: FloatArray | None = None
    downlink_fixed_bits: FloatArray | None = None
    downlink_droppable_bits: FloatArray | None = None
    adapter_cycles: FloatArray | None = None

    @property
    def parts(self) -> dict[str, FloatArray]:
        """What is given, by the name of the problem's field that it replaces."""
        return {item.name: value for item in fields(self)[1:] if (value := getattr(self, item.name)) is not None}


_PER_DEVICE_POSITIVE = ("num_examples", "downlink_rate_bps", "cpu_hz")
_PER_DEVICE_NON_NEGATIVE = (
    *("droppable_bits", "fixed_bits", "capacitance", "fixed_cycles", "adapter_cycles"),
    *("max_tx_power_w", "energy_budget_j"),
)
_CLOCK_RANGE = ("min_cpu_hz", "max_cpu_hz")
_OPTIONAL = ("downlink_fixed_bits", "downlink_droppable_bits", *_CLOCK_RANGE, "circuit_energy_j", "noise")


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
    noise: FloatArray | None = None  # relative variance that rounding on the wire adds to an update
    goal: Goal | None = None  # what to minimise instead of the bound
    choices: tuple[Choice, ...] = ()  # ways to send, one of which is chosen for every device; empty: that above
    shared_downlink: bool = False  # everyone who takes part downloads at the rate of the slowest of them

    def __post_init__(self) -> None:
        """Broadcast scalars to (K,) float64 arrays and check every value once."""
        if self.access not in ACCESSES:
            raise ProblemError(f"access must be one of {', '.join(ACCESSES)}, found {self.access!r}")
        num_devices = len(self.device_ids)
        if num_devices == 0:
            raise ProblemError("devices must name at least one device, found none")
        for name in ("deadline_s", "noise_psd_w_per_hz"):
            _check_scalar(name, getattr(self, name), positive=True)
        if not 0 <= self.max_dropout_rate < 1:
            raise ProblemError(f"max_dropout_rate must lie in [0, 1), found {self.max_dropout_rate!r}")
        for name in self._per_device:
            value = _as_float_array(name, getattr(self, name), (num_devices,))
            _check_array(name, value, positive=name in (*_PER_DEVICE_POSITIVE, *_CLOCK_RANGE))
            object.__setattr__(self, name, value)
        gain = np.asarray(self.channel_gain, dtype=np.float64)
        if self.access != "ofdma":
            _check_scalar("total_bandwidth_hz", self.total_bandwidth_hz, positive=True)
            gain = _as_float_array("channel_gain", gain, (num_devices,))
        else:
            _check_scalar("subcarrier_hz", self.subcarrier_hz, positive=True)
            if gain.ndim != 2 or gain.shape[0] != num_devices or gain.shape[1] == 0:
                raise ProblemError(f"channel_gain must have shape ({num_devices}, num_subcarriers), found {gain.shape}")
            object.__setattr__(self, "total_bandwidth_hz", float(gain.shape[1] * self.subcarrier_hz))
        _check_array("channel_gain", gain, positive=False)
        object.__setattr__(self, "channel_gain", gain)
        self._check_clock_range()
        self._check_choices()
        _check_scalar("total_examples", self.total_examples, positive=False)
        if self.total_examples == 0:
            object.__setattr__(self, "total_examples", float(self.num_examples.sum()))

    def _check_clock_range(self) -> None:
        if (self.min_cpu_hz is None) != (self.max_cpu_hz is None):
            raise ProblemError("min_cpu_hz and max_cpu_hz must be given together, found one of them")
        low, high = self.clock_range_hz
        for k in np.flatnonzero(~((low <= self.cpu_hz) & (self.cpu_hz <= high)))[:1]:
            limits = f"[min_cpu_hz, max_cpu_hz] = [{low[k]:g}, {high[k]:g}]"
            raise ProblemError(f"devices[{k}].cpu_hz must lie in {limits}, found {self.cpu_hz[k]:g}")

    def _check_choices(self) -> None:
        names, checked = [choice.name for choice in self.choices], []
        if self.choices and self.min_cpu_hz is not None:
            raise ProblemError("choices of how to send need fixed clocks, found min_cpu_hz")
        if len(set(names)) != len(names):
            raise ProblemError(f"choices must differ in name, found {', '.join(names)}")
        for choice in self.choices:
            parts = {key: _as_float_array(key, value, (self.num_devices,)) for key, value in choice.parts.items()}
            for key, value in parts.items():
                _check_array(f"choices.{choice.name}.{key}", value, positive=False)
            checked.append(replace(choice, **parts))  # type: ignore[arg-type]  # its name is no part
        object.__setattr__(self, "choices", tuple(checked))

    def chosen(self, choice: IntArray) -> "ResourceProblem":
        """Return the problem in which device k sends as ``choice`` (K,) says, an index into ``choices``."""
        parts: dict[str, Any] = {}
        usual = dict(zip(("downlink_fixed_bits", "downlink_droppable_bits"), self.downlink_payload, strict=True))
        for name in {name for one in self.choices for name in one.parts}:
            own = usual.get(name, getattr(self, name))
            table = np.stack([one.parts.get(name, own) for one in self.choices])
            parts[name] = table[choice, np.arange(choice.size)]
        return replace(self, choices=(), **parts)

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
        """Names of the arrays of shape (K,)."""
        given = tuple(name for name in _OPTIONAL if getattr(self, name) is not None)
        return (*_PER_DEVICE_POSITIVE, *_PER_DEVICE_NON_NEGATIVE, *given)

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
        return compute_cycles(self.fixed_cycles, self.adapter_cycles, dropout_rate)

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
        mask = np.asarray(keep).dtype == np.bool_
        if mask and np.size(keep) == self.num_devices and np.all(keep):
            return self  # unchanged and immutable
        index = np.flatnonzero(keep) if mask else np.asarray(keep)
        if index.size == 0:
            raise InfeasibleProblemError("a problem needs at least one device, the subset is empty")
        per_device: dict[str, Any] = {name: getattr(self, name)[index] for name in self._per_device}
        parts = ({name: value[index] for name, value in one.parts.items()} for one in self.choices)
        per_device["choices"] = tuple(replace(one, **part) for one, part in zip(self.choices, parts, strict=True))
        ids = tuple(self.device_ids[i] for i in index)
        return replace(self, device_ids=ids, channel_gain=self.channel_gain[index], **per_device)


@dataclass(frozen=True)
class Verified:
    """What `optimizer.verify` proved of a solution: its lower bound and gap, and how long that took [s]."""

    lower_bound: float
    gap: float
    time_s: float


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
    verified: Verified | None = None  # what the verifier proved, where it was asked
    deadline_s: float | None = None  # chosen for the problem's goal; objective and lower_bound are then the goal's
    choice: IntArray | None = None  # (K,) index into the problem's choices, -1 for who sits out; None without choices

    @property
    def gap(self) -> float:
        """(objective - lower_bound) / max(|objective|, 1e-12)."""
        return float((self.objective - self.lower_bound) / max(abs(self.objective), 1e-12))


def _check_scalar(name: str, value: float, *, positive: bool) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        raise ProblemError(f"{name} must be a number, found {value!r}")
    if _is_bad(np.float64(value), positive):
        raise ProblemError(f"{name} must be {_rule(positive)}, found {value!r}")


def _is_bad(value: FloatArray | np.float64, positive: bool) -> Any:
    """Also what is so large or small that products of a few such numbers would leave the range of float64."""
    size = np.abs(value)
    return ~(size <= _LARGEST) | (value < 0) | ((size < 1 / _LARGEST) & ((value != 0) | positive))


def _rule(positive: bool) -> str:
    sizes = f"{1 / _LARGEST:g} to {_LARGEST:g}"
    return f"finite and > 0 ({sizes})" if positive else f"finite and >= 0 (0 or {sizes})"


def _as_float_array(name: str, value: object, shape: Sequence[int]) -> FloatArray:
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ProblemError(f"{name} must hold numbers, found {value!r}") from error
    if array.shape not in ((), tuple(shape)):
        raise ProblemError(f"{name} must be a number or have shape {tuple(shape)}, found shape {array.shape}")
    return np.array(np.broadcast_to(array, tuple(shape)))


def _check_array(name: str, value: FloatArray, *, positive: bool) -> None:
    bad = _is_bad(value, positive)
    if bad.any():
        index = tuple(int(i) for i in np.argwhere(bad)[0])
        where = f"devices[{index[0]}].{name}" + (f"[{index[1]}]" if len(index) > 1 else "")
        raise ProblemError(f"{where} must be {_rule(positive)}, found {float(value[index])!r}")
