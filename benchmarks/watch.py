"""What a command costs: wall time, and CPU time of every process it starts, daemons included; peak memory.

``getrusage`` misses processes whose parent does not wait for them (Ray's workers, the SuperLink's helpers), so the tree
is looked at ten times a second and every process is remembered by its last reading. What a process uses after its last
reading is missed: at most a tenth of a second each.
"""

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import psutil

from conf.compose import ROOT

_EVERY_S = 0.1


@dataclass(frozen=True)
class Usage:
    """Cost of a command and of all processes that it started."""

    code: int  # exit code; -1: ended because it took too long
    wall_s: float
    cpu_s: float  # user and system time of all processes [s]


def watch(command: Sequence[str], *, env: dict[str, str], cwd: Path, log: Path, timeout_s: float = 7200.0) -> Usage:
    """Run a command to its end, or for ``timeout_s`` seconds, and measure it; ``log`` takes what it prints."""
    began = time.perf_counter()
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=env, cwd=cwd, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    root = psutil.Process(process.pid)
    cpu_s, code = {root: 0.0}, None
    try:
        while code is None and time.perf_counter() - began < timeout_s:
            _look(root, cpu_s)
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(_EVERY_S)
    finally:
        wall_s = time.perf_counter() - began
        if code is None:
            for member in cpu_s:
                with contextlib.suppress(psutil.Error):
                    member.kill()
            process.wait()
    return Usage(-1 if code is None else code, wall_s, sum(cpu_s.values()))


def measured(command: list[str], log: Path) -> Usage:
    """Run a command of this checkout to its end and measure it; RuntimeError, with its last line, if it fails."""
    usage = watch(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=ROOT, log=log)
    if usage.code:
        last = log.read_text(errors="replace").strip().rpartition("\n")[2] or usage.code
        raise RuntimeError(f"a measured run failed ({' '.join(command[:3])}): {last}; see {log}")
    return usage


def _look(root: psutil.Process, cpu_s: dict[psutil.Process, float]) -> None:
    for process in list(cpu_s):  # whose parent has gone is no longer in the tree, but still known
        with contextlib.suppress(psutil.Error):
            if process == root or process.ppid() == 1:
                cpu_s |= dict.fromkeys(set(process.children(recursive=True)) - set(cpu_s), 0.0)
    for process in cpu_s:
        with contextlib.suppress(psutil.Error):  # one that has ended keeps its last reading
            times = process.cpu_times()
            cpu_s[process] = times.user + times.system


def interleaved(cases: Mapping[str, Callable[[], object]], repeats: int, steps: int) -> dict[str, float]:
    """Return the median CPU time of each case [s], over its ``steps``; in turns, after one turn to warm up."""
    spent: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(repeats + 1):
        for name, run in cases.items():
            began = time.process_time()
            run()
            spent[name].append((time.process_time() - began) / steps)
    return {name: median(seconds[1:]) for name, seconds in spent.items()}


def peak_rss_mib(pid: int) -> float:
    """Peak resident set of a process as the kernel keeps it [MiB]; 0 where it has ended or there is no such file."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))
    return 0.0
