"""What all tests share: nothing is read from, or left in, the folder where this user's runs keep their data."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.process import PROCESS_ENVIRONMENT

# As in every process of the product, and before anything loads PyTorch: threads that wait for each other sleep. On two
# cores that two test processes share, spinning makes a tiny run cost 2 CPU seconds instead of .5.
os.environ.setdefault("OMP_WAIT_POLICY", PROCESS_ENVIRONMENT["OMP_WAIT_POLICY"])


@pytest.fixture(autouse=True, scope="session")
def _own_cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    with pytest.MonkeyPatch.context() as patch:
        for variable, name in (("HF_HOME", "huggingface"), ("MPLCONFIGDIR", "matplotlib")):  # slow to fill again
            patch.setenv(variable, os.environ.get(variable) or str(usual / name))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _own_signal_handlers() -> Iterator[None]:
    """Put back what `fedlodrop.cli.main` takes over: a process that a later test forks would not end by SIGTERM."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
