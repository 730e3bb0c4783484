"""Which cases of a parametrised test run by default."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def first(count: int, values: Iterable[Any]) -> list[Any]:
    """The first cases as they are; the others, of the same kind, are slow tests. A tuple holds several arguments."""
    listed = [value if isinstance(value, tuple) else (value,) for value in values]
    return [pytest.param(*case, marks=[pytest.mark.slow] * (k >= count)) for k, case in enumerate(listed)]
