"""What a command costs: wall time, and CPU time and peak memory of every process it starts, daemons included.

``getrusage`` misses processes whose parent does not wait for them (Ray's workers, the SuperLink's helpers), so the tree
is looked at ten times a second and every process is remembered by its last reading. What a process uses after its last
reading is missed: at most a tenth of a second each.
"""

import contextlib
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import psutil

_EVERY_S = 0.1
_WORKER = "ray::ClientAppActor"


@dataclass
class Usage:
    """Cost of a command and of all processes that it started."""

    code: int  # exit code; -1: ended because it took too long
    began_at: float  # Unix time [s]
    wall_s: float
    cpu_s: float  # user and system time of all processes [s]
    worker_peak_rss_mib: float | None  # largest resident set that a Ray worker ever had
    by_process: dict[str, float]  # CPU time of each kind of process [s], largest first


class _Tree:
    def __init__(self, root: psutil.Process) -> None:
        self.root, self.alive = root, {root}
        self.spent: dict[psutil.Process, tuple[str, float]] = {}  # kind and CPU time [s] at the last reading
        self.worker_peak_mib = 0.0

    def look(self) -> None:
        for process in list(self.alive):  # whose parent has gone is no longer in the tree, but still known
            with contextlib.suppress(psutil.Error):
                if process == self.root or process.ppid() == 1:
                    self.alive.update(process.children(recursive=True))
        for process in list(self.alive):
            try:
                times, kind = process.cpu_times(), _kind(process)
                self.spent[process] = kind, times.user + times.system
                if kind == _WORKER:
                    self.worker_peak_mib = max(self.worker_peak_mib, peak_rss_mib(process.pid))
            except psutil.Error:
                self.alive.discard(process)  # it has ended; its last reading stays


def watch(command: Sequence[str], *, env: dict[str, str], cwd: Path, log: Path, timeout_s: float = 1800.0) -> Usage:
    """Run a command to its end, or for ``timeout_s`` seconds, and measure it; ``log`` takes what it prints."""
    began_at, began = time.time(), time.perf_counter()
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=env, cwd=cwd, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    tree = _Tree(psutil.Process(process.pid))
    code: int | None = None
    try:
        while code is None and time.perf_counter() - began < timeout_s:
            tree.look()
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(_EVERY_S)
    finally:
        wall_s = time.perf_counter() - began
        if code is None:
            for member in tree.alive:
                with contextlib.suppress(psutil.Error):
                    member.kill()
            process.wait()
    by_kind: dict[str, float] = {}
    for kind, seconds in tree.spent.values():
        by_kind[kind] = by_kind.get(kind, 0.0) + seconds
    ordered = dict(sorted(by_kind.items(), key=lambda item: -item[1]))
    ended, peak_mib = -1 if code is None else code, tree.worker_peak_mib or None
    return Usage(ended, began_at, wall_s, sum(ordered.values()), peak_mib, ordered)


def interleaved(cases: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, float]:
    """Return the median of what each case says [s], asked in turns, after one turn to warm up."""
    turns = [{name: run() for name, run in cases.items()} for _ in range(repeats + 1)]
    return {name: median(turn[name] for turn in turns[1:]) for name in cases}


def _kind(process: psutil.Process) -> str:
    line: list[str] = process.cmdline()
    if not line:
        return str(process.name())
    if line[0].startswith("ray::"):
        return _WORKER if line[0].startswith(_WORKER) else line[0].split()[0]
    names = [Path(part).name for part in line[:2]]
    return names[1] if names[0].startswith("python") and len(names) > 1 and names[1] else names[0]


def peak_rss_mib(pid: int) -> float:
    """Peak resident set of a process as the kernel keeps it [MiB]; 0 where it has ended or there is no such file."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))
    return 0.0
