"""A run on real Flower: a SuperLink for this run alone, Ray workers, and the true outcome of the run.

`flwr run` would use any SuperLink that listens on the default port, started by whomever in whatever folder and
environment, and exits with 0 when the run failed. Here every run gets a SuperLink of its own, on free ports of the
loopback interface, with a Flower home in the run's folder; both end with the run. Every process of a run knows that
home: by it a later start finds what a killed command left behind (`end_leftover`).
"""

import contextlib
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import psutil

from conf.compose import ROOT, source_files
from conf.schema import Config
from server_app.results import run_ended
from tasks.process import PROCESS_ENVIRONMENT

_CONNECTION = "fedlodrop"
_MOST_STARTS = 8  # each takes the longer the more there are
_STATUS_EVERY_S, _STATUS_AT_END_S = 120.0, 0.5  # between questions: while a run goes on, and when it should be over
_SIMULATION = "flwr-simulation"
_PATIENCE_S, _PATIENCE_WHEN_DONE_S = 5.0, 0.5  # Ray takes five seconds to end, which helps nobody when all is written
HOME = ".flower"


class EngineError(RuntimeError):
    """Flower could not run the federation; the message is one line for the user."""


def engine_environment(home: Path) -> dict[str, str]:
    """Environment of every Flower process of a run: this Python, no second installation, nothing sent anywhere."""
    return {
        **PROCESS_ENVIRONMENT,
        "FEDLODROP_FILES": os.getcwd(),  # where modules of the user's own lie
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "FLWR_HOME": str(home),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DEDUP_LOGS": "0",
        "TOKENIZERS_PARALLELISM": "false",
    }


class FlowerEngine:
    """A SuperLink of our own for the length of a ``with`` block; the log takes everything that Flower and Ray print."""

    def __init__(self, log_file: Path) -> None:
        self.log_file = log_file
        self._home = log_file.resolve().parent / HOME
        self._env = engine_environment(self._home)
        self._port = _free_port()
        self._patience_s = _PATIENCE_S

    def __enter__(self) -> "FlowerEngine":
        """Start the SuperLink; it needs a few seconds to listen, `wait_ready` waits for it."""
        end_leftover(self._home.parent)
        self._home.mkdir(mode=0o700, exist_ok=True)
        (self._home / "config.toml").write_text(
            f'[superlink]\ndefault = "{_CONNECTION}"\n\n[superlink.{_CONNECTION}]\naddress = "127.0.0.1:{self._port}"\n'
            "insecure = true\n"
        )
        options = (
            f"--insecure --simulation --host 127.0.0.1 --port {self._port} "
            f"--control-api-address 127.0.0.1:{_free_port()} --disable-runtime-dependency-installation"
        )
        command = [str(Path(sys.executable).parent / "flower-superlink"), *options.split()]
        where: dict[str, Any] = {"env": self._env, "cwd": self._home, "start_new_session": True}
        with self.log_file.open("ab") as log:
            streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": subprocess.STDOUT}
            self._process = psutil.Popen(command, **streams, **where)
        return self

    def __exit__(self, *error: object) -> None:
        """End the SuperLink and everything it started, and remove its home."""
        if self._process.poll() is None:
            _end_tree(self._process, self._patience_s)
            self._process.wait()
        shutil.rmtree(self._home, ignore_errors=True)

    def wait_ready(self, timeout_s: float = 60.0) -> None:
        """Wait until the SuperLink answers; EngineError if it ended or does not answer in time."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise EngineError(f"the SuperLink ended with code {self._process.returncode}; see {self.log_file}")
            try:
                if httpx.get(f"http://127.0.0.1:{self._port}/health", timeout=1.0).is_success:
                    return
            except httpx.HTTPError:
                time.sleep(0.2)
        raise EngineError(f"the SuperLink did not answer within {timeout_s:g} s; see {self.log_file}")

    def submit(self, overrides: str, config: Config) -> int:
        """Hand this app to the SuperLink and return the run's number; EngineError if Flower refuses it."""
        federation = federation_settings(config.network.num_devices, config.run.client_cpus, config.run.client_gpus)
        return self.submit_app(stage_app(self._home / "app"), {"overrides": overrides}, federation)

    def submit_app(self, app: Path, run_config: Mapping[str, Any], federation: str) -> int:
        """Hand any Flower app and the scalars of its run configuration to the SuperLink; return the run's number."""
        # A file, because Flower's own parsing of `-c key=value` cannot carry both kinds of quotes. JSON's scalars are
        # TOML's.
        config_file = self._home / "run.toml"
        config_file.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in run_config.items()))
        answer = self._flwr("run", str(app), _CONNECTION, "--federation-config", federation, "-c", str(config_file))
        if "run-id" not in answer:
            raise EngineError(f"Flower did not accept the run: {answer.get('error-message') or answer}")
        return int(answer["run-id"])

    def status(self, run_id: int) -> str:
        """Return Flower's status of the run, e.g. ``running`` or ``finished:failed``."""
        if self._process.poll() is not None:
            return "finished:superlink-ended"
        found = self._flwr("ls", _CONNECTION, "--run-id", str(run_id))["runs"][0]
        status = str(found["status"])
        if status.startswith("finished") and status != "finished:completed":
            with self.log_file.open("a") as log:  # Flower says why nowhere else
                reason = found.get("status-details", "no reason given")
                log.write(f"fedlodrop: Flower ended the run as {status}: {reason}\n")
        return status

    def wait(self, run_id: int, folder: Path, *, taken_down: bool = False) -> str:
        """Wait until the run that writes to a folder has ended, and return its status in Flower's words.

        Taking Ray down and asking Flower, a process of more than a second of CPU time, take five seconds: Flower is
        asked after a failure, when the process of the run has gone, and otherwise rarely; Ray's end is waited for where
        the SuperLink gets another run (``taken_down``).
        """
        asked, seen = time.monotonic(), False
        while True:
            working = self._simulation_runs()
            seen = seen or working
            ended = run_ended(folder)
            if ended and not taken_down:
                self._patience_s = _PATIENCE_WHEN_DONE_S
                return "finished:completed"
            # That process may outlive the run by a minute, while it takes Ray down, and after a failure it still has to
            # write what happened into the log.
            written = ended or (folder / "failure.json").exists()
            due_s = _STATUS_AT_END_S if written or (seen and not working) else _STATUS_EVERY_S
            if time.monotonic() - asked > due_s:
                if (gone := failed_starts(self.log_file)) >= _MOST_STARTS:
                    raise EngineError(
                        f"Flower gave up {gone} processes that did not start within its 30 s, and starts ever more "
                        "beside them: this machine is too busy; try again later, or run.engine=local, which starts none"
                    )
                status = self.status(run_id)
                asked = time.monotonic()
                if status.startswith("finished"):
                    return status
            time.sleep(0.25)

    def _simulation_runs(self) -> bool:
        """Whether a process of ours works for a run."""
        try:
            family = self._process.children(recursive=True)
            return any(_SIMULATION in " ".join(member.cmdline()[:3]) for member in family)
        except psutil.Error:  # something ended while we looked
            return self._process.poll() is None

    def _flwr(self, *arguments: str) -> dict[str, Any]:
        command = [str(Path(sys.executable).parent / "flwr"), *arguments, "--format", "json"]
        answer = subprocess.run(command, env=self._env, cwd=self._home, capture_output=True, text=True, check=False)
        start = answer.stdout.find("{")
        try:
            return dict(json.loads(answer.stdout[start:]))
        except ValueError:
            said = (answer.stderr or answer.stdout).strip().splitlines()
            why = said[-1] if said else answer.returncode
            raise EngineError(f"`{shlex.join(command[:2])}` failed: {why}") from None


