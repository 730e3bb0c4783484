"""Tables are read whole: the console, whose width another test's terminal may have fixed, is wide."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fedlodrop.commands.shared import out


@pytest.fixture(autouse=True)
def wide_console() -> Iterator[None]:
    before = out.width
    out.width = 200
    yield
    out.width = before
