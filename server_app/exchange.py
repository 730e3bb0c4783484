"""Sending a round's messages and taking the answers one by one, as they come, until ``run.round_timeout_s``.

The deadline of a round (``budget.deadline_s``) is enforced elsewhere: in the plan by the allocator, whose solutions
`optimizer.feasibility` checks, and on the answers by `RoundLedger.lateness` in `strategy.round.ledger`.

Flower's own ``send_and_receive`` returns when the last answer is there, with all of them in memory, and over a network
it looks for answers every three seconds only.
"""

import time
from collections.abc import Iterator

from flwr.app import Message
from flwr.serverapp import Grid
from google.protobuf.message import DecodeError

# What parsing a message that a device garbled raises; a broken connection raises other types and ends the run.
_UNREADABLE = (ValueError, TypeError, KeyError, AttributeError, IndexError, DecodeError)
_AT_ONCE = 16  # answers that are in memory at a time, at most
_SHORTEST_S, _LONGEST_S = 0.02, 1.0
_POLL_SHARE = 0.1  # of the waiting time that goes into asking


def exchange(grid: Grid, messages: list[Message], timeout_s: float) -> Iterator[Message]:
    """Send messages and return an iterator over the answers, in the order in which they arrive.

    They are sent, and have identifiers, when this returns; it ends when all are answered, or ``timeout_s`` from now.
    """
    deadline = time.monotonic() + timeout_s
    identifiers = [str(name) for name in grid.push_messages(messages) if name] if messages else []
    return _answers(grid, identifiers, deadline)


def _answers(grid: Grid, identifiers: list[str], deadline: float) -> Iterator[Message]:
    waiting = dict.fromkeys(identifiers)  # ordered: whoever was asked first is looked for first
    while waiting and time.monotonic() < deadline:
        began, came = time.monotonic(), False
        names = list(waiting)
        for start in range(0, len(names), _AT_ONCE):
            for message in _pull(grid, names[start : start + _AT_ONCE], waiting):
                came = True
                waiting.pop(message.metadata.reply_to_message_id, None)
                yield message
                del message  # nothing of an answer stays while the next one is fetched
        if waiting and not came:
            asked_s = time.monotonic() - began
            time.sleep(min(max(asked_s / _POLL_SHARE, _SHORTEST_S), _LONGEST_S))


def _pull(grid: Grid, names: list[str], waiting: dict[str, None]) -> Iterator[Message]:
    """Fetch answers; one that Flower cannot parse is silence, not the end of the run, and takes no others with it."""
    try:
        yield from grid.pull_messages(names)
    except _UNREADABLE:
        if len(names) == 1:
            waiting.pop(names[0], None)
            return
        for name in names:
            if name in waiting:
                yield from _pull(grid, [name], waiting)