def failed_starts(log_file: Path) -> int:
    """Return how many processes Flower gave up before one of them began to work for the run that a log ends with."""
    run = log_file.read_text(errors="replace").rpartition("Finished task ")[2] if log_file.exists() else ""
    return run.partition("Started task ")[0].count("pull-task-input][ApiError:1008] Runtime task-token")


def federation_settings(num_devices: int, client_cpus: int = 1, client_gpus: float = 0.0) -> str:
    """Return Flower's settings of a simulation: cores, and the share of a GPU, of every device that trains.

    EngineError if devices want a GPU and there is none: Ray would wait for ever.
    """
    if client_gpus:
        import torch

        if not torch.cuda.device_count():
            raise EngineError("run.client_gpus needs a GPU that PyTorch can use, found none; set run.client_gpus=0")
    gpus = f" client-resources-num-gpus={client_gpus:g}" if client_gpus else ""
    return f"num-supernodes={num_devices} client-resources-num-cpus={client_cpus}{gpus}"


def stage_app(folder: Path) -> Path:
    """Copy what Flower packs into an empty folder and return it: a checkout with its environment has 70,000 files."""
    shutil.rmtree(folder, ignore_errors=True)
    for path in source_files():
        target = folder / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    places = (ROOT / "pyproject.toml", Path(__file__).with_name("pyproject.toml"))  # of a checkout, of a wheel
    shutil.copyfile(next(path for path in places if path.exists()), folder / "pyproject.toml")
    return folder


def end_leftover(folder: Path) -> bool:
    """End the SuperLink that a killed command left behind in a folder, with all its processes; say if there was one."""
    home = folder.resolve() / HOME
    if not home.exists():
        return False
    found = [process for process in psutil.process_iter() if _works_in(process, home)]
    for process in found:
        _end_tree(process, _PATIENCE_S)
    shutil.rmtree(home, ignore_errors=True)
    return bool(found)


def _works_in(process: psutil.Process, home: Path) -> bool:
    try:
        alive = process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE
        return bool(alive and process.environ().get("FLWR_HOME") == str(home))
    except psutil.Error:  # gone, or another user's
        return False


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _end_tree(process: psutil.Process, patience_s: float) -> None:
    """End a process and all its descendants: asked first, forced after ``patience_s``."""
    gone = contextlib.suppress(psutil.NoSuchProcess)
    with gone:
        family = [*process.children(recursive=True), process]
        for member in family:
            with gone:
                member.terminate()
        for member in psutil.wait_procs(family, timeout=patience_s)[1]:
            with gone:
                member.kill()
