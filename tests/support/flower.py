"""Real Flower processes for tests: loopback only, ended by the test that started them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent

SMALL = (
    "model=tiny",
    "run.num_rounds=2",
    "network.num_devices=3",
    "task.train_limit=96",
    "task.validation_limit=48",
    "task.holdout=32",
    "run.train_eval_size=32",
    "training.local_steps=2",
    "training.batch_size=8",
    "partition=dirichlet",
    "network.total_bandwidth_hz=2e4",
    "budget.deadline_s=4",
)


def free_port() -> int:
    """Return a port of the loopback interface that nobody uses at present."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def environment(home: Path, **more: str) -> dict[str, str]:
    """Environment of a person who installed the project and set nothing: no switch against a second installation."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("FLWR_", "RAY_"))}
    env |= {"PATH": f"{BIN}{os.pathsep}{env['PATH']}", "FLWR_HOME": str(home), "FLWR_DISABLE_UPDATE_CHECK": "1", **more}
    return env


@contextmanager
def superlink(home: Path, cwd: Path, **more: str) -> Iterator[dict[str, str]]:
    """Start a simulation SuperLink in a folder; yield the environment in which `flwr` finds it."""
    port = free_port()
    env = environment(
        home, FLWR_LOCAL_SUPERLINK_HTTP_API_PORT=str(port), FLWR_LOCAL_CONTROL_API_PORT=str(free_port()), **more
    )
    command = [
        str(BIN / "flower-superlink"),
        "--insecure",
        "--simulation",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--control-api-address",
        f"127.0.0.1:{env['FLWR_LOCAL_CONTROL_API_PORT']}",
    ]
    with (home / "superlink.log").open("wb") as log:
        process = subprocess.Popen(command, env=env, cwd=cwd, stdout=log, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                httpx.get(f"http://127.0.0.1:{port}/health", timeout=1).raise_for_status()
                break
            except httpx.HTTPError:
                assert process.poll() is None, (home / "superlink.log").read_text()
                time.sleep(0.2)
        yield env
    finally:
        family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
        for member in family:
            try:
                member.terminate()
            except psutil.NoSuchProcess:
                continue
        for member in psutil.wait_procs(family, timeout=10)[1]:
            member.kill()


def flwr(env: dict[str, str], *arguments: str, cwd: Path = ROOT) -> dict[str, Any]:
    """Call `flwr ... --format json`."""
    command = [str(BIN / "flwr"), *arguments, "--format", "json"]
    answer = subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)
    start = answer.stdout.find("{")
    assert start >= 0, answer.stdout + answer.stderr
    return dict(json.loads(answer.stdout[start:]))


def wait_finished(env: dict[str, str], run_id: str, timeout_s: float = 240) -> str:
    """Ask `flwr ls` until the run has ended; return its status."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        status = str(flwr(env, "ls", "--run-id", run_id)["runs"][0]["status"])
        if status.startswith("finished"):
            return status
        time.sleep(2)
    raise TimeoutError(f"run {run_id} did not end within {timeout_s} s")
