"""What a deployment's client process costs before its first training step: Flower starts one per message.

    python -m tests.benchmarks.client_start [overrides]

Prints CPU seconds (wall seconds beside them) of every stage of a fresh process, the median of three; the second table
repeats it with what an earlier process left on disk (states of the frozen layers).
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile

STAGES = """
import json, sys, time
begun, laps = (0.0, 0.0), []
wall0 = time.perf_counter()
def lap(name):
    global begun
    now = (time.process_time(), time.perf_counter() - wall0)
    laps.append((name, now[0] - begun[0], now[1] - begun[1]))
    begun = now
import flwr.app, flwr.clientapp; lap("python, flwr")
import client_app.app; lap("client app, configuration")
from flwr.app import RecordDict
from client_app.worker import open_device, shared_model; lap("torch and the project")
device = open_device({"overrides": sys.argv[1]}, {"partition-id": 0, "num-partitions": 10}); lap("data, tokenised")
shared = shared_model(device); lap("transformers, peft, weights")
from client_app.probe import one_step
one_step(shared, device); lap("first training step")
print(json.dumps(laps))
"""


def measure(overrides: str) -> list[tuple[str, float, float]]:
    """Return (stage, CPU seconds, wall seconds) of one fresh process."""
    done = subprocess.run([sys.executable, "-c", STAGES, overrides], capture_output=True, text=True, check=True)
    return [tuple(row) for row in json.loads(done.stdout.splitlines()[-1])]


def main() -> None:
    """Print both tables."""
    overrides = " ".join(sys.argv[1:])
    with tempfile.TemporaryDirectory() as root:
        fresh = (f"{root}/{k}" for k in range(3))
        folders = {"first": [*fresh], "again": [f"{root}/0"] * 3}  # the first process leaves its data in its folder
        for title, names in folders.items():
            runs = [measure(f"{overrides} training.prefix_cache_dir='{name}'") for name in names]
            _print(f"{title}: {overrides or 'default configuration'}", runs)


def _print(title: str, runs: list[list[tuple[str, float, float]]]) -> None:
    print(title)
    total = 0.0
    for k, (name, _, _) in enumerate(runs[0]):
        cpu, wall = (statistics.median(run[k][part] for run in runs) for part in (1, 2))
        total += cpu
        print(f"  {name:32s} {cpu:6.2f} s CPU  {wall:6.2f} s")
    print(f"  {'all':32s} {total:6.2f} s CPU")


if __name__ == "__main__":
    main()
