"""A process of its own ends when whoever started it is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from optimizer.apart import ChildError, run_apart

PARENT = """
import sys
from optimizer.apart import run_apart
from tests.optimizer.test_apart import tell_and_wait

if __name__ == "__main__":
    run_apart(tell_and_wait, sys.argv[1])
"""


def tell_and_wait(path: str) -> None:
    """Write the process's number to a file and stay."""
    Path(path).with_suffix(".part").write_text(str(os.getpid()))
    Path(path).with_suffix(".part").rename(path)
    time.sleep(600)


def _until(holds, limit_s: float) -> bool:
    end = time.monotonic() + limit_s
    while time.monotonic() < end and not holds():
        time.sleep(0.05)
    return bool(holds())


def _runs(number: int) -> bool:
    try:
        state = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_no_child_outlives_a_parent_that_is_killed(tmp_path: Path) -> None:
    told = tmp_path / "number"
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(told)], cwd=Path(__file__).parents[2])
    try:
        assert _until(told.exists, 120.0)
        child = int(told.read_text())
        assert _runs(child)
        os.kill(parent.pid, signal.SIGKILL)
        assert _until(lambda: not _runs(child), 30.0)
    finally:
        parent.kill()
        parent.wait()


def test_answers_errors_and_late_children() -> None:
    assert run_apart(max, 1, 2) == 2
    with pytest.raises(ChildError, match="ValueError"):
        run_apart(int, "x")
    with pytest.raises(TimeoutError):
        run_apart(time.sleep, 60, limit_s=1.0)
