"""Memory that is free inside the process but not for the system."""

from __future__ import annotations

import contextlib
import ctypes


def trim_heap() -> None:
    """Give unused memory back to the system, where the C library can (glibc).

    A round's answers come and go by the thousand, and the few small records that stay of each keep the pages around
    them.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
