"""Whether this installation can do its work: every check says what was found and how to mend it."""

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

from conf.compose import ROOT
from tasks.settings import ModelError

OK, WARNING, BROKEN = "ok", "warning", "broken"
_MIN_DISK_GIB = 2.0
_HUB = "huggingface.co"
_TIMEOUT_S = 3.0
Outcome = tuple[str, str] | tuple[str, str, str]  # state, what was found, how to mend it


@dataclass(frozen=True)
class Finding:
    """The outcome of one check."""

    name: str
    state: str
    found: str
    mend: str = ""


def examine(folder: Path) -> list[Finding]:
    """Run all checks, ``folder`` being where results will be written; a check that itself breaks is a finding, too."""
    checks: dict[str, Callable[[], Outcome]] = {
        "Python": _python,
        "packages": _packages,
        "Ray": _ray,
        "ports": _ports,
        "disk": lambda: _disk(folder),
        "GPU": _gpu,
        "default model": _minilm,
        "language model": _smollm2,
        "SCIP": _scip,
        "model hub": _hub,
    }
    findings = []
    for name, check in checks.items():
        try:
            findings.append(Finding(name, *check()))
        except Exception as error:
            findings.append(Finding(name, BROKEN, f"{type(error).__name__}: {error}", "please report this"))
    return findings


def _python() -> Outcome:
    found = platform.python_version()  # an older one than 3.11 could not install the package
    note = "" if found.startswith(("3.11.", "3.12.", "3.13.")) else "; the whole suite was run with 3.11 to 3.13"
    return OK, f"{found} ({sys.executable}){note}"


def _packages() -> Outcome:
    try:
        own = [item for item in requires("fedlodrop") or [] if "extra ==" not in item]
    except PackageNotFoundError:
        return BROKEN, "fedlodrop itself is not installed", "run: make setup"
    path = ROOT / "constraints.txt"
    pins = dict(re.findall(r"^([^#=\s]+)==(\S+)", path.read_text().lower() if path.exists() else "", flags=re.M))
    missing, other = [], []
    for name in (re.split(r"[\[<>=!~; ]", item, maxsplit=1)[0] for item in own):
        try:
            found, measured = version(name), pins.get(name.lower())
        except PackageNotFoundError:
            missing.append(name)
        else:
            if measured not in (None, found.split("+")[0]):
                other.append(f"{name} {found} (measured with {measured})")
    if missing:
        return BROKEN, f"missing: {', '.join(missing)}", "run: make setup"
    if other:
        return WARNING, "; ".join(other), "back to the measured ones: pip install -c constraints.txt -e ."
    return OK, f"{len(own)} packages, all as measured"


def _ray() -> Outcome:
    if importlib.util.find_spec("ray") is None:
        return BROKEN, "not installed", "pip install 'flwr[simulation]'; until then run.engine=local works"
    for program in ("flwr", "flower-superlink"):
        if not (Path(sys.executable).parent / program).exists():
            return BROKEN, f"ray {version('ray')}, but no program {program} beside Python", "run: make setup"
    return OK, f"ray {version('ray')}, flwr {version('flwr')}, {os.cpu_count()} cores"


def _ports() -> Outcome:
    """Listen on the loopback interface and reach it, as SuperLink and workers do."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        try:
            socket.create_connection(listener.getsockname(), timeout=_TIMEOUT_S).close()
        except OSError as error:
            return BROKEN, f"nothing can connect to 127.0.0.1: {error}", "allow connections on the loopback interface"
    return OK, "loopback ports can be opened and reached"


def _disk(folder: Path) -> Outcome:
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free / 2**30
    if not os.access(existing, os.W_OK):
        return BROKEN, f"{existing} cannot be written", "choose another place with run.dir=/some/folder"
    if free < _MIN_DISK_GIB:
        return BROKEN, f"{free:.1f} GiB free in {existing}", f"free {_MIN_DISK_GIB:g} GiB, or set run.dir"
    return OK, f"{free:.1f} GiB free in {existing}"


def _gpu() -> Outcome:
    import torch

    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    if not names:
        return OK, "none that PyTorch can use: devices train on the CPU (run.client_gpus=0)"
    four_bit = "" if importlib.util.find_spec("bitsandbytes") else "; no bitsandbytes: model.load_in_4bit is refused"
    return OK, f"{', '.join(names)}; run.client_gpus=0.25 trains four devices on one{four_bit}"


def _minilm() -> Outcome:
    from tasks.models.files import INSTALL_MINILM, find_minilm

    try:
        return OK, f"weights as published ({find_minilm(verify=True)})"
    except ModelError as error:
        return BROKEN, str(error), f"{INSTALL_MINILM}; until then model=tiny works"


def _smollm2() -> Outcome:
    from tasks.models.files import INSTALL_SMOLLM2, find_smollm2

    if importlib.util.find_spec("gguf") is None:
        return WARNING, "no package gguf: model=smollm2 is refused", INSTALL_SMOLLM2
    try:
        return OK, f"SmolLM2 as packaged ({find_smollm2()})"
    except ModelError as error:
        return WARNING, str(error), INSTALL_SMOLLM2


def _scip() -> Outcome:
    if importlib.util.find_spec("pyscipopt") is None:
        return WARNING, "not installed: allocator=scip is refused, all others work", "pip install -e '.[scip]'"
    return OK, f"pyscipopt {version('pyscipopt')}"


def _hub() -> Outcome:
    if os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on"):
        return WARNING, "HF_HUB_OFFLINE is set", "unset it to download; the default run needs nothing"
    import httpx

    try:
        answer = httpx.head(f"https://{_HUB}", timeout=_TIMEOUT_S, follow_redirects=True)
    except httpx.HTTPError as error:
        mend = "the default run needs no network; for others: model.path=FOLDER task.train_file=FILE"
        return WARNING, f"{_HUB} cannot be reached ({type(error).__name__})", mend
    return OK, f"{_HUB} answers ({answer.status_code})"
