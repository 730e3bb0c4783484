"""Atomic checkpoints: the adapter and the position of the run, replaced as one folder after every round."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load, save

from adapter import AdapterSpec, AdapterState
from optimizer.io import solution_from_dict, solution_to_dict
from optimizer.problem import Solution

_FOLDERS = ("checkpoint", "checkpoint.previous")
_PARTS = ("method", "devices")


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

    Every random stream is derived from (seed, round), so none is stored; the last plan is, because iterative allocators start
    from it. ``method`` is what the method knows beside the adapter, ``devices`` what simulated devices remember where the
    engine can tell (None: they forget it with their processes).
    """

    server_round: int
    sim_time_s: float
    state: AdapterState
    initial: dict[str, Any] | None
    plan: Solution | None = None
    method: Saved = field(default_factory=Saved)
    devices: Saved | None = None


def save_checkpoint(folder: Path, checkpoint: Checkpoint, overrides: str) -> None:
    """Write ``folder/checkpoint`` completely, then let it take the place of the last one.

    The last one stays as ``checkpoint.previous`` until the next round: a process killed between the two renames leaves one.
    """
    temporary = folder / f".checkpoint.{os.getpid()}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    tensors = save(_flatten(checkpoint.state))
    (temporary / "adapter.safetensors").write_bytes(tensors)
    others = {name: part for name in _PARTS if (part := getattr(checkpoint, name)) is not None}
    for name, part in others.items():
        (temporary / f"{name}.safetensors").write_bytes(save(part.tensors))
    position = {
        "schema": "fedlodrop/checkpoint/1",
        "round": checkpoint.server_round,
        "sim_time_s": checkpoint.sim_time_s,
        "initial": checkpoint.initial,
        "plan": None if checkpoint.plan is None else solution_to_dict(checkpoint.plan),
        "overrides": overrides,
        **{name: part.facts for name, part in others.items()},
        "sha256": hashlib.sha256(tensors).hexdigest(),
    }
    (temporary / "position.json").write_text(json.dumps(position, indent=2))
    for path in temporary.iterdir():
        with path.open("rb") as handle:
            os.fsync(handle.fileno())
    current, previous = (folder / name for name in _FOLDERS)
    if current.exists():
        shutil.rmtree(previous, ignore_errors=True)
        current.replace(previous)
    temporary.replace(current)


def load_checkpoint(folder: Path, spec: AdapterSpec) -> Checkpoint:
    """Read the newest complete checkpoint of a run.

    Raises
    ------
    CheckpointError
        If there is none, or it belongs to an adapter of another shape.
    """
    problems = []
    for name in _FOLDERS:
        try:
            return _read(folder / name, spec)
        except (OSError, KeyError, ValueError) as error:
            problems.append(f"{name}: {error}")
    raise CheckpointError(f"no usable checkpoint in {folder} ({'; '.join(problems)}); start a new run without run.resume")


def saved_overrides(folder: Path) -> str:
    """Return the overrides with which an unfinished run was started.

    Raises
    ------
    CheckpointError
        If the folder holds no checkpoint.
    """
    for name in _FOLDERS:
        try:
            return str(json.loads((folder / name / "position.json").read_text())["overrides"])
        except (OSError, KeyError, ValueError):
            continue
    raise CheckpointError(f"no checkpoint found in {folder}; expected the folder of a run that finished at least one round")


def _read(path: Path, spec: AdapterSpec) -> Checkpoint:
    position = json.loads((path / "position.json").read_text())
    tensors = (path / "adapter.safetensors").read_bytes()
    if hashlib.sha256(tensors).hexdigest() != position["sha256"]:
        raise ValueError("the adapter file does not match its recorded sha256")
    state = _unflatten(load(tensors))
    state.check(spec)
    plan = None if position["plan"] is None else solution_from_dict(position["plan"])
    others = {
        name: Saved(position[name], load((path / f"{name}.safetensors").read_bytes())) for name in _PARTS if name in position
    }
    return Checkpoint(int(position["round"]), float(position["sim_time_s"]), state, position["initial"], plan, **others)


def _flatten(state: AdapterState) -> dict[str, np.ndarray]:
    flat = {f"lora_A/{name}": value for name, value in state.lora_A.items()}
    flat |= {f"lora_B/{name}": value for name, value in state.lora_B.items()}
    flat |= {f"head/{name}": value for name, value in state.head.items()}
    flat |= {f"base/{name}": value for name, value in state.base.items()}
    return {name: np.ascontiguousarray(value, dtype=np.float32) for name, value in flat.items()}


def _unflatten(flat: dict[str, np.ndarray]) -> AdapterState:
    state = AdapterState({}, {}, {})
    for name, value in flat.items():
        part, key = name.split("/", 1)
        getattr(state, part)[key] = value
    return state
