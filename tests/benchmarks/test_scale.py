"""A thousand devices in one process and ten thousand in the allocator: time and memory, reported beside a tenth of the size.

What grows faster than the number of devices shows as a ratio above ten.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conf.compose import ROOT
from optimizer.allocator import make_allocator
from optimizer.problem import ResourceProblem
from tests.optimizer.fleets import shared_instance

_ROUND = """
import json, resource, sys, time
from conf.compose import join_overrides
from server_app.engines.in_process import run_in_process
count, folder = int(sys.argv[1]), sys.argv[2]
items = ["model=tiny", "run.engine=local", "run.num_rounds=1", f"network.num_devices={count}", f"task.train_limit={8 * count}",
         "task.validation_limit=16", "task.holdout=16", "run.train_eval_size=16", "training.local_steps=1",
         "training.batch_size=8", f"network.total_bandwidth_hz={36000 * count}", f"run.dir='{folder}'"]
began = time.process_time()
code = run_in_process(join_overrides(items), count)
print(json.dumps({"code": code, "cpu_s": time.process_time() - began,
                  "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
"""


def _round(count: int, folder: Path) -> dict[str, Any]:
    command = [sys.executable, "-c", _ROUND, str(count), str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


@pytest.mark.benchmark
def test_a_round_of_a_thousand_devices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small, large = _round(100, tmp_path / "100"), _round(1000, tmp_path / "1000")
    record = json.loads((tmp_path / "1000" / "rounds.jsonl").read_text())
    assert large["code"] == 0 and len(record["devices"]) == 1000
    assert (
        sum(device["uplink_bytes"] > 0 for device in record["devices"])
        == sum(d["scheduled"] for d in record["devices"])
        > 900
    )
    with capsys.disabled():
        for count, run in ((100, small), (1000, large)):
            print(
                f"\n{count} devices, one round, one process: {run['cpu_s']:.1f} CPU s, peak {run['peak_mib']:.0f} MiB",
                end="",
            )
        print(f"; ten times the devices cost {large['cpu_s'] / small['cpu_s']:.1f} times the CPU time")


def _repeated(problem: ResourceProblem, times: int) -> ResourceProblem:
    """A fleet of ``times`` copies whose channels differ, with as much more bandwidth."""
    rng = np.random.default_rng(0)
    arrays = {
        name: np.tile(value, times)
        for name, value in vars(problem).items()
        if isinstance(value, np.ndarray) and value.shape == (problem.num_devices,)
    }
    arrays["channel_gain"] = arrays["channel_gain"] * rng.lognormal(0.0, 0.5, arrays["channel_gain"].size)
    names = tuple(f"device-{k}" for k in range(problem.num_devices * times))
    return replace(problem, **arrays, device_ids=names, total_bandwidth_hz=problem.total_bandwidth_hz * times)


@pytest.mark.benchmark
def test_an_allocation_for_ten_thousand_devices(capsys: pytest.CaptureFixture[str]) -> None:
    base = shared_instance("fdma_k1000")
    allocator = make_allocator("exact")
    allocator.allocate(shared_instance("fdma_k10"), rng=np.random.default_rng(0))  # imports and caches
    spent = {}
    for times in (1, 10):
        problem = _repeated(base, times)
        began = time.process_time()
        solution = allocator.allocate(problem, rng=np.random.default_rng(0))
        spent[1000 * times] = time.process_time() - began
        assert solution.scheduled.sum() > 0 and solution.gap <= 1e-6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    with capsys.disabled():
        print(
            f"\nexact allocation: {', '.join(f'{k} devices {s:.3f} CPU s' for k, s in spent.items())}; peak {peak:.0f} MiB"
        )
