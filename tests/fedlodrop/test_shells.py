"""Completion as a person types it: in a real bash and a real zsh, on a terminal."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent
SHELLS = {"bash": (["bash", "--norc", "-i"], ". ~/.bashrc"), "zsh": (["zsh", "-f", "-i"], ". ~/.zshrc")}


class Terminal:
    """A shell on a terminal of its own."""

    def __init__(self, shell: str, home: Path) -> None:
        words, setup = SHELLS[shell]
        env = {"HOME": str(home), "PATH": f"{BIN}:/usr/bin:/bin", "TERM": "dumb", "LANG": "C.UTF-8"}
        self.pid, self.handle = pty.fork()
        if self.pid == 0:
            os.chdir(home)
            os.execvpe(words[0], words, env)
        self.type(f"{setup}; echo ready-$((1 + 1))\n", "ready-2")

    def type(self, keys: str, until: str) -> None:
        """Type, and wait until the terminal shows a pattern."""
        os.write(self.handle, keys.encode())
        seen, deadline = "", time.monotonic() + 400
        while not re.search(until, seen):
            assert time.monotonic() < deadline, f"typed {keys!r}, expected {until!r}, found {seen!r}"
            if select.select([self.handle], [], [], 1)[0]:
                seen += os.read(self.handle, 65536).decode(errors="replace")

    def close(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.handle)


@pytest.mark.slow
@pytest.mark.parametrize("shell", SHELLS)
def test_keys_and_values_are_completed(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"needs {shell}")
    env = {**os.environ, "HOME": str(tmp_path), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    subprocess.run([str(BIN / "fedlodrop"), "--install-completion", shell], env=env, check=True, capture_output=True)
    terminal = Terminal(shell, tmp_path)
    try:
        if shell == "zsh":  # its first Tab only loads what Typer installed
            terminal.type("fedlodrop \t", "\x07")
            terminal.type("\x15", "")
        terminal.type("fedlodrop run allocator=eq\t", "allocator=equal")
        terminal.type("run.pat\t", "ience=")
        line = "fedlodrop run allocator=equal run.patience=3"  # no blank before the 3
        terminal.type("3\x01echo \x05\n", rf"\n{line}\r?\n")  # printed, not run
    finally:
        terminal.close()
