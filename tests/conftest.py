"""What all tests share: nothing is read from, or left in, the folder where this user's runs keep their data."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from types import SimpleNamespace

import pytest


@pytest.fixture(autouse=True, scope="session")
def _own_cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = str(tmp_path_factory.mktemp("cache"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tasks.block_store.tempfile", SimpleNamespace(gettempdir=lambda: folder, mkstemp=tempfile.mkstemp))
        yield
