"""What a solve may need: a child with a limit on its address space ends with an answer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.cases import first

CHILD = """
import resource, sys, time
import numpy as np
from optimizer.allocator import load_method, make_allocator
from tests.optimizer.fleets import random_fleet
from tests.optimizer.ofdma_instances import random_problem

method, devices, subcarriers, limit_s = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
problem = random_problem(devices, subcarriers, 0) if subcarriers else random_fleet(0, devices)
load_method(method, problem.access)
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
began = time.process_time()
solution = make_allocator(method, time_limit_s=limit_s).allocate(problem, rng=np.random.default_rng(0))
# Not ru_maxrss: it begins with what the parent had.
peak_mib = next(float(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024
print(peak_mib, time.process_time() - began, solution.gap)
"""
CASES = {  # method, K, M, MiB at most, CPU seconds at most
    "fdma psca K=1000": ("psca", 1000, 0, 1000, 2.0),
    "fdma psca K=3000": ("psca", 3000, 0, 1000, 2.0),
    "psca K=20 M=128": ("psca", 20, 128, 500, 20.0),
    "psca K=50 M=256": ("psca", 50, 256, 1000, 30.0),
    "bnb K=50 M=256": ("bnb", 50, 256, 1000, 60.0),
    "bnb K=20 M=1024": ("bnb", 20, 1024, 1000, 60.0),
}


@pytest.mark.parametrize("name", first(3, CASES))
def test_memory(name: str) -> None:
    method, devices, subcarriers, most_mib, most_s = CASES[name]
    command = [sys.executable, "-c", CHILD, method, str(devices), str(subcarriers), "60"]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=root, check=False)
    assert done.returncode == 0, done.stderr[-500:]
    peak_mib, cpu_s, gap = map(float, done.stdout.split())
    print(f"\n{name}: {peak_mib:.0f} MiB, {cpu_s:.2f} CPU s, gap {gap:.1e}")
    assert peak_mib <= most_mib and cpu_s <= most_s and gap <= 2e-3
