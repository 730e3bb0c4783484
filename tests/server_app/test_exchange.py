"""Answers are taken as they come, a few at a time, and the waiting ends."""

from __future__ import annotations

import gc
import time
import weakref
from collections.abc import Iterable
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from server_app.engines.in_process import LocalGrid
from server_app.exchange import exchange
from strategy.flower_internals import identify_process, set_metadata


class _Grid:
    """Answers a message when it has been looked for often enough; counts what it is asked."""

    def __init__(self, after: int = 1, silent: tuple[str, ...] = ()) -> None:
        self.after, self.silent, self.pulls = after, silent, 0
        self.waiting: dict[str, Message] = {}
        self.largest = 0

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        for number, message in enumerate(messages):
            set_metadata(message, message_id=str(number))
            self.waiting[str(number)] = message
        return list(self.waiting)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        self.pulls += 1
        names = list(message_ids)
        self.largest = max(self.largest, len(names))
        if self.pulls < self.after:
            return []
        found = [self.waiting.pop(name) for name in names if name in self.waiting and name not in self.silent]
        return [Message(RecordDict(), reply_to=message) for message in found]


def _messages(count: int) -> list[Message]:
    identify_process(1)
    return [Message(RecordDict({"c": ConfigRecord({"k": k})}), 10 + k, "train", ttl=60.0) for k in range(count)]


def test_every_message_gets_its_answer_a_few_at_a_time() -> None:
    grid: Any = _Grid(after=3)
    answers = list(exchange(grid, _messages(40), 30.0))
    assert sorted(int(answer.metadata.reply_to_message_id) for answer in answers) == list(range(40))
    assert grid.largest == 16


def test_messages_are_on_their_way_before_the_first_answer_is_asked_for() -> None:
    grid: Any = _Grid()
    messages = _messages(3)
    answers = exchange(grid, messages, 30.0)
    assert [message.metadata.message_id for message in messages] == ["0", "1", "2"] and grid.pulls == 0
    assert len(list(answers)) == 3


def test_the_waiting_ends_and_what_came_is_kept() -> None:
    grid: Any = _Grid(silent=("1",))
    began = time.monotonic()
    answers = list(exchange(grid, _messages(3), 0.3))
    assert [answer.metadata.reply_to_message_id for answer in answers] == ["0", "2"]
    assert 0.3 <= time.monotonic() - began < 5


def test_nothing_to_send_is_no_question() -> None:
    grid: Any = _Grid()
    assert list(exchange(grid, [], 1.0)) == [] and grid.pulls == 0


@pytest.mark.parametrize("count", [3, 12])
def test_an_answer_is_gone_before_the_next_device_works(count: int) -> None:
    alive: list[weakref.ref[Message]] = []
    most = 0

    def client(message: Message, context: Any) -> Message:
        nonlocal most
        gc.collect()
        most = max(most, sum(ref() is not None for ref in alive))
        return Message(RecordDict(), reply_to=message)

    grid = LocalGrid(client, count, {})  # type: ignore[arg-type]
    messages = [Message(RecordDict(), node, "train", ttl=60.0) for node in grid.get_node_ids()]
    gc.freeze()  # libraries that other tests have loaded: collecting looks at what is new only
    try:
        for answer in exchange(grid, messages, 60.0):
            alive.append(weakref.ref(answer))
            del answer
    finally:
        gc.unfreeze()
    assert len(alive) == count and most <= 2  # however many devices there are


class _Garbled(_Grid):
    """The answer with number 1 cannot be parsed, whatever it is fetched with."""

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        if "1" in (names := list(message_ids)):
            raise ValueError("Error parsing message")
        return super().pull_messages(names)


def test_an_answer_that_cannot_be_parsed_is_silence_and_takes_no_other_with_it() -> None:
    messages = _messages(3)
    came = list(exchange(_Garbled(), messages, 5.0))  # type: ignore[arg-type]
    assert sorted(reply.metadata.reply_to_message_id for reply in came) == ["0", "2"]


def test_a_broken_connection_ends_the_run() -> None:
    grid = _Grid()
    grid.pull_messages = lambda _: (_ for _ in ()).throw(ConnectionError("gone"))  # type: ignore[method-assign, assignment]
    with pytest.raises(ConnectionError):
        list(exchange(grid, _messages(1), 5.0))  # type: ignore[arg-type]
