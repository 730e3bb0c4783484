"""What every method shares: participants, the radio plan, one message per device, checked replies, the account.

A method (one file each) says which factors train in a round, whether entries may be dropped, and how changes are
averaged.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, Metadata, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from adapter import (
    AdapterMask,
    AdapterSpec,
    AdapterState,
    RoundInstruction,
    RoundReport,
    adapter_bytes,
    mask_seed,
    sample_mask,
)
from adapter.base_update import Update, apply_update
from adapter.delivery import Delivery, wire_spec
from adapter.state import FloatArray
from optimizer.allocator import ResourceAllocator
from optimizer.problem import ResourceProblem, Solution
from strategy.averages.exact import ExactAverage
from strategy.averages.kept import AdapterAverage
from strategy.averages.robust import NormGuard, RobustAverage, hostile_devices
from strategy.heap import trim_heap
from strategy.round.checks import MEMORY_LOST, Order, ReplyError, check_reply, match
from strategy.round.device_book import DeviceBook
from strategy.round.device_scores import DeviceScores
from strategy.round.fleet import Fleet, IntArray
from strategy.round.ledger import Received, RoundLedger
from strategy.round.messages import state_from_record, state_to_record, train_message, wire_bytes
from strategy.round.roster import Directory
from strategy.round.sampling import draw_participants
from strategy.round.sending import as_received, contents, payload, travelling, with_base, with_payloads
from strategy.settings import MethodError, StrategySettings

_ALLOCATOR_STREAM = 0x616C6C6F  # names the random stream of allocators that draw


class LoraStrategy(DeviceScores, Strategy):
    """Federated LoRA over a wireless cell: plan, send, check, average, account.

    Parameters
    ----------
    spec : AdapterSpec
        Layout of the adapter.
    fleet : Fleet
        Devices, budgets and channel.
    directory : Directory
        Node and number of examples of every device.
    allocator : ResourceAllocator
        Decides dropout rates, bandwidth and power each round.
    settings : StrategySettings
        The rest.

    Notes
    -----
    A device **must** answer with the changes of exactly the entries its instruction names, and repeat the round and the
    seed.
    """

    required: ClassVar[dict[str, str]] = {}  # settings without which the method would be another one
    personalised: ClassVar[bool] = False  # every device has a model of its own; the global adapter alone is none
    changes_base: ClassVar[bool] = False  # adds to the frozen weights whatever the settings
    prunable: ClassVar[bool] = False  # a device may answer with fewer rank components than it was sent

    def __init__(
        self,
        *,
        spec: AdapterSpec,
        fleet: Fleet,
        directory: Directory,
        allocator: ResourceAllocator,
        settings: StrategySettings,
    ) -> None:
        self.check_settings(settings.factors, settings.aggregation)
        own_average = type(self).new_average is not LoraStrategy.new_average
        if settings.robust != "mean" and (own_average or settings.aggregation == "exact"):
            raise MethodError(
                f"strategy.robust={settings.robust} needs averages of lora_A and lora_B; {type(self).__name__} with "
                f"strategy.aggregation={settings.aggregation} averages otherwise: use strategy.robust=mean"
            )
        self.spec = spec
        self.fleet = fleet
        self.directory = directory
        self.allocator = allocator
        self.settings = settings
        self.book = DeviceBook(len(directory.node_ids))
        self.guard = NormGuard(settings.clip_factor)
        self.ledger: RoundLedger | None = None
        self.evaluation: dict[str, Any] | None = None
        self._state: AdapterState | None = None
        self._pending: list[
            tuple[Metadata, Order]
        ] = []  # metadata only: the buffers of all devices would fill the memory
        self.last_solution: Solution | None = None  # where iterative allocators start

    # What a method decides -------------------------------------------------------------------------------------------

    def max_dropout_rate(self) -> float | None:
        """Return the largest dropout rate the method admits, None for the budget's limit."""
        return None

    def active_factors(self, server_round: int) -> tuple[str, ...]:
        """Return the factors that train in a round; alternating starts with lora_B, as lora_A has no gradient while B = 0."""
        if self.settings.factors == "alternate":
            return ("B",) if server_round % 2 else ("A",)
        return ("B",) if self.settings.factors == "b_only" else ("A", "B")

    def delivery(self, server_round: int, device: int) -> Delivery:
        """Return what a device is sent this round, beside its orders and the head.

        Alternating, the device keeps both factors whole and is sent those that it has not confirmed, usually the one
        averaged last round; when it has both, the one that trains, so that every round costs the same. Otherwise it is
        sent the survivors of the trained factors.
        """
        sent = "".join(self.active_factors(server_round))
        if self.settings.factors != "alternate":
            return Delivery(sent)
        versions = self.book.versions
        return Delivery(self.book.stale(device) or sent, True, version_A=versions["A"], version_B=versions["B"])

    def values(self, device: int) -> AdapterState:
        """Return the factors, the head and the base that a device trains from, whole, at its rank."""
        assert self._state is not None
        return self._state

    def replaced(self, device: int) -> None:
        """Another device has taken a place: nothing that is known of the one before holds for it."""
        self.book.forget(device)

    def memory(self) -> tuple[dict[str, Any], dict[str, FloatArray]]:
        """Return what the method knows beside the adapter, as JSON facts and arrays, for a checkpoint."""
        return {**self.book.to_facts(), "median_norms": self.guard.medians}, self.book.to_tensors()

    def restore(self, facts: Mapping[str, Any], tensors: Mapping[str, FloatArray]) -> None:
        """Go on from what `memory` returned; an empty mapping is that of a run before it existed."""
        if facts:
            self.guard.medians = dict(facts["median_norms"])
            self.book.restore({key: value for key, value in facts.items() if key != "median_norms"}, tensors)

    def summary(self) -> None:
        """Log the settings (Flower calls this at the start)."""
        from flwr.common.logger import log

        log(
            20,
            "\t├──> %s with allocator %s over %d devices",
            type(self).__name__,
            self.allocator.name,
            self.directory.present.size,
        )
        log(20, "\t└──> %s", self.settings)

    @classmethod
    def check_settings(cls, factors: str, aggregation: str) -> None:
        """Raise MethodError where the settings would make another method of it."""
        found = {"factors": factors, "aggregation": aggregation}
        for key, value in cls.required.items():
            if found[key] != value:
                raise MethodError(f"strategy.{key} must be {value} for {cls.__name__}, found {found[key]}")

    @classmethod
    def needs_float_base(cls, factors: str, aggregation: str) -> bool:
        """Whether the method adds to the frozen weights."""
        return cls.changes_base or (aggregation == "exact" and factors == "both")

    def new_average(self) -> Any:
        """Return what collects the answers of a round."""
        if self.settings.robust != "mean":
            stands = hostile_devices(self.settings.trim, len(self._pending))
            return RobustAverage(self.spec, self.settings.robust, stands)
        if self.needs_float_base(self.settings.factors, self.settings.aggregation):
            return ExactAverage(self.spec, self.settings.scaling)
        return AdapterAverage(self.spec, max_total_weight=sum(order.weight for _, order in self._pending) or 1)

    def add(self, average: Any, changes: AdapterState, order: Order, report: RoundReport) -> None:
        """Hand one checked answer over; a ValueError refuses it."""
        if isinstance(average, ExactAverage):
            received = as_received(self.values(order.device), self.settings.downlink_dtype)
            average.add(order.device, received, changes, order.mask, order.weight)
        else:
            average.add(changes, order.mask, order.weight)

    def finish(self, average: Any) -> AdapterState:
        """Return the new global adapter."""
        assert self._state is not None
        if isinstance(average, ExactAverage):
            return self.with_update(*average.finish())
        state: AdapterState = average.apply(self._state, self.settings.aggregation.replace("exact", "previous"))
        return state

    def with_update(self, state: AdapterState, update: Update | None) -> AdapterState:
        """Return the state with the base as it was plus an update, which devices are sent from now on."""
        assert self._state is not None
        if update is None:
            return replace(state, base=self._state.base)
        self.book.base.push(update, self.spec)
        return replace(state, base=apply_update(self._state.base, update))

    # Training --------------------------------------------------------------------------------------------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Plan the round and build one message per scheduled device (Flower's hook).

        Parameters
        ----------
        server_round : int
            Round, from 1.
        arrays : ArrayRecord
            The global adapter.
        config, grid
            Not used: every device gets its own orders, and who is who is known from the directory.

        Returns
        -------
        list of Message
            Ascending by device; a list, because the deployment grid iterates twice.
        """
        self._state = state_from_record(arrays, self.spec)
        self.ledger = self.plan(server_round)
        solution, devices = self.ledger.solution, self.ledger.devices
        deliveries = self._deliveries(server_round, devices)
        messages, self._pending = [], []
        for position in np.flatnonzero(solution.scheduled):
            message, order = self._order(server_round, int(position), int(devices[position]), deliveries[position])
            messages.append(message)
            self._pending.append((message.metadata, order))  # the grid writes the message's identifier into it
        self.ledger.orders = {order.device: order for _, order in self._pending}
        return messages

    def _deliveries(self, server_round: int, devices: IntArray) -> list[Delivery]:
        return [with_base(self.delivery(server_round, int(device)), self.book, int(device)) for device in devices]

    def resource_problem(self, server_round: int) -> tuple[IntArray, ResourceProblem]:
        """Return a round's participants and their resource problem."""
        s = self.settings
        present = self.directory.present
        drawn = draw_participants(
            present.size,
            fraction=s.fraction,
            devices_per_round=s.devices_per_round,
            seed=s.seed,
            server_round=server_round,
        )
        return present[drawn], self.problem_of(server_round, present[drawn])

    def problem_of(self, server_round: int, devices: IntArray) -> ResourceProblem:
        """Return the resource problem of a round over the given participants, with what each of them would be sent."""
        s, factors = self.settings, self.active_factors(server_round)
        deliveries = self._deliveries(server_round, devices)
        payloads = [payload(self.spec, delivery, factors, s.wire_dtype, s.downlink_dtype) for delivery in deliveries]
        shares = [delivery.rank / self.spec.modules[0].r if delivery.rank else 1.0 for delivery in deliveries]
        problem = self.fleet.problem(
            server_round, devices, self.max_dropout_rate(), self.directory.weights(s.max_weight)
        )
        return with_payloads(problem, payloads, shares)

    def plan(self, server_round: int) -> RoundLedger:
        """Decide a round's resources and open its account; the answer is where the next round's allocator starts."""
        devices, problem = self.resource_problem(server_round)
        rng = np.random.default_rng([_ALLOCATOR_STREAM, self.settings.seed, server_round])
        self.last_solution = self.allocator.allocate(problem, rng=rng, warm_start=self.last_solution)
        return RoundLedger(server_round, problem, self.last_solution, devices, self.directory.num_examples)

    def _order(self, server_round: int, position: int, device: int, delivery: Delivery) -> tuple[Message, Order]:
        assert self.ledger is not None and self._state is not None
        s, solution, factors = self.settings, self.ledger.solution, self.active_factors(server_round)
        rate = float(solution.dropout_rate[position])
        seed = mask_seed(s.seed, server_round, device)
        wire = wire_spec(self.spec, delivery)
        draw_mask = functools.partial(_draw_mask, wire, seed, rate, s.mask, factors)
        mask = draw_mask()
        if solution.bandwidth_hz is not None:
            bandwidth_hz = float(solution.bandwidth_hz[position])
        else:
            bandwidth_hz = float(
                np.count_nonzero(solution.subcarrier_owner == position) * self.ledger.problem.subcarrier_hz
            )
        instruction = RoundInstruction(
            server_round=server_round,
            dropout_rate=rate,
            mask_seed=seed,
            bandwidth_hz=bandwidth_hz,
            tx_power_w=float(np.sum(solution.tx_power_w[position])),
            deadline_s=self.ledger.problem.deadline_s,
            cpu_hz=float(self.ledger.clock_hz[position]),
            factors="".join(factors),
            code=s.code,
            delivery=delivery,
            **self.ledger.grant(position, s.realtime),
        )
        flat, base = contents(self.spec, delivery, self.values(device), mask, self.book, s.downlink_dtype)
        node, num_examples = self.directory.node(device), self.directory.num_examples[device]
        message = train_message(flat, instruction, node, s.round_timeout_s, base=base)
        weight = float(self.ledger.problem.num_examples[position])
        order = Order(device, node, instruction, draw_mask, num_examples, wire_bytes(message), weight)
        return message, order

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Check every reply, average the changes of the good ones, account for all (Flower's hook).

        Parameters
        ----------
        server_round : int
            Round the replies should belong to.
        replies : iterable of Message
            In any order; untrusted. Each is added and dropped before the next is taken, so memory does not grow with
            their number; the sums do not depend on the order (see `strategy.aggregation`).

        Returns
        -------
        tuple
            The new global adapter (None when nobody answered usefully) and the round's mean training loss.
        """
        ledger = self.ledger
        assert ledger is not None and self._state is not None and ledger.server_round == server_round
        factors, average = self.active_factors(server_round), self.new_average()
        for (order, received), changes in self.guard.pass_on(self._checked(replies, factors), "".join(factors)):
            try:
                self.add(average, changes, order, received.report)
            except ValueError as error:
                ledger.fail(order.device, "payload", str(error))
                continue
            finally:
                del changes  # nothing of an answer stays while the next one is fetched
            ledger.received[order.device] = received
            self.book.confirm(order.device, order.instruction)
        for (order, _), norm, threshold in self.guard.clipped:
            ledger.clip(order.device, norm, threshold)
        if not ledger.received:
            return None, None
        trim_heap()  # before the step that needs most: sums and new values at once
        state = self.finish(average)
        if isinstance(average, RobustAverage):
            ledger.robust = average.account()
        del average
        trim_heap()  # the sums, before the new values are copied into a record
        self.book.versions |= dict.fromkeys(factors, server_round)
        loss = ledger.train_loss()
        return state_to_record(state, self.spec), MetricRecord(
            {"train-loss": float(loss if loss is not None else np.nan)}
        )

    def _checked(
        self, replies: Iterable[Message], factors: tuple[str, ...]
    ) -> Iterator[tuple[tuple[Order, Received], AdapterState]]:
        """Yield the answers that follow their orders; record why the others do not."""
        assert self.ledger is not None
        wire_dtype = self.settings.wire_dtype
        for order, reply in match(replies, self._pending, self.ledger.fail, self.settings.round_timeout_s):
            wire = wire_spec(self.spec, order.instruction.delivery)
            sent = travelling(order.instruction.delivery, factors)
            try:
                changes, report = check_reply(reply, order, wire, wire_dtype, sent, prunable=self.prunable)
            except ReplyError as error:
                self.ledger.fail(order.device, error.kind, str(error))
                if error.kind == MEMORY_LOST:
                    self.book.forget(order.device)
                continue
            kept = wire_spec(wire, Delivery(rank=report.rank))
            received = Received(report, wire_bytes(reply), adapter_bytes(kept, order.mask, wire_dtype, sent))
            del reply
            yield (order, received), changes
            del changes


@functools.lru_cache(maxsize=1)  # drawn twice in a row: to check an answer, and to add it
def _draw_mask(spec: AdapterSpec, seed: int, rate: float, kind: str, factors: tuple[str, ...]) -> AdapterMask:
    return sample_mask(spec, seed, rate, kind, factors)
