"""What every method shares: participants, the radio plan, one message per device, checked answers, the account.

A method (one file each in `strategy.methods`) says which factors train in a round, what is dropped, what a device is
sent and how the answers are averaged. An average is registered in `LoraStrategy.new_average`.
"""

import functools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.common.logger import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from adapter import AdapterMask, AdapterSpec, AdapterState, RoundInstruction, mask_seed
from adapter.base_update import apply_update
from adapter.mask import Factors
from adapter.pack import WIRE_DTYPES, adapter_bytes
from adapter.protocol import Delivery, wire_spec
from adapter.state import FloatArray
from optimizer.allocator import ResourceAllocator
from optimizer.problem import ResourceProblem, Solution
from strategy.aggregation import Answer, Average, Averaged
from strategy.aggregation.kept import KeptAverage
from strategy.aggregation.noisy import NoisyAverage, secret_generator
from strategy.aggregation.products import WholeAnswers, exact_mean, measured_mean
from strategy.aggregation.robust import NormGuard, RobustAverage, hostile_devices
from strategy.aggregation.server_optimizer import ServerOptimizer
from strategy.round import messages as wire
from strategy.round.battery_policy import Batteries
from strategy.round.checks import MEMORY_LOST, Order, ReplyError, check_reply, match
from strategy.round.device_book import DeviceBook
from strategy.round.device_scores import average_scores, question
from strategy.round.fleet import Fleet, IntArray
from strategy.round.ledger import Received, RoundLedger
from strategy.round.roster import Directory, draw_participants
from strategy.settings import MethodError, StrategySettings

_ALLOCATOR_STREAM = 0x616C6C6F  # names the random stream of allocators that draw


