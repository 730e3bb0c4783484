"""Every kind of broken or hostile reply is refused before it touches the model."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from adapter import RoundInstruction, RoundReport, gather, pack, rounding_rng, sample_mask
from adapter.protocol import BUFFER, REPORT, buffer_fields
from strategy.flower_internals import identify_process, set_metadata
from strategy.round.checks import Order, ReplyError, check_reply
from strategy.round.messages import train_message
from tests.support.adapters import random_state, small_spec

SPEC, FACTORS, NODE = small_spec(), ("A", "B"), 2**63 + 7
INSTRUCTION = RoundInstruction(3, 0.5, 12345, 1e5, 0.2, 4.0, 1.7e9, "AB", b"12345678")
MASK = sample_mask(SPEC, 12345, 0.5)
CHANGES = gather(SPEC, random_state(SPEC, 1), MASK)
ORDER = Order(0, SimpleNamespace(dst_node_id=NODE), INSTRUCTION, lambda: MASK, 160, 1000)  # type: ignore[arg-type]
REPORT_RECORD = RoundReport(3, 12345, 160, 0.7, 1.0).to_record()


@pytest.fixture(autouse=True)
def _identity() -> None:
    identify_process(1)


def _flat() -> np.ndarray:
    return pack(SPEC, CHANGES, MASK, "fp32")


def _content(flat: np.ndarray | None = None, **report: Any) -> RecordDict:
    fields = buffer_fields(_flat() if flat is None else flat)
    return RecordDict(
        {BUFFER: ArrayRecord({BUFFER: Array(**fields)}), REPORT: MetricRecord({**REPORT_RECORD, **report})}
    )


def _reply(content: RecordDict | Error, node: int = NODE) -> Message:
    message = train_message(_flat(), INSTRUCTION, node, 60.0)
    set_metadata(message, message_id="a" * 64)
    return Message(content, reply_to=message)


def test_a_good_reply_is_taken_apart_exactly() -> None:
    changes, report = check_reply(_reply(_content()), ORDER, SPEC, "fp32", FACTORS)
    np.testing.assert_array_equal(changes.lora_A["q"], CHANGES.lora_A["q"])
    assert report.num_examples == 160


def _nan() -> RecordDict:
    flat = _flat()
    flat[3] = np.nan
    return _content(flat)


def _inf() -> RecordDict:
    flat = _flat()
    flat[-1] = np.inf
    return _content(flat)


def _extra_record() -> RecordDict:
    content = _content()
    content["more"] = ConfigRecord({"x": 1})
    return content


def _extra_array() -> RecordDict:
    content = _content()
    content[BUFFER] = ArrayRecord({BUFFER: Array(**buffer_fields(_flat())), "more": Array(np.zeros(3))})
    return content


def _no_report() -> RecordDict:
    content = _content()
    del content[REPORT]
    return content


def _stype() -> RecordDict:
    content = _content()
    content[BUFFER] = ArrayRecord({BUFFER: Array(_flat())})
    return content


def _report_of_config() -> RecordDict:
    content = _content()
    content[REPORT] = ConfigRecord({**REPORT_RECORD, "train-loss": "small"})
    return content


CASES: dict[str, tuple[Callable[[], RecordDict | Error], str]] = {
    "client raised": (lambda: Error(2, "Traceback\nValueError: broken"), "client_error"),
    "expired": (lambda: Error(3, "late"), "expired"),
    "unavailable": (lambda: Error(5, "gone"), "unavailable"),
    "other error": (lambda: Error(0, "KeyError: 'x'"), "error"),
    "dead worker": (lambda: Error(0, "<class 'ray.exceptions.ActorDiedError'>:<'The actor died.'>"), "worker_died"),
    "not finite": (_nan, "payload"),
    "infinite": (_inf, "payload"),
    "one value short": (lambda: _content(_flat()[:-1]), "payload"),
    "one value more": (lambda: _content(np.append(_flat(), np.float32(0))), "payload"),
    "dense adapter": (lambda: _content(pack(SPEC, random_state(SPEC), sample_mask(SPEC, 0, 0.0), "fp32")), "payload"),
    "empty": (lambda: _content(_flat()[:0]), "payload"),
    "double precision": (lambda: _content(_flat().astype("<f8")), "dtype"),
    "half precision": (lambda: _content(_flat().astype("<f2")), "dtype"),
    "integers": (lambda: _content(_flat().astype("<i4")), "dtype"),
    "file header": (_stype, "dtype"),
    "extra record": (_extra_record, "keys"),
    "extra array": (_extra_array, "keys"),
    "no report": (_no_report, "keys"),
    "report of another kind": (_report_of_config, "keys"),
    "other round": (lambda: _content(**{"server-round": 2}), "round"),
    "other seed": (lambda: _content(**{"mask-seed": 1}), "seed"),
    "more examples than announced": (lambda: _content(**{"num-examples": 10**6}), "examples"),
    "negative examples": (lambda: _content(**{"num-examples": -5}), "report"),
    "loss not finite": (lambda: _content(**{"train-loss": float("nan")}), "report"),
    "loss a list": (lambda: _content(**{"train-loss": [1.0, 2.0]}), "report"),
    "unknown metric": (lambda: _content(**{"bonus": 1.0}), "report"),
}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_bad_reply_is_refused_with_its_kind(case: str) -> None:
    content, kind = CASES[case]
    with pytest.raises(ReplyError) as caught:
        check_reply(_reply(content()), ORDER, SPEC, "fp32", FACTORS)
    assert caught.value.kind == kind and str(caught.value)


def _quantised() -> np.ndarray:
    return pack(SPEC, CHANGES, MASK, "int8", rng=rounding_rng(12345, 3))


def test_a_quantised_reply_is_taken_apart_within_one_step() -> None:
    changes, _ = check_reply(_reply(_content(_quantised())), ORDER, SPEC, "int8", FACTORS)
    step = np.abs(CHANGES.lora_A["q"]).max(axis=1, keepdims=True) / 127
    assert (np.abs(changes.lora_A["q"] - CHANGES.lora_A["q"]) <= 1.001 * step).all()


@pytest.mark.parametrize("scale", [-1.0, np.nan, np.inf, 3e38])
def test_a_scale_that_is_negative_or_not_finite_is_refused(scale: float) -> None:
    flat = _quantised()
    flat[:4] = np.array([scale], "<f4").view(np.uint8)
    with pytest.raises(ReplyError, match="scale") as caught:
        check_reply(_reply(_content(flat)), ORDER, SPEC, "int8", FACTORS)
    assert caught.value.kind == "payload"


def test_a_quantised_reply_of_another_size_or_type_is_refused() -> None:
    cases = [(_quantised()[:-1], "payload"), (np.append(_quantised(), np.uint8(0)), "payload"), (_flat(), "dtype")]
    for flat, kind in cases:
        with pytest.raises(ReplyError) as caught:
            check_reply(_reply(_content(flat)), ORDER, SPEC, "int8", FACTORS)
        assert caught.value.kind == kind


def test_another_node_cannot_answer_for_a_device() -> None:
    with pytest.raises(ReplyError, match="expected an answer of node"):
        check_reply(_reply(_content(), node=NODE + 1), ORDER, SPEC, "fp32", FACTORS)
