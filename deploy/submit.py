"""Submit a run to a SuperLink and see it through: one that ends early is submitted again, from its checkpoint.

    python deploy/submit.py --app . --connection deploy --retries 3 'run.dir=first num_rounds...'

Flower does not resume a run whose SuperLink restarted: the run ends as failed. The overrides are sent with
``run.resume=auto``, so the next run continues in the same ``run.dir``, which must therefore be given. Exits with 0 when
a run completed, and with 1 when it ended early too often. Nothing is tried again, and the exit code is that of
``fedlodrop run``, when a run was refused (2), no device could be served (3), or it diverged (4).
"""

import argparse
import functools
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

FLWR = str(Path(sys.executable).parent / "flwr")
RAISED = "ServerApp failed with exception: "  # how Flower's reason begins when our server app raised an error
ENDED = {"refused:": 2, "fruitless:": 3, "diverged:": 4}  # how ours begins when another try would end the same way
LOWER = "a lower training.lr, training.head_lr or strategy.server_lr; the same command goes on from the last good round"
UNKNOWN_RUN = "Run ID not found"
SILENT_S = 60.0  # a SuperLink that is restarted is back within seconds
PENDING_S = 120.0  # a sound SuperLink begins a run within seconds, unless others are at work


def tell(line: str) -> None:
    """Print a line for the operator beside the output."""
    print(line, file=sys.stderr, flush=True)


def flwr(*arguments: str) -> dict[str, Any] | None:
    """Call the flwr command; None when the SuperLink does not answer."""
    command = [FLWR, *arguments, "--format", "json"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        return dict(json.loads(answer.stdout[answer.stdout.index("{") :]))
    except ValueError:
        return None


def submit(app: str, connection: str, overrides: str) -> str | None:
    """Submit one run and return its number, None when the SuperLink does not take it now."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "run.toml"  # a file: `-c key=value` cannot carry both kinds of quotes
        config.write_text(f"overrides = {json.dumps(overrides)}\n")
        answer = flwr("run", app, connection, "-c", str(config))
    if answer is not None and "run-id" in answer:
        return str(answer["run-id"])
    said = str((answer or {}).get("error-message", "no answer of the SuperLink"))
    tell(f"not accepted: {' '.join(said.split())}")
    return None


def wait(connection: str, run_id: str, every_s: float) -> tuple[str, str]:
    """Wait until a run has ended, through the silence of a SuperLink, and return its status and Flower's reason."""
    begun = heard = time.monotonic()
    warn, silent = functools.cache(tell), functools.cache(tell)  # once; and once in every silence
    while True:
        answer, now = flwr("ls", connection, "--run-id", run_id), time.monotonic()
        if answer is not None:
            heard = now
            silent.cache_clear()
        elif now - heard >= SILENT_S:
            silent(
                f"run {run_id}: the SuperLink has not answered for {SILENT_S:.0f} s; start it again, or end this wait"
            )
        if answer and answer.get("runs"):
            status, reason = str(answer["runs"][0]["status"]), str(answer["runs"][0].get("status-details") or "")
            if status.startswith("finished"):
                return status, reason.removeprefix(RAISED)
            if status == "pending" and now - begun >= PENDING_S:
                warn(f"run {run_id}: nobody has begun it; restart the SuperLink and its nodes")
        elif answer and UNKNOWN_RUN in str(answer.get("error-message")):
            return "lost", "the SuperLink no longer knows this run: it was started with another state folder"
        time.sleep(every_s)


def last_lines(connection: str, run_id: str, count: int = 5) -> str:
    """Return the end of a run's log: the server's reason for ending."""
    answer = subprocess.run([FLWR, "log", run_id, connection, "--show"], capture_output=True, text=True, check=False)
    return "\n".join((answer.stdout + answer.stderr).strip().splitlines()[-count:])


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", help="Hydra overrides in one string; run.dir must be among them")
    parser.add_argument("--app", default=".", help="source folder of this project")
    parser.add_argument("--connection", default="deploy", help="name in $FLWR_HOME/config.toml")
    parser.add_argument("--retries", type=int, default=3, help="how often to go on after a run that ended early")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two looks")
    options = parser.parse_args()
    if "run.dir=" not in options.overrides:
        parser.error("give run.dir: the folder, below FEDLODROP_RESULTS on the SuperLink, in which the run goes on")
    sys.path.insert(0, str(Path(options.app).resolve()))
    from conf.compose import ConfigError, compose_config

    try:  # what is wrong is said here and now rather than by a run that fails
        compose_config(options.overrides)
    except ConfigError as error:
        tell(f"{parser.prog}: {error}")
        return 2
    for attempt in range(options.retries + 1):
        run_id = submit(options.app, options.connection, f"{options.overrides} run.resume=auto")
        if run_id is not None:
            print(f"run {run_id}" + (f" (attempt {attempt + 1})" if attempt else ""), flush=True)
            status, reason = wait(options.connection, run_id, options.every)
            print(f"run {run_id}: {status}", flush=True)
            if status == "finished:completed":
                return 0
            tell(reason or last_lines(options.connection, run_id))
            if code := ENDED.get(reason.partition(" ")[0]):
                if code == 4:
                    tell(LOWER)
                return code
        time.sleep(options.every)
    return 1


if __name__ == "__main__":
    sys.exit(main())