class LoraStrategy(Strategy):
    """Federated LoRA over a wireless cell: plan, send, check, average, account.

    As it stands it drops nothing, trains the factors that ``settings.factors`` names, and averages by examples. A
    device **must** answer with the changes of exactly the entries its instruction names, and repeat the round and the
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
        for key, value, plain in (
            ("strategy.robust", settings.robust, "mean"),
            ("strategy.server_optimizer", settings.server.kind, "none"),
            ("privacy.model", "central" if settings.central else "local", "local"),
        ):
            if value != plain and (own_average or settings.aggregation in ("exact", "measured")):
                raise MethodError(
                    f"{key}={value} needs averages of lora_A and lora_B; {type(self).__name__} with "
                    f"strategy.aggregation={settings.aggregation} averages otherwise: use {key}={plain}"
                )
        self.spec, self.fleet, self.directory = spec, fleet, directory
        self.allocator, self.settings = allocator, settings
        self.book = DeviceBook(len(directory.node_ids))
        self.guard = NormGuard(settings.clip_factor)
        self.batteries = None
        if fleet.battery_j is not None:
            self.batteries = Batteries(fleet.battery_j, settings.num_rounds, settings.priced_battery)
        self.server = ServerOptimizer(settings.server)
        self.last_solution: Solution | None = None  # where iterative allocators start
        self.evaluation: dict[str, Any] | None = None  # this and the following belong to the round that runs
        self.ledger: RoundLedger
        self._questions: list[Order] = []
        self._state: AdapterState

    # What a method decides, in the order of a round -------------------------------------------------------------------

    def active_factors(self, server_round: int) -> Factors:
        """Return the factors that train in a round."""
        if self.settings.factors == "alternate":
            return (self.settings.phases[(server_round - 1) % len(self.settings.phases)],)
        return ("B",) if self.settings.factors == "b_only" else ("A", "B")

    def max_dropout_rate(self) -> float | None:
        """Return the largest dropout rate the plan may choose, None for the budget's limit."""
        return 0.0

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
        # With central privacy both: what a device lacks tells who was drawn before, and the plan would depend on it.
        wanted = "AB" if self.settings.central else self.book.stale(device) or sent
        return Delivery(wanted, True, version_A=versions["A"], version_B=versions["B"])

    def draw_mask(self, layout: AdapterSpec, seed: int, dropout_rate: float, factors: Factors) -> AdapterMask:
        """Return what a device keeps, in the layout that travels to it."""
        return AdapterMask.full(layout)

    def values(self, device: int) -> AdapterState:
        """Return the factors, the head and the base that a device trains from, whole, at its rank."""
        return self._state

    def cut(self, layout: AdapterSpec, values: AdapterState, mask: AdapterMask, factors: Factors) -> AdapterState:
        """Return the part of the values that a device is sent."""
        return values

    def new_average(self) -> Average:
        """Return what collects the answers of a round."""
        s = self.settings
        if s.central is not None:
            t, divisor = self.ledger.server_round, s.fraction * len(self.directory.node_ids)
            rng = secret_generator(s.central.noise_seed, "noise", t)
            return NoisyAverage(self.spec, self.active_factors(t), s.central, divisor, rng)
        if s.robust != "mean":
            return RobustAverage(self.spec, s.robust, hostile_devices(s.trim, len(self.ledger.orders)), s.aggregation)
        if self.needs_float_base(s.factors, s.aggregation):
            return WholeAnswers(self.spec, functools.partial(exact_mean, scaling=s.scaling))
        if s.aggregation == "measured" and s.factors == "both":
            return WholeAnswers(self.spec, measured_mean)
        return self.mean(sum(order.weight for order in self.ledger.orders.values()) or 1)

    def mean(self, total_weight: float) -> Average:
        """Return a mean of changes by weight; the weights sum to at most ``total_weight``."""
        aggregation = "kept" if self.settings.aggregation == "kept" else "previous"
        return KeptAverage(self.spec, aggregation, total_weight)

    def accept(self, order: Order, received: Received) -> None:
        """Note an answer that is in the average, and what its device holds now."""
        self.ledger.received[order.device] = received
        self.book.confirm(order.device, order.instruction)

    def evaluation_delivery(self, device: int) -> Delivery:
        """Return what a device is sent to score the new model: all of it, and nothing of it is kept."""
        return self.book.with_base(Delivery(), device)

    def replaced(self, device: int) -> None:
        """Another device has taken a place: nothing that is known of the one before holds for it."""
        self.book.forget(device)
        if self.batteries is not None:
            self.batteries.charge_j[device] = self.batteries.full_j[device]

    # What stays over a run --------------------------------------------------------------------------------------------

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

    def memory(self) -> tuple[dict[str, Any], dict[str, FloatArray]]:
        """Return what the method knows beside the adapter, as JSON facts and arrays, for a checkpoint."""
        charges = {} if self.batteries is None else self.batteries.to_facts()
        tensors = self.book.to_tensors() | self.server.to_tensors()
        return {**self.book.to_facts(), "median_norms": self.guard.medians, **charges}, tensors

    def restore(self, facts: Mapping[str, Any], tensors: Mapping[str, FloatArray]) -> None:
        """Go on from what `memory` returned; an empty mapping is that of a run before it existed."""
        if facts:
            self.guard.medians = dict(facts["median_norms"])
            self.book.restore(facts, tensors)
            self.server.restore(tensors)
        if self.batteries is not None and "charge_j" in facts:
            self.batteries.restore(facts)

    def summary(self) -> None:
        """Log the settings (Flower calls this at the start)."""
        log(20, "%s with allocator %s: %s", type(self).__name__, self.allocator.names[0], self.settings)

    # Planning ---------------------------------------------------------------------------------------------------------

    def plan(self, server_round: int) -> RoundLedger:
        """Decide a round's resources and open its account; the answer is where the next round's allocator starts."""
        devices = self.participants(server_round)
        problem = self.problem_of(server_round, devices)
        rng = np.random.default_rng([_ALLOCATOR_STREAM, self.settings.seed, server_round])
        solution = self.allocator.allocate(problem, rng=rng, warm_start=self.last_solution)
        if self.batteries is not None:
            solution = self.batteries.explained(problem, devices, solution)
        self.last_solution = solution
        decided = problem.decided(solution.scheduled, solution.choice)
        ledger = RoundLedger(server_round, decided, solution, devices, self.directory.num_examples)
        if solution.choice is not None:
            ledger.wire_dtypes = tuple(list(problem.choices)[way] for way in solution.choice)
        if self.fleet.realised is not None:
            ledger.realised_gain = self.fleet.realised(server_round)[devices]
        if self.batteries is not None:
            ledger.battery = self.batteries.charge_j[devices], self.batteries.price_per_j[devices]
        return ledger

    def participants(self, server_round: int) -> IntArray:
        """Return whom a round plans for; with central privacy all who are there, of whom some are drawn later."""
        s, present = self.settings, self.directory.present
        if s.central is not None:
            return present
        return draw_participants(present, s.fraction, s.devices_per_round, s.seed, server_round)

    def problem_of(self, server_round: int, devices: IntArray) -> ResourceProblem:
        """Return the resource problem of a round over the given participants, with what each of them would be sent."""
        weights = self.directory.weights(self.settings.max_weight)
        problem = self.fleet.problem(server_round, devices, weights)
        if (limit := self.max_dropout_rate()) is not None:
            problem = replace(problem, max_dropout_rate=limit)
        deliveries, factors = self._deliveries(server_round, devices), self.active_factors(server_round)
        problem = wire.with_deliveries(problem, self.spec, deliveries, factors, self.settings)
        if self.batteries is None:
            return problem
        return self.batteries.allot(problem, devices, server_round, self.fleet.channel)

    def _deliveries(self, server_round: int, devices: IntArray) -> list[Delivery]:
        return [self.book.with_base(self.delivery(server_round, k), k) for k in map(int, devices)]

    # Training ---------------------------------------------------------------------------------------------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Plan the round and build one message per scheduled device, ascending (Flower's hook)."""
        self._state = wire.state_from_record(arrays, self.spec)
        self.ledger = self.plan(server_round)
        devices = self.ledger.devices
        deliveries = self._deliveries(server_round, devices)
        messages, asked = [], np.flatnonzero(self.ledger.solution.scheduled)
        if (central := self.settings.central) is not None:  # the plan knows nothing of the draw, which stays secret
            coins = secret_generator(central.noise_seed, "draw", server_round).random(asked.size)
            asked = asked[coins < self.settings.fraction]
        for position in asked:
            message, order = self._order(int(position), int(devices[position]), deliveries[position])
            messages.append(message)
            self.ledger.orders[order.device] = order
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Check every (untrusted) reply, average the changes of the good ones, account for all (Flower's hook).

        Returns the new global adapter and the mean training loss; None when nobody answered usefully, unless central
        privacy adds its noise.
        """
        ledger, factors = self.ledger, self.active_factors(server_round)
        assert ledger.server_round == server_round
        averaged = self._averaged(replies, factors)
        if self.batteries is not None:
            self.batteries.spend(ledger.devices, ledger.spent_j())
        if averaged is None:
            return None, None
        ledger.robust, ledger.averaging_error = averaged.account, averaged.averaging_error
        self.book.versions |= dict.fromkeys(factors, server_round)
        loss = ledger.train_loss()
        state, base = self.server.step(self._state, averaged.state), self._state.base
        if averaged.base_update is not None:
            self.book.base.push(averaged.base_update, self.spec)
            base = apply_update(base, averaged.base_update)
        record = wire.state_to_record(replace(state, base=base))
        return record, MetricRecord({"train-loss": np.nan if loss is None else loss})

    def _averaged(self, replies: Iterable[Message], factors: Factors) -> Averaged | None:
        """Average the good answers, each dropped before the next is taken: memory does not grow; None without any."""
        ledger, average = self.ledger, self.new_average()
        for (order, received), changes in self.guard.pass_on(self._checked(replies, factors), "".join(factors)):
            sent = functools.partial(self._as_received, order.device)
            try:
                average.add(Answer(changes, order.draw_mask(), order.weight, order.device, sent))
            except ValueError as error:
                ledger.fail(order.device, "payload", str(error))
            else:
                self.accept(order, received)
            del changes  # as in `_checked` and `match`: nothing of an answer stays while the next is fetched
        for (order, _), norm, threshold in self.guard.clipped:
            ledger.clipped.append({"device": ledger.name(order.device), "norm": norm, "threshold": threshold})
        return average.finish(self._state) if ledger.received or self.settings.central else None

    def _order(self, position: int, device: int, delivery: Delivery) -> tuple[Message, Order]:
        """Return the message to one participant and what is kept of it to check the answer against."""
        ledger, s = self.ledger, self.settings
        factors, rate = self.active_factors(ledger.server_round), float(ledger.solution.dropout_rate[position])
        seed, layout = mask_seed(s.seed, ledger.server_round, device), wire_spec(self.spec, delivery)
        draw_mask = functools.partial(self.draw_mask, layout, seed, rate, factors)
        instruction = RoundInstruction(
            server_round=ledger.server_round,
            dropout_rate=rate,
            mask_seed=seed,
            factors="".join(factors),
            code=s.code,
            delivery=delivery,
            wire_dtype=ledger.wire_dtypes[position] if ledger.wire_dtypes else "",
            **ledger.grant(position, s.realtime),
        )
        values, mask = self.values(device), AdapterMask.full(layout) if delivery.whole else draw_mask()
        sent = values if delivery.whole else self.cut(layout, values, mask, tuple(delivery.sent))
        flat, base = wire.contents(layout, delivery, sent, mask, self.book, s.downlink_dtype)
        message = wire.train_message(flat, instruction, self.directory.node(device), s.round_timeout_s, base=base)
        num_examples, weight = self.directory.num_examples[device], float(ledger.problem.num_examples[position])
        # The metadata alone: the buffers of all devices would fill the memory. The grid writes the identifier into it.
        order = Order(device, message.metadata, instruction, draw_mask, num_examples, wire.wire_bytes(message), weight)
        return message, order

    def _checked(
        self, replies: Iterable[Message], factors: Factors
    ) -> Iterator[tuple[tuple[Order, Received], AdapterState]]:
        """Yield the answers that follow their orders; record why the others do not."""
        orders = self.ledger.orders.values()
        for order, reply in match(replies, orders, self.ledger.fail, self.settings.round_timeout_s):
            layout = wire_spec(self.spec, order.instruction.delivery)
            sent = wire.travelling(order.instruction.delivery, factors)
            wire_dtype = order.instruction.wire_dtype or self.settings.wire_dtype
            try:
                changes, report = check_reply(reply, order, layout, wire_dtype, sent, prunable=self.prunable)
            except ReplyError as error:
                self.ledger.fail(order.device, error.kind, str(error))
                if error.kind == MEMORY_LOST:
                    self.book.forget(order.device)
                continue
            kept = wire_spec(layout, Delivery(rank=report.rank))
            of_adapter = adapter_bytes(kept, order.draw_mask(), wire_dtype, sent)
            received = Received(report, wire.wire_bytes(reply), of_adapter)
            del reply
            if late := self.ledger.lateness(order.device, received):
                self.ledger.fail(order.device, "deadline", late)
                continue
            yield (order, received), changes
            del changes

    def _as_received(self, device: int) -> AdapterState:
        """Return factors and head as the device sees them after the wire's rounding, in float32."""
        dtype = WIRE_DTYPES[self.settings.downlink_dtype]
        return self.values(device).map(lambda value: value.astype(dtype, copy=False).astype(np.float32, copy=False))

    # Scores on the devices --------------------------------------------------------------------------------------------

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Send this round's scheduled devices the adapter, or their own, if they are to score it (Flower's hook)."""
        self.evaluation, self._questions, messages = None, [], []
        if self.settings.client_evaluation:
            self._state = wire.state_from_record(arrays, self.spec)
            for device, order in self.ledger.orders.items():
                delivery = self.evaluation_delivery(device)
                layout = wire_spec(self.spec, delivery)
                mask, dtype = AdapterMask.full(layout), self.settings.downlink_dtype
                values = self.values(device) if self.personalised else self._state
                flat, base = wire.contents(layout, delivery, values, mask, self.book, dtype)
                message, asked = question(order, delivery, flat, base, self.settings.round_timeout_s)
                messages.append(message)
                self._questions.append(asked)
        return messages

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Average the devices' scores, weighted by held-out examples (Flower's hook)."""
        mean, self.evaluation = average_scores(replies, self._questions, self.ledger, self.directory, self.settings)
        return MetricRecord(mean) if mean else None
