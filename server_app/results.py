"""What a run leaves behind: config.yaml, environment.json, rounds.jsonl, summary.json in one folder."""

import errno
import fcntl
import functools
import json
import os
import platform
import re
import resource
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import psutil

from optimizer.atomic import remove_leftovers, written_whole
from server_app.checkpoint import StorageError

BASE_DELTA = "base_delta.safetensors"  # what a method added to frozen weights
_LOCK, _CLAIM = ".lock", ".command.lock"
_SCORED = ("round", "eval", "validation", "gap")
_PACKAGES = ("flwr", "ray", "torch", "transformers", "peft", "numpy", "scipy", "hydra-core", "pyomo")


def write_atomic(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON atomically."""
    write_atomic(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def make_readable(files: Iterable[Path], like: Path) -> None:
    """Give files the mode of a plainly written one: safetensors makes all its files readable by their owner alone."""
    for path in files:
        if path.is_file():
            path.chmod(like.stat().st_mode)


def read_rounds(folder: Path) -> list[dict[str, Any]]:
    """Return the finished rounds of a run; an unfinished last line (a killed process) is left out."""
    return [json.loads(line) for line in _lines(folder)]


def count_rounds(folder: Path) -> int:
    """Return how many rounds of a run are finished, whatever their records look like."""
    return len(_lines(folder))


def _lines(folder: Path) -> list[str]:
    path = folder / "rounds.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return [line for line in lines if line.endswith("\n")]


def run_ended(folder: Path) -> bool:
    """Say whether a run has come to its end: its summary is written, and whoever wrote it is done with the folder."""
    return (folder / "summary.json").exists() and _is_free(folder)


def _is_free(folder: Path) -> bool:
    if not (folder / _LOCK).exists():
        return True
    with (folder / _LOCK).open("r+") as handle:
        return _locked(handle, fcntl.lockf)


def _locked(handle: IO[str], lock: Callable[[IO[str], int], None]) -> bool:
    try:
        lock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Keep other commands, and servers that no command started, out of a folder; StorageError if one is there."""
    with (folder / _CLAIM).open("w") as handle:  # beside the server's own lock: Flower's server is another process
        if not _locked(handle, fcntl.flock):
            raise _taken(folder)
        yield


def check_free(folder: Path) -> None:
    """Refuse a folder that a server still writes to; see `claimed`."""
    if not _is_free(folder):
        raise _taken(folder)


def _taken(folder: Path) -> StorageError:
    return StorageError(f"another process is writing to {folder}; wait for it, end it or choose another folder")


class ResultsFolder:
    """The folder of one run, created if missing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.on_round: Callable[[dict[str, Any]], None] = lambda record: None  # told of every finished round
        self._started = time.perf_counter()
        self._cpu = time.process_time()
        self.before: dict[str, float] = {}  # what earlier legs of the run took
        self._lock: IO[str] | None = None

    def start(self, config_yaml: str, environment: dict[str, Any], *, rounds_done: int) -> None:
        """Write the configuration and the environment; keep only the ``rounds_done`` that the checkpoint contains.

        Of a run that goes on, earlier environments are kept in ``earlier``.
        """
        try:
            self.hold()
            remove_leftovers(self.folder)
            before = self.folder / "environment.json"
            if rounds_done and before.exists():
                leg = json.loads(before.read_text(encoding="utf-8"))
                environment = environment | {"earlier": [*leg.pop("earlier", []), leg]}
            write_atomic(self.folder / "config.yaml", config_yaml)
            write_json(before, environment)
            for stale in ("summary.json", "failure.json"):
                (self.folder / stale).unlink(missing_ok=True)
            path = self.folder / "rounds.jsonl"
            kept = _lines(self.folder)[:rounds_done]
            if len(kept) < rounds_done:
                raise StorageError(f"{path} holds {len(kept)} rounds, the checkpoint {rounds_done}; restore the file")
            write_atomic(path, "".join(kept))
        except OSError as error:
            why = error.strerror or error
            raise StorageError(f"cannot write to {self.folder} ({why}); make room or choose another run.dir") from error

    def hold(self) -> None:
        """Keep other processes from writing the same run, until this one ends; StorageError if another one is."""
        if self._lock is not None:
            return
        self._lock = (self.folder / _LOCK).open("w")
        if not _locked(self._lock, fcntl.lockf):  # of the process: resuming within it is no conflict
            self.release()
            raise _taken(self.folder)

    def release(self) -> None:
        """Let others write the run: nothing more will come."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def spent(self) -> dict[str, float]:
        """Return what the run took so far, all its legs: wall and CPU time [s], the most memory [MiB]."""
        cpu_s = time.process_time() - self._cpu + _children_cpu_s()
        rss_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        wall_0_s, cpu_0_s, rss_0_mib = (self.before.get(key, 0.0) for key in ("wall_s", "cpu_s", "peak_rss_mib"))
        wall_s = time.perf_counter() - self._started
        return {"wall_s": wall_0_s + wall_s, "cpu_s": cpu_0_s + cpu_s, "peak_rss_mib": max(rss_0_mib, rss_mib)}

    def append_round(self, record: dict[str, Any]) -> None:
        """Append one finished round and flush it to the disk; nothing where it does not fit."""
        path = self.folder / "rounds.jsonl"
        line = (json.dumps(record, allow_nan=False) + "\n").encode()
        size = path.stat().st_size if path.exists() else 0
        try:
            with path.open("ab", buffering=0) as handle:
                if handle.write(line) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(handle.fileno())
        except OSError as error:
            if path.exists() and path.stat().st_size > size:
                os.truncate(path, size)
            raise StorageError(
                f"round {record['round']} could not be written to {path} ({error.strerror or error}); "
                f"make room and go on with: fedlodrop resume {self.folder}"
            ) from error
        self.on_round(record)

    def fail(self, message: str, exit_code: int) -> None:
        """Record why the run ended early, for the command line that started it."""
        with suppress(OSError):  # a full disk is the failure that is being recorded; the log has the message
            write_json(self.folder / "failure.json", {"message": message, "exit_code": exit_code})

    def finish(self, extra: dict[str, Any], primary_metric: str) -> dict[str, Any]:
        """Write and return summary.json."""
        rounds = read_rounds(self.folder)
        summary = {**summarize(rounds, primary_metric), **extra, **self.spent()}
        write_json(self.folder / "summary.json", summary)
        return summary


def summarize(rounds: list[dict[str, Any]], primary_metric: str) -> dict[str, Any]:
    """Return final and best metrics and the totals of a list of round records.

    The best round has the highest primary metric on the *validation* set, among equals the lowest validation loss, then
    the earliest; its test score is reported without having been looked at. A personalised method has neither:
    ``personalised`` is the mean score of its devices' own models on held-out examples, in the last round.
    """
    evaluated = [r for r in rounds if r.get("eval")]
    final = evaluated[-1] if evaluated else None
    best = max(evaluated, key=functools.partial(_standing, primary_metric), default=None)  # the first of equals
    devices = [device for r in rounds for device in r["devices"]]
    of_devices = ("uplink_bytes", "downlink_bytes", "uplink_adapter_bytes")
    own = [r for r in rounds if r.get("personalised") and r.get("client_eval")]
    return {
        "personalised": own[-1]["client_eval"] if own else None,
        "rounds_done": rounds[-1]["round"] if rounds else 0,
        "primary_metric": primary_metric,
        "final": final and {key: final[key] for key in _SCORED},
        "best": best and {key: best[key] for key in _SCORED},
        **{key: sum(device[key] for device in devices) for key in of_devices},
        "sim_time_s": rounds[-1]["sim_time_s"] if rounds else 0.0,
        "energy_j": sum(r["energy_j"] for r in rounds),
        "devices_asked": len(devices),
        "devices_answered": sum(d["uplink_bytes"] > 0 for d in devices),
        "devices_scheduled": sum(d["scheduled"] for d in devices),
        "failures": sum(len(r["failures"]) for r in rounds),
        "train_wall_s": sum(r["wall_s"] for r in rounds),
    }


def _standing(metric: str, record: dict[str, Any]) -> tuple[float, float]:
    return record["validation"][metric], -record["validation"]["loss"]


def out_of_patience(rounds: list[dict[str, Any]], metric: str, patience: int | None) -> bool:
    """Whether the last ``patience`` evaluations were no better on the validation set than one before; None: never."""
    scores = [_standing(metric, r) for r in rounds if r.get("eval")]
    return patience is not None and len(scores) > patience and scores.index(max(scores)) < len(scores) - patience


def environment(seed: int, source: str, checkout: Path) -> dict[str, Any]:
    """Describe where a run happens: versions, commit, seed, hardware, process."""
    commit = None
    if (checkout / ".git").exists():
        git = ["git", "-C", str(checkout), "rev-parse", "HEAD"]
        commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip() or None
    cpuinfo = Path("/proc/cpuinfo")  # of Linux
    processors = re.findall(r"^model name\s*: (.*)$", cpuinfo.read_text(), re.M) if cpuinfo.exists() else []
    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
        "commit": commit,
        "source": source,
        "seed": seed,
        "hardware": {
            "platform": platform.platform(),
            "processor": processors[0] if processors else platform.processor(),
            "cpu_count": os.cpu_count(),
            "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        },
        "server_pid": os.getpid(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _children_cpu_s() -> float:
    """CPU seconds of living descendants (Ray's workers are descendants of the simulation process)."""
    total = 0.0
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            total += sum(child.cpu_times()[:2])  # user and system
    return total
