"""The attacks of the poisoning study reach the server, and its table says what was measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.poisoning import BILLION, Case, hostile, poisoned, run_case, table
from tests.support.runs import FAST, rounds, run


def test_a_scaled_answer_and_a_claimed_billion_reach_the_server_and_are_held(tmp_path: Path) -> None:
    for attack in ("scaled", "claim"):
        with hostile(attack, frozenset({2}), 0):
            assert run(tmp_path / attack, "run.num_rounds=1", "network.total_bandwidth_hz=1e7", "tracking=none") == 0
    (scaled,), (claim,) = rounds(tmp_path / "scaled"), rounds(tmp_path / "claim")
    held = {row["device"]: row["norm"] / row["threshold"] for row in scaled["clipped"]}
    assert held["device-2"] > 5 > max([1.0, *(ratio for name, ratio in held.items() if name != "device-2")])
    assert [(row["device"], row["num_examples"]) for row in claim["capped"]] == [("device-2", BILLION)]
    assert not scaled["failures"] and not claim["failures"] and claim["answers"] == {"asked": 4, "used": 4}


def test_a_case_is_scored_and_the_devices_are_honest_afterwards(tmp_path: Path) -> None:
    overrides = (*FAST, "run.num_rounds=1", "network.total_bandwidth_hz=1e7")
    case, out = Case("label flip", 1, "trimmed_mean", 0), tmp_path / "out"
    score = run_case(case, overrides, out)
    (record,) = rounds(case.folder(out))
    assert 0 <= score <= 1 and 0 <= record["robust"]["unmoved"] < 1
    made = (case.folder(out) / "rounds.jsonl").stat().st_mtime_ns
    assert run_case(case, overrides, out) == score
    assert (case.folder(out) / "rounds.jsonl").stat().st_mtime_ns == made  # not run again
    assert run(tmp_path / "b", "run.num_rounds=1", "network.total_bandwidth_hz=1e7", "tracking=none") == 0
    assert rounds(tmp_path / "b")[0]["capped"] == []


def test_noise_is_ten_times_as_long_as_the_change() -> None:
    flat = np.arange(-50, 50, dtype="<f4")
    noise = poisoned("noise", flat, np.random.default_rng(0))
    assert noise.dtype == flat.dtype and np.linalg.norm(noise) == pytest.approx(10 * np.linalg.norm(flat), rel=1e-5)


def test_the_table_has_a_line_per_attack_and_number_and_a_mean_per_average() -> None:
    scores = {Case("sign flip", 0, "median", 0): 0.9}
    scores |= {Case("scaled", 2, "default", seed): score for seed, score in enumerate((0.7, 0.8))}
    lines = table(scores).splitlines()
    assert lines[0] == "| attack | hostile | default | median |"
    assert lines[2:] == ["| none | 0 |  | 0.900 (n=1) |", "| scaled | 2 | 0.750 (0.70 to 0.80, n=2) |  |"]
