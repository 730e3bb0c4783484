"""Atomic checkpoints (adapter, position), replaced whole after every round; may a run go on: `server_app.folders`."""

import hashlib
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load, save

from adapter import AdapterSpec, AdapterState
from optimizer.atomic import synced, temporary_name
from optimizer.files import solution_from_dict, solution_to_dict
from optimizer.problem import Solution

_FOLDERS = ("checkpoint", "checkpoint.previous")
_PARTS = ("method", "devices")


class StorageError(ValueError):
    """The disk is full or cannot be written; the message is one line for the user."""


class CheckpointError(ValueError):
    """A run folder that cannot be continued; the message is one line for the user."""


@dataclass(frozen=True)
class Saved:
    """State of a part of the run: JSON facts and arrays by name."""

    facts: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass
class Checkpoint:
    """Adapter and position after a finished round.

    Every random stream is derived from (seed, round), so none is stored; the last plan is: iterative allocators start
    from it. ``method`` is what the method knows beside the adapter, ``devices`` what simulated devices remember where
    the engine can tell.
    """

    server_round: int
    sim_time_s: float
    state: AdapterState
    initial: dict[str, Any] | None
    plan: Solution | None = None
    method: Saved = field(default_factory=Saved)
    devices: Saved | None = None
    estimates: dict[str, list[float]] | None = None  # what measurements said about clocks and channels
    spent: dict[str, float] = field(default_factory=dict)  # what the run took so far, all its legs


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write ``folder/checkpoint`` completely, then let it take the place of the last one.

    The last one stays as ``checkpoint.previous`` until the next round, whenever the process is killed; after a
    StorageError it is still there, with nothing half-written beside it.
    """
    temporary = temporary_name(folder / _FOLDERS[0])
    try:
        _write(temporary, checkpoint)
        current, previous = (folder / name for name in _FOLDERS)
        if current.exists():
            shutil.rmtree(previous, ignore_errors=True)
            current.replace(previous)
        temporary.replace(current)
        synced(folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise StorageError(
            f"the checkpoint of round {checkpoint.server_round} could not be written to {folder} "
            f"({error.strerror or error}); make room and go on with: fedlodrop resume {folder}"
        ) from error


def _write(temporary: Path, checkpoint: Checkpoint) -> None:
    temporary.mkdir()
    parts = {name: part for name in _PARTS if (part := getattr(checkpoint, name)) is not None}
    arrays = {"adapter": checkpoint.state.to_tensors(), **{name: part.tensors for name, part in parts.items()}}
    for name, tensors in arrays.items():
        (temporary / f"{name}.safetensors").write_bytes(save(tensors))
    position = {
        "schema": "fedlodrop/checkpoint/1",
        "round": checkpoint.server_round,
        "sim_time_s": checkpoint.sim_time_s,
        "initial": checkpoint.initial,
        "plan": None if checkpoint.plan is None else solution_to_dict(checkpoint.plan),
        **{name: part.facts for name, part in parts.items()},
        "estimates": checkpoint.estimates,
        "spent": checkpoint.spent,
    }
    position = json.loads(json.dumps(position))  # as it will be read back
    position["sha256"] = _digest(temporary, position)
    (temporary / "position.json").write_text(json.dumps(position, indent=2))
    for path in (*temporary.iterdir(), temporary):
        synced(path)


def _digest(folder: Path, position: dict[str, Any]) -> str:
    rest = json.dumps({key: value for key, value in position.items() if key != "sha256"}, sort_keys=True)
    digest = hashlib.sha256(rest.encode())
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def load_checkpoint(folder: Path, spec: AdapterSpec) -> Checkpoint:
    """Read the newest complete checkpoint of a run; CheckpointError if none belongs to an adapter of this shape."""
    problems = []
    for name in _FOLDERS:
        try:
            return _read(folder / name, spec)
        except (OSError, KeyError, ValueError) as error:
            problems.append(f"{name}: {error}")
    raise CheckpointError(f"no usable checkpoint in {folder} ({'; '.join(problems)}); start a new run")


def has_checkpoint(folder: Path) -> bool:
    """Whether a run has got far enough to be resumed."""
    return any((folder / name / "position.json").exists() for name in _FOLDERS)


def _read(path: Path, spec: AdapterSpec) -> Checkpoint:
    position = json.loads((path / "position.json").read_text())
    if _digest(path, position) != position["sha256"]:
        raise ValueError("its files do not match their recorded sha256")
    state = AdapterState.from_tensors(load((path / "adapter.safetensors").read_bytes()))
    state.check(spec)
    plan = None if position["plan"] is None else solution_from_dict(position["plan"])
    saved = [name for name in _PARTS if name in position]
    parts = {name: Saved(position[name], load((path / f"{name}.safetensors").read_bytes())) for name in saved}
    kept = {"estimates": position["estimates"], "spent": position.get("spent", {}), **parts}
    return Checkpoint(int(position["round"]), float(position["sim_time_s"]), state, position["initial"], plan, **kept)
