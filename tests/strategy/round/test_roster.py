"""Who is there: places taken, left and taken again; devices that cannot take part; what a device announces enters the plan."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from flwr.app import Error, Message, MetricRecord, RecordDict

from adapter.protocol import FACT_RANGES, PROFILE, DeviceAnnouncement
from optimizer.allocator import make_allocator
from strategy.flower_internals import identify_process, set_metadata
from strategy.round.fleet import Estimates, Fleet, Work
from strategy.round.roster import Directory, FederationError, query_directory, refresh_directory, wait_for_nodes
from tests.strategy.test_base import K, _fleet
from tests.support.adapters import small_spec


class Nodes:
    """A grid whose nodes answer the query with what the test gives them: a record, an error or silence (None)."""

    def __init__(self, answers: dict[int, Any]) -> None:
        identify_process(1)
        self.answers, self.asked = answers, []

    def get_node_ids(self) -> list[int]:
        return list(self.answers)

    def send_and_receive(self, messages: list[Message], *, timeout: float) -> list[Message]:
        replies = []
        for message in messages:
            node = message.metadata.dst_node_id
            self.asked.append(node)
            set_metadata(message, message_id=f"{len(self.asked):064x}")
            answer = self.answers[node]
            if answer is None:
                continue
            content = answer if isinstance(answer, Error) else RecordDict({PROFILE: MetricRecord(answer)})
            replies.append(Message(content, reply_to=message))
        return replies[::-1]


def _is(partition: int, n: int = 50, **more: float) -> dict[str, float]:
    return {"partition-id": partition, "num-examples": n, "num-holdout": 0, **more}


def _ask(answers: dict[int, Any], **options: Any) -> Directory:
    grid = Nodes(answers)
    return query_directory(grid, list(answers), b"code", 1.0, **{"places": len(answers), **options})  # type: ignore[arg-type]


def test_places_follow_the_partitions_not_the_nodes() -> None:
    directory = _ask({7: _is(1, 20), 5: _is(0, 10)})
    assert directory.node_ids == (5, 7) and directory.num_examples == (10, 20) and directory.setup_bytes > 100


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({1: _is(0), 2: None}, "no answer from \\[1\\]"),
        ({1: _is(0), 2: _is(0)}, "two devices claim partition 0"),
        ({1: _is(0), 2: Error(2, "Traceback\nValueError: no file")}, "ValueError: no file"),
        ({1: _is(0), 2: _is(5)}, "announces partition 5"),
        ({1: _is(0), 2: _is(1, -4)}, "num-examples must be"),
        ({1: _is(0), 2: _is(1, **{"cpu-hz": 1e30})}, "cpu-hz must be a number from"),
    ],
)
def test_without_a_least_number_nobody_may_be_missing(answers: dict[int, Any], message: str) -> None:
    with pytest.raises(FederationError, match=message):
        _ask(answers)
    directory = _ask(answers, places=2, least=1)
    assert directory.present.size == 1
    with pytest.raises(FederationError):
        _ask(answers, places=2, least=2)


@pytest.mark.parametrize(
    ("intruder", "message"),
    [
        (_is(0), "two devices claim partition 0"),
        (_is(2), "announces partition 2"),
        (Error(2, "ValueError: other code"), "other code"),
    ],
)
def test_a_node_too_many_does_not_end_a_run_whose_places_are_taken(intruder: Any, message: str) -> None:
    grid = Nodes({1: _is(0), 2: _is(1), 3: intruder})
    directory = query_directory(grid, [1, 2, 3], b"code", 1.0, places=2)  # type: ignore[arg-type]
    assert directory.present.tolist() == [0, 1] and len(directory.refused) == 1
    # It is said which node that was, once: in the first round's record.
    later, changes = refresh_directory(grid, directory, b"code", 1.0)  # type: ignore[arg-type]
    (reason,), (node,) = changes.refused, directory.refused
    assert message in reason and reason.endswith(f"; node {node} was turned away") and len(grid.asked) == 3
    assert not refresh_directory(grid, later, b"code", 1.0)[1].refused  # type: ignore[arg-type]


def test_whoever_is_turned_away_while_others_begin_is_recorded() -> None:
    grid = Nodes({1: _is(0), 2: Error(2, "ValueError: no file")})
    directory = query_directory(grid, [1, 2], b"code", 1.0, places=2, least=1)  # type: ignore[arg-type]
    assert "no file" in refresh_directory(grid, directory, b"code", 1.0)[1].refused[0]  # type: ignore[arg-type]


def test_leavers_leave_their_place_to_newcomers() -> None:
    grid = Nodes({10: _is(0, 5), 11: _is(1, 6), 12: _is(2, 7)})
    directory = query_directory(grid, [10, 11, 12], b"code", 1.0, 3)  # type: ignore[arg-type]
    del grid.answers[11]
    directory, changes = refresh_directory(grid, directory, b"code", 1.0)  # type: ignore[arg-type]
    assert changes.left == [1] and directory.present.tolist() == [0, 2] and len(grid.asked) == 3
    grid.answers |= {20: _is(1, 60), 21: _is(2, 70), 22: Error(2, "ValueError: broken"), 23: None}
    directory, changes = refresh_directory(grid, directory, b"code", 1.0)  # type: ignore[arg-type]
    assert changes.joined == [1] and directory.node_ids == (10, 20, 12) and directory.num_examples == (5, 60, 7)
    assert sorted(reason.split(";")[0] for reason in changes.refused) == [
        "a device could not start: ValueError: broken",
        "two devices claim partition 2",
    ]
    asked = len(grid.asked)
    directory, changes = refresh_directory(grid, directory, b"code", 1.0)  # type: ignore[arg-type]
    assert grid.asked[asked:] == [23] and not changes.joined and not changes.left and not changes.refused


def test_announced_facts_and_a_measured_step_enter_the_plan() -> None:
    work = lambda n: Work(np.full(n.size, 3.2e9), np.full(n.size, 3.2e8), np.full(n.size, 4.0))  # noqa: E731
    fleet = replace(_fleet(), work=work, flops_per_cycle=np.full(K, 32.0))
    facts = {"cpu-hz": 2e9, "max-tx-power-w": 0.05, "energy-budget-j": 3.0, "step-s": 0.5}
    planned = fleet.with_announcement(2, DeviceAnnouncement(2, 77, 0, facts)).problem(1, np.arange(K))
    assert planned.cpu_hz.tolist() == [1e9, 1e9, 2e9, 1e9] and planned.max_tx_power_w[2] == 0.05
    assert planned.energy_budget_j[2] == 3.0 and planned.num_examples[2] == 77
    assert planned.total_examples == planned.num_examples.sum()
    assert (planned.fixed_cycles[2] + planned.adapter_cycles[2]) / planned.cpu_hz[2] == pytest.approx(4 * 0.5)
    assert planned.fixed_cycles[0] == 1e8


def test_measurements_move_estimates_by_their_weight_and_within_bounds() -> None:
    estimates = Estimates(np.ones(K), np.ones(K))
    estimates.observe("compute", 1, 4.0, 0.5)
    assert estimates.compute.tolist() == [1, 2, 1, 1]
    for _ in range(200):
        estimates.observe("compute", 2, 1e300, 1.0)
        estimates.observe("link", 3, 0.0, 1.0)
    assert estimates.compute[2] == 1e4 and estimates.link[3] == 1.0
    problem = estimates.applied(_fleet().template)
    assert problem.fixed_cycles[1] == 2e8 and problem.channel_gain[0] == _fleet().template.channel_gain[0]


def _planner() -> Fleet:
    work = lambda n: Work(np.full(n.size, 3.2e9), np.full(n.size, 3.2e8), np.full(n.size, 4.0))  # noqa: E731
    return replace(_fleet(), work=work, flops_per_cycle=np.full(K, 32.0))


def test_a_newcomer_inherits_nothing_that_its_predecessor_announced_or_was_measured_at() -> None:
    fleet = _planner()
    facts = {"cpu-hz": 2e9, "max-tx-power-w": 0.05, "flops-per-cycle": 64.0, "step-s": 0.5}
    there = fleet.with_announcement(1, DeviceAnnouncement(1, 77, 0, facts))
    assert there.estimates is not None
    there.estimates.observe("link", 1, 0.2, 1.0)
    there.estimates.observe("link", 2, 0.5, 1.0)
    after = there.with_announcement(1, DeviceAnnouncement(1, 77))
    fresh = fleet.with_announcement(1, DeviceAnnouncement(1, 77))
    ours, plain = after.problem(1, np.arange(K)), fresh.problem(1, np.arange(K))
    for name in ("cpu_hz", "max_tx_power_w", "fixed_cycles", "adapter_cycles"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(plain, name), err_msg=name)
    assert (ours.channel_gain / plain.channel_gain).tolist() == [
        1,
        1,
        0.5,
        1,
    ]  # the others keep what was learnt of them


def test_a_newcomer_starts_with_the_rank_of_its_class() -> None:
    from strategy import HetLora, StrategySettings
    from strategy.round.attendance import refresh

    grid = Nodes({10 + k: _is(k) for k in range(K)})
    directory = query_directory(grid, list(grid.answers), b"code", 1.0, len(grid.answers))  # type: ignore[arg-type]
    settings = StrategySettings(code=b"code", ranks=(2,) * K)
    strategy = HetLora(
        spec=small_spec(), fleet=_planner(), directory=directory, allocator=make_allocator("equal"), settings=settings
    )
    strategy.ranks[1] = strategy.ranks[2] = 1  # as after a pruning
    del grid.answers[11]
    grid.answers[20] = _is(1)
    assert refresh(grid, strategy).joined == [1]  # type: ignore[arg-type]
    assert strategy.ranks == [2, 2, 1, 2]


@pytest.mark.parametrize("announced_hz", [1e6, 3.7e9, 1e12])
def test_an_announced_clock_moves_the_range_of_clocks_with_it(announced_hz: float) -> None:
    fleet = _planner()
    hz = fleet.template.cpu_hz
    fleet = replace(fleet, template=replace(fleet.template, min_cpu_hz=0.3 * hz, max_cpu_hz=1.0 * hz))
    planned = fleet.with_announcement(1, DeviceAnnouncement(1, 77, 0, {"cpu-hz": announced_hz})).problem(
        1, np.arange(K)
    )
    assert planned.min_cpu_hz is not None and planned.max_cpu_hz is not None
    assert planned.max_cpu_hz.tolist() == [1e9, announced_hz, 1e9, 1e9]
    assert planned.min_cpu_hz[1] == pytest.approx(0.3 * announced_hz)


@pytest.mark.parametrize("free_clock", [False, True])
@pytest.mark.parametrize("name", ["exact", "equal", "proportional", "psca", "random", "fixed", "none", "common"])
def test_nothing_that_a_device_announces_ends_the_planning(name: str, free_clock: bool) -> None:
    fleet, rng = _planner(), np.random.default_rng(0)
    if free_clock:
        hz = fleet.template.cpu_hz
        fleet = replace(fleet, template=replace(fleet.template, min_cpu_hz=0.3 * hz, max_cpu_hz=hz))
    extremes = {fact: bounds for fact, bounds in FACT_RANGES.items() if fact != "memory-mib"}
    served = 0
    for trial in range(12):
        facts = {fact: float(rng.choice(bounds)) for fact, bounds in extremes.items() if rng.random() < 0.5}
        liar = fleet.with_announcement(1, DeviceAnnouncement(1, int(rng.choice([1, 10**9])), 0, facts))
        weights = np.minimum(liar.template.num_examples, 400.0)
        problem = liar.problem(1, np.arange(K), weights=weights)
        solution = make_allocator(name, dropout_rate=0.5).allocate(problem, rng=np.random.default_rng(trial))
        served += int(solution.scheduled[[0, 2, 3]].sum())
    assert served, "the others are served"


class _Nodes:
    def __init__(self, *counts: int) -> None:
        self.counts = list(counts)

    def get_node_ids(self) -> list[int]:
        count = self.counts.pop(0) if len(self.counts) > 1 else self.counts[0]
        return list(range(count))


def test_all_nodes_are_waited_for() -> None:
    # Trap 5: the server starts before the nodes do; 2 of 10 were there in round 1.
    said: list[str] = []
    assert len(wait_for_nodes(_Nodes(0, 2, 2, 10), 10, 5.0, said.append)) == 10  # type: ignore[arg-type]
    assert said == ["waiting for devices: 0 of 10", "waiting for devices: 2 of 10"]


def test_too_few_nodes_say_how_to_start() -> None:
    said = r"expected 10 devices .* found 2 after 0.3 s; start .*min_devices.*num-supernodes=10"
    with pytest.raises(FederationError, match=said):
        wait_for_nodes(_Nodes(2), 10, 0.3, lambda _: None)  # type: ignore[arg-type]


def test_nodes_too_many_are_asked_who_they_are() -> None:
    # Any registered node can be there; those that have no place are turned away one by one, and the run goes on.
    assert len(wait_for_nodes(_Nodes(11), 10, 0.3, lambda _: None)) == 11  # type: ignore[arg-type]
