"""What all tests share: nothing is read from, or left in, the folder where this user's runs keep their data."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(autouse=True, scope="session")
def _own_cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    with pytest.MonkeyPatch.context() as patch:
        for variable, name in (("HF_HOME", "huggingface"), ("MPLCONFIGDIR", "matplotlib")):  # slow to fill again
            patch.setenv(variable, os.environ.get(variable) or str(usual / name))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield
