"""The commands of docs/deployment.md, executed: every role in a process of its own, on free ports, ended by the test."""

from __future__ import annotations

import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import psutil

from tasks.data.intents import generate_intents
from tests.support.flower import BIN, ROOT, free_port

DOCS = ROOT / "docs" / "deployment.md"
PARTS = ("adapter", "client_app", "conf", "deploy", "optimizer", "server_app", "strategy", "tasks", "wireless")
QUICK = (
    "model=tiny run.num_rounds=3 run.round_timeout_s=60 task.holdout=16 run.train_eval_size=16 training.local_steps=2 "
    "training.batch_size=8 tracking=none"
)  # appended to the documented overrides where minutes are too long


def documented() -> list[str]:
    """Return every command line of the bash blocks, in order."""
    blocks = re.findall(r"```bash\n(.*?)```", DOCS.read_text(), flags=re.S)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def write_tables(folder: Path) -> None:
    """Write small tables of two intents: three nodes' own examples, the server's sample and the test set."""
    train, _, test = generate_intents(num_train=1200, num_validation=24, num_test=400, seed=3)
    folder.mkdir(parents=True)

    def table(name: str, examples: object, keep: slice) -> None:
        pairs = [(text, label) for text, label in zip(examples.texts, examples.labels, strict=True) if label < 2]  # type: ignore[attr-defined]
        lines = [f"{text}\t{label}" for text, label in pairs[keep]]
        (folder / name).write_text("sentence\tlabel\n" + "\n".join(lines) + "\n")

    for k in range(3):
        table(f"node-{k}.tsv", train, slice(40 * k, 40 * (k + 1)))
    table("server.tsv", train, slice(120, 170))
    table("test.tsv", test, slice(0, 40))


class Federation:
    """A clean folder with the sources and data in which documented commands run.

    Parameters
    ----------
    folder : Path
        Created; the ports of the documents are replaced by free ones.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        for part in PARTS:
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, folder / name)
        write_tables(folder / "data")
        self.ports = {str(port): str(free_port()) for port in (9093, 9100, 9101, 9102, 9103, 9104)}
        self._stack = ExitStack()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Federation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in list(self.processes):
            self.kill(name)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.ports['9093']}"

    def environment(self) -> dict[str, str]:
        env = {key: value for key, value in os.environ.items() if not key.startswith(("FLWR_", "RAY_", "FEDLODROP_"))}
        return env | {
            "FEDLODROP_BIN": str(BIN),
            "PATH": f"{BIN}{os.pathsep}{env['PATH']}",
            "OMP_NUM_THREADS": "1",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_HOME": str(self.folder / "state" / "operator"),
        }

    def line(self, command: str) -> str:
        """Return a documented command with this federation's ports."""
        for documented_port, port in self.ports.items():
            command = re.sub(rf"\b{documented_port}\b", port, command)
        return command

    def run(self, command: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        """Run a command to its end in the folder."""
        return subprocess.run(
            ["bash", "-c", self.line(command)],
            env=self.environment(),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def start(self, name: str, command: str) -> subprocess.Popen[bytes]:
        """Start a command that keeps running; its output goes to NAME.log."""
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                ["bash", "-c", self.line(command)],
                env=self.environment(),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self.processes[name]

    def kill(self, name: str) -> None:
        """Kill -9 a started command with everything that it started."""
        process = self.processes.pop(name)
        # The session's other processes outlive their parent, which may have ended already.
        for member in psutil.process_iter():
            try:
                if os.getsid(member.pid) == process.pid:
                    member.kill()
            except (ProcessLookupError, PermissionError, psutil.NoSuchProcess):
                continue
        process.wait()

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def wait_superlink(self, timeout_s: float = 90) -> None:
        """Wait until the SuperLink's certificate is verified by the authority that the scripts made."""
        context = ssl.create_default_context(cafile=str(self.folder / "secrets" / "ca.crt"))
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                with socket.create_connection(("127.0.0.1", int(self.ports["9093"])), timeout=2) as raw:
                    context.wrap_socket(raw, server_hostname="127.0.0.1").close()
                return
            except OSError:
                assert time.monotonic() < deadline and self.processes["superlink"].poll() is None, self.log("superlink")
                time.sleep(0.2)

    def set_up(self, commands: list[str]) -> None:
        """Follow the document from the keys to the nodes."""
        for command in commands:
            role = Path(command.split()[0]).name
            if role == "superlink.sh":
                self.start("superlink", command)
                self.wait_superlink()
            elif role == "supernode.sh":
                self.start(command.split()[2], command)
            else:
                done = self.run(command)
                assert done.returncode == 0, (command, done.stdout, done.stderr)


def wait_for(condition, timeout_s: float, what: str, *, every_s: float = 0.3) -> None:  # type: ignore[no-untyped-def]
    """Wait until a condition holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {timeout_s} s"
        time.sleep(every_s)


PYTHON = sys.executable
