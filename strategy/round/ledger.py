"""The round's account, a line of rounds.jsonl: what was planned and what it cost; answers are held to the deadline.

Planned bits and measured bytes: `strategy.round.messages`.
"""

import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy.optimize import brentq

from adapter import RoundReport
from optimizer.feasibility import evaluate
from optimizer.problem import ResourceProblem, Solution
from strategy.round.checks import Order
from strategy.round.fleet import FloatArray, IntArray
from wireless.cost import round_cost


@dataclass
class Received:
    """What came back of one device, how large it was, and when it came."""

    report: RoundReport
    uplink_bytes: int
    uplink_adapter_bytes: int
    arrived_at: float = field(default_factory=time.time)  # Unix time [s]


@dataclass
class RoundLedger:
    """One round, from the plan to the bytes."""

    server_round: int  # from 1
    problem: ResourceProblem  # over the round's participants
    solution: Solution
    devices: IntArray  # (participants,) indices
    announced: Sequence[int] = ()  # numbers of examples of all devices; empty: those of the problem, which are weights
    orders: dict[int, Order] = field(default_factory=dict)  # by device
    received: dict[int, Received] = field(default_factory=dict)  # by device
    failures: list[dict[str, Any]] = field(default_factory=list)
    clipped: list[dict[str, Any]] = field(default_factory=list)  # answers scaled down: far longer than usual
    held_out: dict[int, dict[str, float]] = field(default_factory=dict)  # scores on a device's own held-out examples
    robust: dict[str, Any] | None = None  # what a trimmed mean or a median stood
    averaging_error: float | None = None  # what the mean of the factors loses of the mean product, where it is measured
    realised_gain: FloatArray | None = None  # where the plan knew estimates only
    wire_dtypes: tuple[str, ...] = ()  # number type of every participant's upload, where the plan chose it
    battery: tuple[FloatArray, FloatArray] | None = None  # charge [J] and price [1/J] of the participants at the plan

    def fail(self, device: int | None, kind: str, message: str) -> None:
        """Record something that went wrong with one device."""
        name = None if device is None else self.name(device)
        self.failures.append({"device": name, "kind": kind, "message": message})

    def name(self, device: int) -> str:
        """Identifier of a device in the records."""
        return self.problem.device_ids[self._position[device]]

    @functools.cached_property
    def _position(self) -> dict[int, int]:
        return {int(device): position for position, device in enumerate(self.devices)}

    @property
    def deadline_s(self) -> float:
        """The round's deadline [s]: the allocator's choice where it had one."""
        return self.problem.deadline_s if self.solution.deadline_s is None else self.solution.deadline_s

    @property
    def clock_hz(self) -> FloatArray:
        """Clock of every participant [Hz]: the allocator's choice where it had one."""
        return self.problem.cpu_hz if self.solution.cpu_hz is None else self.solution.cpu_hz

    def _rates_bps(self, gain: FloatArray) -> FloatArray:
        """Uplink rate of every participant under the plan (participants,) at some channel gains."""
        solution, problem = self.solution, replace(self.problem, channel_gain=gain)
        gamma = np.where(solution.scheduled, solution.dropout_rate, 0.0)
        return evaluate(problem, gamma, solution.tx_power_w, solution.bandwidth_hz).rate_bps

    @functools.cached_property
    def _rate_bps(self) -> FloatArray:
        return self._rates_bps(self.problem.channel_gain if self.realised_gain is None else self.realised_gain)

    def grant(self, position: int, realtime: bool) -> dict[str, float]:
        """Radio, clock and deadline of a participant under the plan, as its instruction names them."""
        problem, solution = self.problem, self.solution
        if solution.bandwidth_hz is not None:
            bandwidth_hz = solution.bandwidth_hz[position]
        else:
            bandwidth_hz = np.count_nonzero(solution.subcarrier_owner == position) * problem.subcarrier_hz
        granted = {"bandwidth_hz": bandwidth_hz, "tx_power_w": np.sum(solution.tx_power_w[position])}
        granted |= {"deadline_s": self.deadline_s, "cpu_hz": self.clock_hz[position]}
        if realtime:
            granted["uplink_rate_bps"] = self._rate_bps[position]
            granted["downlink_rate_bps"] = problem.downlink_rate_bps[position]
        return {name: float(value) for name, value in granted.items()}

    def lateness(self, device: int, received: Received) -> str | None:
        """Say by how much an answer misses the deadline over the channel as it was, None where the plan knew it."""
        if self.realised_gain is None:
            return None
        latency_s = self._measured_cost(device, received)[0]
        late = latency_s > self.deadline_s * (1 + 1e-9)
        return f"{latency_s:.4g} s of {self.deadline_s:.4g} s: the channel was weaker than planned" if late else None

    def spent_j(self) -> FloatArray:
        """Energy of every participant (participants,) [J]: measured where it answered, planned where it did not."""
        spent = np.where(self.solution.scheduled, np.nan_to_num(self.solution.energy_j), 0.0)
        for device, received in self.received.items():
            spent[self._position[device]] = self._measured_cost(device, received)[1]
        return spent

    def _measured_cost(self, device: int, received: Received) -> tuple[float, float]:
        """Latency [s] and energy [J] by the optimizer's own cost model, from the bytes that really travelled."""
        problem, position = self.problem, self._position[device]
        cost = round_cost(
            uplink_bits=8 * received.uplink_bytes,
            downlink_bits=8 * self.orders[device].downlink_bytes,
            cycles=self._cycles[position],
            cpu_hz=self.clock_hz[position],
            capacitance=problem.capacitance[position],
            downlink_rate_bps=problem.downlink_rate_bps[position],
            uplink_rate_bps=self._rate_bps[position],
            tx_power_w=self._radiated_w[position],
            circuit_j=problem.circuit_j[position],
        )
        return float(cost.latency_s), float(cost.energy_j)

    @functools.cached_property
    def _cycles(self) -> FloatArray:
        return self.problem.cycles(self.solution.dropout_rate)

    @functools.cached_property
    def _radiated_w(self) -> FloatArray:
        return self.problem.radiated_w(self.solution.tx_power_w, self.solution.bandwidth_hz)

    def planned_train_s(self, position: int) -> float:
        """Time of a participant's local training under the plan [s]."""
        return float(self._cycles[position] / self.clock_hz[position])

    def link_ratio(self, position: int, rate_bps: float) -> float:
        """Factor of a participant's channel gain at which its rate is the measured one, within 1/100 to 100."""

        def excess(log_ratio: float) -> float:
            return float(self._rates_bps(self.problem.channel_gain * np.exp(log_ratio))[position]) - rate_bps

        limit = np.log(100.0)
        if excess(-limit) >= 0:
            return 0.01
        return 100.0 if excess(limit) <= 0 else float(np.exp(brentq(excess, -limit, limit, xtol=1e-9)))

    def train_loss(self) -> float | None:
        """Mean training loss over the devices that told theirs, weighted as their answers are."""
        reports = ((self.orders[k].weight, self.received[k].report.train_loss) for k in sorted(self.received))
        told = [(weight, loss) for weight, loss in reports if loss is not None]
        total = sum(count for count, _ in told)
        return sum(count * loss for count, loss in told) / total if total else None

    def to_dict(self) -> dict[str, Any]:
        """Return the part of the round record that the strategy knows (see docs/architecture.md for the keys)."""
        rows = [self._row(position, int(device)) for position, device in enumerate(self.devices)]
        solution, finite = self.solution, np.isfinite(self.solution.lower_bound)
        places = {name: position for position, name in enumerate(self.problem.device_ids)}
        took_s = [self.deadline_s] if any(row["kind"] == "deadline" for row in self.failures) else []
        took_s += [row["latency_s"] for row in rows if row["latency_s"] is not None]
        started = (item.arrived_at - item.report.train_s for item in self.received.values())
        return {
            "round": self.server_round,
            "train_loss": self.train_loss(),
            "plan": {
                "solver": solution.method,
                "status": str(solution.status),
                "objective": float(solution.objective),
                "lower_bound": float(solution.lower_bound) if finite else None,
                "gap": solution.gap if finite else None,
                "solve_time_s": solution.solve_time_s,
                "notes": list(solution.notes),
                **({} if solution.verified is None else {"verified": dict(solution.verified)}),
            },
            "devices": rows,
            "sim_latency_s": max(took_s, default=0.0),
            "energy_j": float(sum(row["energy_j"] for row in rows if row["energy_j"] is not None)),
            # By device, then kind, whatever came first; nameless ones last.
            "failures": sorted(self.failures, key=lambda row: (places.get(row["device"], len(places)), row["kind"])),
            "answers": {"asked": len(self.orders), "used": len(self.received)},
            "clipped": sorted(self.clipped, key=lambda row: str(row["device"])),
            "capped": [
                {"device": self.name(order.device), "num_examples": order.num_examples, "weight": order.weight}
                for order in self.orders.values()
                if order.weight < order.num_examples
            ],
            **({} if self.robust is None else {"robust": self.robust}),
            **({} if self.averaging_error is None else {"averaging_error": self.averaging_error}),
            # Of the first device that answered: when its first training step began, as Unix time [s].
            "first_step_at": min(started, default=None),
        }

    def _row(self, position: int, device: int) -> dict[str, Any]:
        solution, problem, on = self.solution, self.problem, bool(self.solution.scheduled[position])
        order, received = self.orders.get(device), self.received.get(device)
        latency_s, energy_j = (None, None) if received is None else self._measured_cost(device, received)
        row: dict[str, Any] = {
            "id": problem.device_ids[position],
            "scheduled": on,
            "reason": None if on else solution.reasons[position] or "no reason given",
            "dropout_rate": float(solution.dropout_rate[position]) if on else None,
            "tx_power_w": float(np.sum(solution.tx_power_w[position])) if on else None,
            "cpu_hz": float(self.clock_hz[position]) if on else None,
            "latency_s": latency_s,
            "energy_j": energy_j,
            "deadline_s": self.deadline_s,
            "energy_budget_j": float(problem.energy_budget_j[position]),
            "uplink_bytes": received.uplink_bytes if received else 0,
            "downlink_bytes": order.downlink_bytes if order else 0,
            "uplink_adapter_bytes": received.uplink_adapter_bytes if received else 0,
            "num_examples": self.announced[device] if self.announced else int(problem.num_examples[position]),
            "train_loss": received.report.train_loss if received else None,
            "planned_train_s": self.planned_train_s(position) if on else None,
            "train_s": received.report.train_s if received else None,
        }
        if device in self.held_out:
            row["held_out"] = self.held_out[device]
        if received is not None and received.report.upload_s:
            row["planned_upload_s"] = 8 * received.uplink_bytes / float(self._rate_bps[position])
            row["upload_s"] = received.report.upload_s
        if solution.bandwidth_hz is not None:
            row["bandwidth_hz"] = float(solution.bandwidth_hz[position]) if on else None
        else:
            row["subcarriers"] = np.flatnonzero(solution.subcarrier_owner == position).tolist() if on else []
        if self.wire_dtypes and on:
            row["wire_dtype"] = self.wire_dtypes[position]
        if self.battery is not None:
            charge, price = (float(values[position]) for values in self.battery)
            row |= {"charge_j": charge if np.isfinite(charge) else None, "price_per_j": price}  # None: on the mains
        return row
