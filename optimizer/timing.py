"""The one owner of the clock: how long the solve that is running may still take.

    with time_limit(5.0):
        ...                       # whoever loops asks time_is_up() and hands out what it has

Limits nest, the earliest counts. Every step between two questions must be short; what a method still has to do when
time is up (power, energy, figures) is not asked to stop, so the limit is taken to be over when nine tenths of it are,
and the outermost one a tenth of a second before its end at the latest.
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_STOP_AT: ContextVar[float] = ContextVar("stop_at", default=math.inf)
_SHARE, _LAST_S = 0.9, 0.1  # of a limit after which nothing new is begun, and what is left of it at least


class OutOfTime(Exception):
    """Leaves an iteration that has no other way out; never leaves the function that started it."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Let `time_is_up` say so ``seconds`` from now (a little before) while the block runs."""
    left_s = min(_SHARE * seconds, seconds - _LAST_S) if math.isinf(_STOP_AT.get()) else _SHARE * seconds
    token = _STOP_AT.set(min(_STOP_AT.get(), time.perf_counter() + left_s))
    try:
        yield
    finally:
        _STOP_AT.reset(token)


def time_is_up() -> bool:
    """Whether the earliest limit has passed."""
    return time.perf_counter() > _STOP_AT.get()


def remaining_s() -> float:
    """Seconds until then, infinite without a limit."""
    return _STOP_AT.get() - time.perf_counter()
