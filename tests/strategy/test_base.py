"""The strategy's hooks on a grid of fakes: lists, matching of replies, silence, duplicates, strays."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from adapter import RoundInstruction, RoundReport, pack, payload_coefficients, sample_mask, unpack
from adapter.protocol import BUFFER, INSTRUCTION, REPORT, DeviceAnnouncement, buffer_fields
from optimizer.allocator import make_allocator
from optimizer.problem import BoundConstants, ResourceProblem
from server_app.engines.in_process import LocalGrid
from strategy import FedIT, FedLoDrop, StrategySettings
from strategy.flower_internals import identify_process, set_metadata
from strategy.round.checks import WORKER_DIED
from strategy.round.fleet import Fleet
from strategy.round.messages import state_to_record
from strategy.round.roster import Directory
from tests.support.adapters import random_state, small_spec

SPEC, K = small_spec(), 4
EXAMPLES = (50, 100, 200, 400)  # the best dropout rate depends on them
NODES = tuple(2**63 + k for k in range(K))


def _fleet() -> Fleet:
    fixed, droppable = payload_coefficients(SPEC, "fp32")
    gain = np.geomspace(1e-12, 1e-9, K)
    template = ResourceProblem(
        access="fdma",
        deadline_s=2.0,
        noise_psd_w_per_hz=4e-21,
        max_dropout_rate=0.7,
        bound=BoundConstants(0.05, 1.0, 1.0, 0.5, 2.0, 0.1),
        device_ids=tuple(f"device-{k}" for k in range(K)),
        num_examples=np.array(EXAMPLES, dtype=float),
        channel_gain=gain,
        downlink_rate_bps=np.full(K, 1e7),
        cpu_hz=np.full(K, 1e9),
        capacitance=np.full(K, 1e-28),
        fixed_cycles=np.full(K, 1e8),
        adapter_cycles=np.full(K, 1e7),
        max_tx_power_w=np.full(K, 0.2),
        energy_budget_j=np.full(K, 5.0),
        droppable_bits=np.full(K, droppable),
        fixed_bits=np.full(K, fixed),
        total_bandwidth_hz=4e3,
    )
    return Fleet(template, ("phone",) * K, lambda server_round: gain * (1 + 0.1 * server_round))


@pytest.fixture
def strategy() -> FedLoDrop:
    identify_process(1)
    return _strategy(FedLoDrop)


def _strategy(kind: type[FedLoDrop] | type[FedIT]) -> FedLoDrop | FedIT:
    directory = Directory(NODES, tuple(DeviceAnnouncement(k, n, 10 + 20 * k) for k, n in enumerate(EXAMPLES)))
    settings = StrategySettings(code=b"12345678")
    return kind(spec=SPEC, fleet=_fleet(), directory=directory, allocator=make_allocator("exact"), settings=settings)


def _ask(strategy: FedLoDrop) -> list[Message]:
    messages = strategy.configure_train(1, state_to_record(random_state(SPEC)), ConfigRecord(), None)  # type: ignore[arg-type]
    for number, message in enumerate(messages):
        set_metadata(message, message_id=f"{number:064x}")
    return messages


def _answer(message: Message, value: float = 0.0) -> Message:
    instruction = RoundInstruction.from_record(message.content[INSTRUCTION])
    mask = sample_mask(SPEC, instruction.mask_seed, instruction.dropout_rate)
    received = unpack(SPEC, message.content[BUFFER][BUFFER].data, mask, "fp32")
    for part in (received.lora_A, received.lora_B, received.head):
        for name in part:
            part[name] = np.full_like(part[name], value)
    report = RoundReport(1, instruction.mask_seed, EXAMPLES[NODES.index(message.metadata.dst_node_id)], 0.5, 1.0)
    fields = buffer_fields(pack(SPEC, received, mask, "fp32"))
    content = RecordDict({BUFFER: ArrayRecord({BUFFER: Array(**fields)}), REPORT: MetricRecord(report.to_record())})
    return Message(content, reply_to=message)


def test_one_message_of_its_own_per_device_in_a_list(strategy: FedLoDrop) -> None:
    # Trap 6: a generator works in simulation and fails in deployment, where the grid iterates twice.
    messages = _ask(strategy)
    assert isinstance(messages, list) and len(messages) == K
    assert [m.metadata.dst_node_id for m in messages] == list(NODES)
    rates = [m.content[INSTRUCTION]["dropout-rate"] for m in messages]
    assert len(set(rates)) > 1 and len({m.content[INSTRUCTION]["mask-seed"] for m in messages}) == K
    assert len({len(m.content[BUFFER][BUFFER].data) for m in messages}) > 1


def test_the_local_grid_refuses_a_generator() -> None:
    def messages() -> Iterator[Message]:
        yield from ()

    grid = LocalGrid(None, 1, {})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="must be a list"):
        grid.send_and_receive(messages())


def test_all_answers_in_any_order_give_the_same_model(strategy: FedLoDrop) -> None:
    messages = _ask(strategy)
    answers = [_answer(message, 0.1 * k) for k, message in enumerate(messages)]
    first, metrics = strategy.aggregate_train(1, answers)
    assert metrics is not None and metrics["train-loss"] == 0.5
    again = _strategy(FedLoDrop)
    second, _ = again.aggregate_train(1, [_answer(m, 0.1 * k) for k, m in enumerate(_ask(again))][::-1])
    assert first is not None and second is not None
    assert first.object_id == second.object_id


def test_an_error_of_the_superlink_is_laid_to_the_right_device(strategy: FedLoDrop) -> None:
    # Trap 8: error replies that the SuperLink makes carry its own number as their source.
    messages = _ask(strategy)
    error = Message(Error(5, "node unavailable"), reply_to=messages[2])
    set_metadata(error, src_node_id=1)
    strategy.aggregate_train(1, [error, *(_answer(m) for m in messages[:2])])
    assert strategy.ledger is not None
    failures = {failure["device"]: failure["kind"] for failure in strategy.ledger.failures}
    assert failures == {"device-2": "unavailable", "device-3": "no_answer"}


def test_second_answers_and_strays_change_nothing(strategy: FedLoDrop) -> None:
    messages = _ask(strategy)
    stray = _answer(messages[0], 9.0)
    set_metadata(stray, reply_to_message_id="f" * 64)
    arrays, _ = strategy.aggregate_train(1, [*(_answer(m) for m in messages), _answer(messages[1], 9.0), stray])
    assert strategy.ledger is not None
    assert [failure["kind"] for failure in strategy.ledger.failures] == ["duplicate", "stray"]
    unchanged = state_to_record(random_state(SPEC))
    assert arrays is not None and arrays.object_id == unchanged.object_id


def test_nobody_useful_means_no_new_model(strategy: FedLoDrop) -> None:
    messages = _ask(strategy)
    arrays, metrics = strategy.aggregate_train(1, [Message(Error(2, "no"), reply_to=m) for m in messages])
    assert arrays is None and metrics is None and strategy.ledger is not None
    assert len(strategy.ledger.failures) == K and strategy.ledger.to_dict()["train_loss"] is None


def test_scores_that_a_device_leaves_out_do_not_stop_the_server(strategy: FedLoDrop) -> None:
    strategy.settings = replace(strategy.settings, client_evaluation=True)
    _ask(strategy)
    questions = strategy.configure_evaluate(1, state_to_record(random_state(SPEC)), ConfigRecord(), None)  # type: ignore[arg-type]
    scores = [{"loss": 1.0, "accuracy": 0.5, "num-examples": 10}, {"loss": 3.0, "num-examples": 30}]
    for number, question in enumerate(questions):
        set_metadata(question, message_id=f"{number:064x}")
    pairs = zip(questions, scores, strict=False)
    metrics = strategy.aggregate_evaluate(
        1, [Message(RecordDict({REPORT: MetricRecord(score)}), reply_to=question) for question, score in pairs]
    )
    assert metrics is not None and metrics["loss"] == 2.5 and "accuracy" not in metrics


def test_fedit_drops_nothing() -> None:
    identify_process(1)
    messages = _ask(_strategy(FedIT))  # type: ignore[arg-type]
    assert messages and {m.content[INSTRUCTION]["dropout-rate"] for m in messages} == {0.0}


def test_a_huge_answer_is_scaled_to_the_median_and_recorded() -> None:
    identify_process(1)
    strategy = _strategy(FedLoDrop)
    strategy.guard.factor = 3.0
    messages = _ask(strategy)
    arrays, _ = strategy.aggregate_train(1, [_answer(m, 900.0 if k == 1 else 0.01) for k, m in enumerate(messages)])
    assert arrays is not None and strategy.ledger is not None
    (entry,) = strategy.ledger.to_dict()["clipped"]
    assert entry["device"] == "device-1" and entry["norm"] > 1e3 > entry["threshold"]
    before = state_to_record(random_state(SPEC))
    assert max(np.abs(arrays[name].numpy() - before[name].numpy()).max() for name in before) < 0.05


def test_the_median_of_the_devices_is_taken_where_asked() -> None:
    identify_process(1)
    strategy = _strategy(FedLoDrop)
    strategy.settings = replace(strategy.settings, robust="median")
    messages = _ask(strategy)
    arrays, _ = strategy.aggregate_train(
        1, [_answer(m, value) for m, value in zip(messages, (0.1, 0.1, 0.1, 50.0), strict=True)]
    )
    before = state_to_record(random_state(SPEC))
    assert arrays is not None
    np.testing.assert_allclose(arrays["head/head.bias"].numpy(), before["head/head.bias"].numpy() + 0.1, rtol=1e-5)


def test_a_device_that_announces_a_billion_examples_weighs_twice_the_median() -> None:
    identify_process(1)
    strategy = _strategy(FedLoDrop)
    strategy.settings = replace(strategy.settings, max_weight=2.0)
    counts = (10**9, *EXAMPLES[1:])  # lower median 200
    strategy.directory = Directory(NODES, tuple(DeviceAnnouncement(k, n) for k, n in enumerate(counts)))
    messages = _ask(strategy)
    answers = [_answer(message, 1.0 if k == 0 else 0.0) for k, message in enumerate(messages)]
    answers[0].content[REPORT]["num-examples"] = 10**9
    arrays, _ = strategy.aggregate_train(1, answers)
    assert arrays is not None and strategy.ledger is not None
    record = strategy.ledger.to_dict()
    assert record["capped"] == [{"device": "device-0", "num_examples": 10**9, "weight": 400.0}]
    assert [row["num_examples"] for row in record["devices"]] == list(counts) and record["answers"] == {
        "asked": 4,
        "used": 4,
    }
    before = state_to_record(random_state(SPEC))["head/head.bias"].numpy()
    np.testing.assert_allclose(arrays["head/head.bias"].numpy() - before, 400 / (400 + 100 + 200 + 400), rtol=1e-5)
    assert strategy.ledger.problem.total_examples == 1100  # the plan does not serve it alone, either


def _questions(strategy: FedLoDrop) -> list[Message]:
    strategy.settings = replace(strategy.settings, client_evaluation=True, max_weight=2.0)
    _ask(strategy)
    questions = strategy.configure_evaluate(1, state_to_record(random_state(SPEC)), ConfigRecord(), None)  # type: ignore[arg-type]
    for number, question in enumerate(questions):
        set_metadata(question, message_id=f"{100 + number:064x}")
    return questions


def _scores(question: Message, device: int, **more: float) -> Message:
    held_out = 10 + 20 * device
    return Message(
        RecordDict({REPORT: MetricRecord({"loss": 1.0, "num-examples": held_out} | more)}), reply_to=question
    )


def test_scores_are_matched_by_the_message_answered(strategy: FedLoDrop) -> None:
    questions = _questions(strategy)
    silent = Message(
        Error(5, "node unavailable"), reply_to=questions[1]
    )  # of the SuperLink, whose number is its source
    set_metadata(silent, src_node_id=1)
    masked = _scores(questions[2], 2)
    set_metadata(masked, src_node_id=NODES[0])
    stray = _scores(questions[0], 0)
    set_metadata(stray, reply_to_message_id="f" * 64)
    metrics = strategy.aggregate_evaluate(
        1, [silent, masked, stray, _scores(questions[0], 0), _scores(questions[0], 0)]
    )
    assert metrics is not None and metrics["num-examples"] == 10 and strategy.ledger is not None
    found = {
        (row["device"], row["message"].split(":")[0]) for row in strategy.ledger.failures if row["kind"] == "evaluation"
    }
    assert found == {
        ("device-1", "unavailable"),
        ("device-2", "source"),
        (None, "stray"),
        ("device-0", "duplicate"),
        ("device-3", "no_answer"),
    }


def test_a_worker_that_dies_while_it_evaluates_is_noticed(strategy: FedLoDrop) -> None:
    questions = _questions(strategy)
    strategy.aggregate_evaluate(1, [Message(Error(2, "ray.exceptions.ActorDiedError: gone"), reply_to=questions[0])])
    assert strategy.ledger is not None
    assert ("device-0", WORKER_DIED) in {(row["device"], row["kind"]) for row in strategy.ledger.failures}


def test_one_device_does_not_speak_for_all_in_the_evaluation(strategy: FedLoDrop) -> None:
    counts = (10, 30, 50, 10**9)
    strategy.directory = Directory(NODES, tuple(DeviceAnnouncement(k, EXAMPLES[k], n) for k, n in enumerate(counts)))
    questions = _questions(strategy)
    losses = (1.0, 1.0, 1.0, 9.0)
    replies = [_scores(q, k, loss=losses[k], **{"num-examples": counts[k]}) for k, q in enumerate(questions)]
    metrics = strategy.aggregate_evaluate(1, replies)
    assert metrics is not None and metrics["loss"] == pytest.approx((10 + 30 + 50 + 60 * 9) / 150)


@pytest.mark.parametrize("field", ["train-loss", "train-s", "upload-s"])
def test_an_absurd_number_in_a_report_is_refused_before_a_sum_overflows(strategy: FedLoDrop, field: str) -> None:
    messages = _ask(strategy)
    answers = [_answer(message) for message in messages]
    answers[1].content[REPORT][field] = 1e308
    strategy.aggregate_train(1, answers)
    assert strategy.ledger is not None
    assert [(row["device"], row["kind"]) for row in strategy.ledger.failures] == [("device-1", "report")]
    json.dumps(strategy.ledger.to_dict(), allow_nan=False)


def test_absurd_scores_are_refused_before_a_sum_overflows(strategy: FedLoDrop) -> None:
    questions = _questions(strategy)
    strategy.aggregate_evaluate(1, [_scores(q, k, loss=1.0 if k else 1e308) for k, q in enumerate(questions)])
    assert strategy.evaluation is not None and strategy.evaluation["loss"] == 1.0
