"""The scripts of examples/ run as they are, and print what the docs say they print."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def _output(name: str) -> str:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_there_are_three() -> None:
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == {
        "optimizer_alone.py",
        "custom_allocator.py",
        "custom_task.py",
    }


def test_the_optimizer_alone() -> None:
    text = _output("optimizer_alone.py")
    objectives = {name: float(value) for name, value in re.findall(r"^(\w+) +objective ([\d.]+)", text, flags=re.M)}
    assert set(objectives) == {"exact", "psca", "equal", "none"}
    served = dict(re.findall(r"^(\w+) .*; (\d) of 8", text, flags=re.M))
    assert served["exact"] == served["equal"] == "8" and objectives["exact"] <= objectives["equal"] + 1e-5
    assert text.count("kHz") == 8


@pytest.mark.slow
def test_an_allocator_of_ones_own_decides_every_round() -> None:
    text = _output("custom_allocator.py")
    assert re.findall(r"round \d: \S+:(\w+), notes (\[\])", text) == [("by_examples", "[]")] * 2
    shares = [(int(n), float(b)) for n, b in re.findall(r"(\d+) examples, ([\d.]+) kHz", text)[:5]]
    assert len(shares) == 5
    ratios = [band / examples for examples, band in shares]
    assert max(ratios) == pytest.approx(min(ratios), rel=0.02)


def test_a_task_of_ones_own_is_learnt() -> None:
    text = _output("custom_task.py")
    assert re.findall(r": (food|travel) \(", text) == ["food", "travel"]
