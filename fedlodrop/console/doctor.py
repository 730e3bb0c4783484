"""Whether this installation can do its work: every check says what was found and how to mend it."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import psutil

from conf.compose import ROOT

OK, WARNING, BROKEN = "ok", "warning", "broken"
_MIN_DISK_GIB, _MIN_MEMORY_GIB = 2.0, 4.0
_HUB = "huggingface.co"
_TIMEOUT_S = 3.0


@dataclass(frozen=True)
class Finding:
    """The outcome of one check."""

    name: str
    state: str
    found: str
    mend: str = ""


def examine(folder: Path) -> list[Finding]:
    """Run all checks.

    Parameters
    ----------
    folder : Path
        Where results will be written.

    Returns
    -------
    list of Finding
        In the order of the checks; a check that fails in an unforeseen way is reported as broken, not raised.
    """
    checks: list[tuple[str, Callable[[], Finding]]] = [
        ("Python", _python),
        ("packages", _packages),
        ("Ray", _ray),
        ("ports", _ports),
        ("disk", lambda: _disk(folder)),
        ("memory", _memory),
        ("default model", _minilm),
        ("language model", _smollm2),
        ("SCIP", _scip),
        ("model hub", _hub),
    ]
    findings = []
    for name, check in checks:
        try:
            findings.append(check())
        except Exception as error:
            findings.append(Finding(name, BROKEN, f"{type(error).__name__}: {error}", "please report this"))
    return findings


def _python() -> Finding:
    needed, found = (3, 11), platform.python_version()
    if tuple(int(part) for part in found.split(".")[:2]) < needed:
        return Finding(
            "Python", BROKEN, found, "install Python 3.11 or newer and run: make setup PYTHON=/path/to/python3.11"
        )
    return Finding("Python", OK, f"{found} ({sys.executable})")


def _packages() -> Finding:
    """Compare what is installed with what was measured; a missing package is broken, another version a warning."""
    try:
        own = [item for item in requires("fedlodrop") or [] if "extra ==" not in item]
    except PackageNotFoundError:
        return Finding("packages", BROKEN, "fedlodrop itself is not installed", "run: make setup")
    needed = [re.split(r"[\[<>=!~; ]", item, maxsplit=1)[0] for item in own]
    pins = _pins()
    missing, other = [], []
    for name in needed:
        try:
            found = version(name)
        except PackageNotFoundError:
            missing.append(name)
            continue
        if name.lower() in pins and pins[name.lower()] != found.split("+")[0]:
            other.append(f"{name} {found} (measured with {pins[name.lower()]})")
    if missing:
        return Finding("packages", BROKEN, f"missing: {', '.join(missing)}", "run: make setup")
    if other:
        return Finding(
            "packages", WARNING, "; ".join(other), "back to the measured ones: pip install -c constraints.txt -e ."
        )
    return Finding("packages", OK, f"{len(needed)} packages, all as measured")


def _pins() -> dict[str, str]:
    path = ROOT / "constraints.txt"
    lines = path.read_text().splitlines() if path.exists() else []
    pairs = [line.split("==", 1) for line in lines if "==" in line and not line.startswith("#")]
    return {name.strip().lower(): pin.strip() for name, pin in pairs}


def _ray() -> Finding:
    if importlib.util.find_spec("ray") is None:
        return Finding(
            "Ray", BROKEN, "not installed", "pip install 'flwr[simulation]'; until then run.engine=local works"
        )
    for program in ("flwr", "flower-superlink"):
        if not (Path(sys.executable).parent / program).exists():
            return Finding(
                "Ray", BROKEN, f"ray {version('ray')}, but no program {program} beside Python", "run: make setup"
            )
    return Finding("Ray", OK, f"ray {version('ray')}, flwr {version('flwr')}, {os.cpu_count()} cores")


def _ports() -> Finding:
    """Listen on the loopback interface and reach it, as SuperLink and workers do."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        try:
            socket.create_connection(("127.0.0.1", port), timeout=_TIMEOUT_S).close()
        except OSError as error:
            return Finding(
                "ports",
                BROKEN,
                f"nothing can connect to 127.0.0.1: {error}",
                "allow connections on the loopback interface",
            )
    return Finding("ports", OK, "loopback ports can be opened and reached")


def _disk(folder: Path) -> Finding:
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free / 2**30
    if not os.access(existing, os.W_OK):
        return Finding(
            "disk", BROKEN, f"{existing} cannot be written", "choose another place with run.dir=/some/folder"
        )
    if free < _MIN_DISK_GIB:
        return Finding(
            "disk", BROKEN, f"{free:.1f} GiB free in {existing}", f"free {_MIN_DISK_GIB:g} GiB, or set run.dir"
        )
    return Finding("disk", OK, f"{free:.1f} GiB free in {existing}")


def _memory() -> Finding:
    free = psutil.virtual_memory().available / 2**30
    if free < _MIN_MEMORY_GIB:
        return Finding("memory", WARNING, f"{free:.1f} GiB available", "run.client_cpus=2 halves the workers")
    return Finding("memory", OK, f"{free:.1f} GiB available")


def _minilm() -> Finding:
    from tasks.models.files import INSTALL_MINILM, find_minilm
    from tasks.settings import ModelError

    try:
        return Finding("default model", OK, f"weights as published ({find_minilm(verify=True)})")
    except ModelError as error:
        return Finding("default model", BROKEN, str(error), f"{INSTALL_MINILM}; until then model=tiny works")


def _smollm2() -> Finding:
    from tasks.models.files import INSTALL_SMOLLM2, find_smollm2
    from tasks.settings import ModelError

    if importlib.util.find_spec("gguf") is None:
        return Finding("language model", WARNING, "no package gguf: model=smollm2 is refused", INSTALL_SMOLLM2)
    try:
        return Finding("language model", OK, f"SmolLM2 as packaged ({find_smollm2()})")
    except ModelError as error:
        return Finding("language model", WARNING, str(error), INSTALL_SMOLLM2)


def _scip() -> Finding:
    if importlib.util.find_spec("pyscipopt") is None:
        return Finding(
            "SCIP", WARNING, "not installed: allocator=scip is refused, all others work", "pip install -e '.[scip]'"
        )
    return Finding("SCIP", OK, f"pyscipopt {version('pyscipopt')}")


def _hub() -> Finding:
    if os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on"):
        return Finding(
            "model hub", WARNING, "HF_HUB_OFFLINE is set", "unset it to download; the default run needs nothing"
        )
    import httpx

    try:
        answer = httpx.head(f"https://{_HUB}", timeout=_TIMEOUT_S, follow_redirects=True)
    except httpx.HTTPError as error:
        return Finding(
            "model hub",
            WARNING,
            f"{_HUB} cannot be reached ({type(error).__name__})",
            "the default run needs no network; for others use local files: model.path=FOLDER task.train_file=FILE",
        )
    return Finding("model hub", OK, f"{_HUB} answers ({answer.status_code})")
