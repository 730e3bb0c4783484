"""The devices as the server knows them: budgets, work per round and the channel of a round, as one resource problem."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from adapter.protocol import DeviceAnnouncement
from optimizer.problem import ResourceProblem

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

_FACTS = ("cpu_hz", "capacitance", "max_tx_power_w", "energy_budget_j", "downlink_rate_bps")  # of a problem's fields
_STEP_RANGE = (0.1, 10.0)  # one measurement moves an estimate by no more: a device could claim anything
_SCALE_RANGE = (1e-3, 1e4)  # an estimate stays within this range of the model


@dataclass(frozen=True)
class Work:
    """One round's work (K,) at full adapter size: operations that no dropout saves, operations it saves, steps."""

    frozen_flops: FloatArray
    adapter_flops: FloatArray
    steps: FloatArray


@dataclass
class Estimates:
    """What measurements said about the devices, relative to the model; 1 everywhere is the model itself."""

    compute: FloatArray  # (K,) cycles a device really needs over cycles counted
    link: FloatArray  # (K,) channel gain over the channel model's

    def applied(self, problem: ResourceProblem) -> ResourceProblem:
        """Return the problem over all devices as measured."""
        gain = problem.channel_gain * (self.link if problem.channel_gain.ndim == 1 else self.link[:, None])
        fixed, adapter = problem.fixed_cycles * self.compute, problem.adapter_cycles * self.compute
        return replace(problem, fixed_cycles=fixed, adapter_cycles=adapter, channel_gain=gain)

    def observe(self, part: str, device: int, ratio: float, smoothing: float) -> None:
        r"""Move an estimate towards a measurement, :math:`e \leftarrow e\,q^{\alpha}`: smoothing of the logarithm.

        q (``ratio``) is measured over planned with the present estimate, alpha (``smoothing``) in (0, 1] its weight.
        """
        values = getattr(self, part)
        bounded = float(np.clip(ratio, *_STEP_RANGE)) if np.isfinite(ratio) and ratio > 0 else 1.0
        values[device] = np.clip(values[device] * bounded**smoothing, *_SCALE_RANGE)


@dataclass(frozen=True)
class Fleet:
    """Everything of the resource problem that does not change from round to round, and the channel that does.

    ``channel`` takes a round to its gains, (K,) under FDMA, (K, M) under OFDMA, and is pure; ``work`` takes numbers of
    examples (K,) to the work of a round. It and ``flops_per_cycle`` (K,) are needed once devices announce themselves.
    """

    template: ResourceProblem  # over all K devices; its channel is replaced every round
    device_class: tuple[str, ...]  # for reports
    channel: Callable[[int], FloatArray]
    work: Callable[[FloatArray], Work] | None = None
    flops_per_cycle: FloatArray | None = None
    estimates: Estimates | None = None  # what measurements said; None: the model as configured
    configured: "Fleet | None" = None  # the fleet before any device announced something; None: this one
    realised: Callable[[int], FloatArray] | None = None  # gains as they are, where ``channel`` is an estimate
    battery_j: FloatArray | None = None  # (K,) for the whole run, inf on the mains; None: no batteries

    def problem(self, server_round: int, devices: IntArray, weights: FloatArray | None = None) -> ResourceProblem:
        """Return the resource problem of one round over some of the devices, with this round's channel.

        ``weights`` (K,) replace the numbers of examples as weights, not as work.
        """
        everyone = replace(self.template, channel_gain=self.channel(server_round))
        if weights is not None:
            everyone = replace(everyone, num_examples=weights, total_examples=0.0)
        return (self.estimates.applied(everyone) if self.estimates else everyone).subset(devices)

    def learned(self) -> dict[str, list[float]] | None:
        """Return the estimates as plain lists for a checkpoint."""
        return None if self.estimates is None else {part: v.tolist() for part, v in vars(self.estimates).items()}

    def relearned(self, learned: dict[str, list[float]] | None) -> "Fleet":
        """Inverse of `learned`; None changes nothing."""
        if learned is None:
            return self
        return replace(self, estimates=Estimates(np.array(learned["compute"]), np.array(learned["link"])))

    def with_announcement(self, device: int, announced: DeviceAnnouncement) -> "Fleet":
        """Return the fleet in which a place is planned with what its device announced, not with who was there before.

        Facts replace the class's values, a clock moves the range of clocks; a measured step time sets the compute
        estimate.
        """
        origin, facts = self.configured or self, {k.replace("-", "_"): v for k, v in announced.facts.items()}
        assert self.work is not None and self.flops_per_cycle is not None and origin.flops_per_cycle is not None

        def with_value(name: str, value: float) -> FloatArray:
            values = np.array(getattr(self.template, name))
            values[device] = value
            return values

        usual = {name: float(getattr(origin.template, name)[device]) for name in _FACTS}
        changed = {name: with_value(name, facts.get(name, usual[name])) for name in _FACTS}
        for name in ("min_cpu_hz", "max_cpu_hz"):
            if (limits := getattr(origin.template, name)) is not None:
                changed[name] = with_value(name, limits[device] / usual["cpu_hz"] * changed["cpu_hz"][device])
        per_cycle = self.flops_per_cycle.copy()
        per_cycle[device] = facts.get("flops_per_cycle", origin.flops_per_cycle[device])
        work = self.work(num_examples := with_value("num_examples", announced.num_examples))
        changed |= {"num_examples": num_examples, "fixed_cycles": work.frozen_flops / per_cycle}
        changed["adapter_cycles"] = work.adapter_flops / per_cycle
        template = replace(self.template, total_examples=0.0, **changed)  # type: ignore[arg-type]
        estimates = copy.deepcopy(self.estimates)
        if estimates is not None:  # nothing is known of who came
            estimates.compute[device] = estimates.link[device] = 1.0
        if "step_s" in facts:
            estimates = estimates or Estimates(np.ones(num_examples.size), np.ones(num_examples.size))
            planned_s = (template.fixed_cycles[device] + template.adapter_cycles[device]) / template.cpu_hz[device]
            estimates.compute[device] = np.clip(work.steps[device] * facts["step_s"] / planned_s, *_SCALE_RANGE)
        return replace(self, template=template, flops_per_cycle=per_cycle, estimates=estimates, configured=origin)
