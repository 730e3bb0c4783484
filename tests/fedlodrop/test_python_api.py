"""The Python API: its examples, its page, and a process that is left as it was found."""

from __future__ import annotations

import doctest
import subprocess
import sys
from pathlib import Path

import pytest

import fedlodrop
from conf.compose import ROOT, ConfigError
from fedlodrop.runs import RunError, RunInterrupted
from tests.fedlodrop.test_commands import HEAVY
from tests.support.runs import FAST

ITEMS = [item for item in FAST if not item.startswith("run.num_rounds")]


@pytest.mark.parametrize("name", fedlodrop.__all__)
def test_the_examples(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (example,) = doctest.DocTestFinder(recurse=False).find(getattr(fedlodrop, name), name, fedlodrop)
    result = doctest.DocTestRunner().run(example)
    assert result.attempted > 1 and result.failed == 0


def test_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = doctest.testfile(str(ROOT / "docs" / "python.md"), module_relative=False, optionflags=doctest.ELLIPSIS)
    assert result.attempted > 5 and result.failed == 0


def test_the_import_is_light() -> None:
    """No library that takes long to load; the seconds themselves are the machine's."""
    program = f"import sys, fedlodrop; print(*sorted({HEAVY | {'rich', 'typer'}!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


LEFT_AS_FOUND = """
import logging, os, signal, sys, threading
import sklearn, torch, flwr  # what their import leaves is not ours
import fedlodrop
torch.set_num_threads(1)
def state():
    loggers = [(name, logging.getLogger(name).level, list(logging.getLogger(name).handlers)) for name in ("flwr", None)]
    return dict(os.environ), loggers, [signal.getsignal(n) for n in signal.valid_signals()], torch.get_num_threads(), \\
        list(sys.argv), os.getcwd(), threading.active_count(), sys.excepthook, list(sys.path)
before = state()
fedlodrop.run(*sys.argv[1:], "training.num_threads=2", "run.num_rounds=1", "run.dir=a")
fedlodrop.sweep(*sys.argv[1:], "run.num_rounds=1", "allocator=equal", folder="b")
after = state()
assert before == after, [pair for pair in zip(before, after) if pair[0] != pair[1]]
"""


def test_the_process_is_left_as_it_was_found(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LEFT_AS_FOUND, *ITEMS], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == "", done.stdout  # and nothing was shown
    assert (tmp_path / "b" / "jobs.csv").exists()


def test_a_run_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="run.seed"):
        fedlodrop.run("run.sed=1", f"run.dir='{tmp_path}/a'")
    with pytest.raises(RunError, match="0 of .* answers used") as ended:
        fedlodrop.run(
            *ITEMS, "run.num_rounds=1", "training.lr=1e6", "training.max_grad_norm=null", f"run.dir='{tmp_path}/b'"
        )
    assert ended.value.exit_code == 3 and not (tmp_path / "a").exists()


def test_an_interrupted_run_is_named_and_loads_as_unfinished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("server_app.session.save_trained", stop)
    with pytest.raises(RunInterrupted, match="fedlodrop.resume") as ended:
        fedlodrop.run(*ITEMS, "run.num_rounds=2", f"run.dir='{tmp_path}/run'")
    assert ended.value.folder == tmp_path / "run"
    unfinished = fedlodrop.load(tmp_path / "run")
    assert unfinished.summary == {} and len(unfinished.rounds) == 2 and len(unfinished.devices) == 8
    assert "eval.accuracy" in unfinished.rounds and "uplink_bytes" in unfinished.devices
