"""Which cases of a parametrised test run by default."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def first(count: int, values: Iterable[Any]) -> list[Any]:
    """The first cases as they are; the others, of the same kind, are slow tests."""
    listed = list(values)
    return [*listed[:count], *(pytest.param(value, marks=pytest.mark.slow) for value in listed[count:])]
