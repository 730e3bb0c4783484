"""Problems and solutions as JSON files (schemas fedlodrop/resource-problem/2 and fedlodrop/solution/4).

Unusable input raises `ProblemError` naming the field; files are written whole or not at all.
"""

import difflib
import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np

from optimizer.atomic import written_whole
from optimizer.problem import BoundConstants, Goal, ProblemError, ResourceProblem, Solution, SolverStatus, number
from wireless.channel import outage_margin
from wireless.units import FloatArray

PROBLEM_SCHEMA, EXTENDED_SCHEMA = "fedlodrop/resource-problem/1", "fedlodrop/resource-problem/2"  # 2: all optional
# Version 2 has a certificate and how admission ended; 3 tells a certificate's rates by ``shift``; 4 has certificates of
# choices, chosen deadlines and chosen clocks as well.
SOLUTION_SCHEMAS = tuple(f"fedlodrop/solution/{version}" for version in (1, 2, 3, 4))
_SCALARS = ("deadline_s", "noise_psd_w_per_hz", "max_dropout_rate")
_BAND = ("total_bandwidth_hz",)
_WIDTH = {"fdma": _BAND, "tdma": _BAND, "ofdma": ("subcarrier_hz", "num_subcarriers")}
_PAYLOAD = ("droppable_bits", "fixed_bits")
_DOWNLINK = ("downlink_droppable_bits", "downlink_fixed_bits")  # optional: left out, the download is like the upload
_CLOCK = ("min_cpu_hz", "max_cpu_hz")  # optional: left out, the clock is fixed
_EXTENDED, _FADING = ("objective", "outage_probability"), ("circuit_energy_j", "rician_k")  # of version 2
_SHARED, _OWN = "broadcast_rate_bps", "downlink_rate_bps"  # of all devices: all download at the least of who takes part
_WAY = ("name", "noise", *_PAYLOAD)  # of a payload that is a list of ways to send, version 2
_GOAL = tuple(item.name for item in fields(Goal))
_DEVICE = (
    *("num_examples", "downlink_rate_bps", "cpu_hz", "capacitance", "fixed_cycles", "adapter_cycles"),
    *("max_tx_power_w", "energy_budget_j"),
)
_BOUND = tuple(item.name for item in fields(BoundConstants))
_PER_DEVICE = ("dropout_rate", "latency_s", "energy_j", "tx_power_w")
_DECIDED = ("method", "status", "objective", "lower_bound", "scheduled", *_PER_DEVICE)
_ALLOCATED = ("bandwidth_hz", "subcarrier_owner", "cpu_hz", "deadline_s", "choice")
_TOLD = ("gap", "nodes", "iterations", "solve_time_s", "reasons", "notes", "certificate", "admission")


def read_json(path: str | Path) -> dict[str, Any]:
    """Return the object in a JSON file; raise ProblemError if it cannot be read or is not an object."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"), object_pairs_hook=_no_key_twice)
    except OSError as error:
        raise ProblemError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ProblemError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ProblemError(f"{path} must hold a JSON object, found {type(content).__name__}")
    return content


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError(f"a key occurs twice in the object that begins with {pairs[0][0]!r}")
    return found


def _check_keys(source: Mapping[str, Any], where: str, needed: Sequence[str], optional: Sequence[str] = ()) -> None:
    for key in needed:
        if key not in source:
            raise ProblemError(f"{where}{key} is missing")
    for key in source:
        if key not in needed and key not in optional:
            near = difflib.get_close_matches(key, [*needed, *optional], 1)
            raise ProblemError(f"{where}{key} is unknown{f', did you mean {near[0]}?' if near else ''}")


def _check_schema(source: Mapping[str, Any], *schemas: str) -> None:
    found = source.get("schema")
    if found not in schemas:
        raise ProblemError(f"schema must be {' or '.join(map(repr, schemas))}, found {found!r:.80}")


def _of_kind(value: Any, where: str, kind: type, what: str) -> Any:
    if not isinstance(value, kind):
        raise ProblemError(f"{where} must be {what}, found {value!r:.80}")
    return value


def _object(source: Mapping[str, Any], key: str, needed: Sequence[str], optional: Sequence[str] = ()) -> dict[str, Any]:
    value = _of_kind(source[key], key, dict, "an object")
    _check_keys(value, f"{key}.", needed, optional)
    return dict(value)


def _each_number(source: Mapping[str, Any], where: str) -> dict[str, float]:
    return {key: number(value, where + key) for key, value in source.items()}


def _integer(value: Any, where: str, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**63:
        raise ProblemError(f"{where} must be an integer >= {least}, found {value!r:.80}")
    return value


def _list(value: Any, where: str, kinds: Any, what: str, count: int | None = None) -> list[Any]:
    usable = isinstance(value, list) and all(isinstance(item, kinds) for item in value)
    if not usable or (count is not None and len(value) != count):
        found = f"{len(value)} of them" if usable else f"{value!r:.80}"
        raise ProblemError(f"{where} must be a list of {f'{count} ' if count is not None else ''}{what}, found {found}")
    return list(value)


def _objects(data: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    if not (found := _list(data[key], key, dict, "at least one object")):
        raise ProblemError(f"{key} must be a list of at least one object, found none")
    return found


def _numbers(value: Any, where: str, count: int) -> list[float]:
    return [number(item, f"{where}[{i}]") for i, item in enumerate(_list(value, where, object, "numbers", count))]


def problem_from_dict(data: Mapping[str, Any]) -> ResourceProblem:
    """Return the problem that a decoded file describes."""
    _check_schema(data, PROBLEM_SCHEMA, EXTENDED_SCHEMA)
    second = data["schema"] == EXTENDED_SCHEMA
    extended, fading = (_EXTENDED, _FADING) if second else ((), ())
    access = data.get("access")
    if access not in list(_WIDTH) or (access == "tdma" and not second):
        known = "'fdma', 'tdma' (version 2) or 'ofdma'"
        raise ProblemError(f"access must be {known}, found {access!r:.80}")
    needed = ("schema", "access", *_SCALARS, *_WIDTH[access], "payload", "bound", "devices")
    _check_keys(data, "", needed, ("total_examples", *extended))
    devices = _objects(data, "devices")
    clock = _CLOCK if any(key in device for device in devices for key in _CLOCK) else ()
    shared = second and all(_SHARED in device for device in devices)
    if shared:
        devices = [{_OWN if key == _SHARED else key: value for key, value in device.items()} for device in devices]
    for k, device in enumerate(devices):
        _check_keys(device, f"devices[{k}].", ("id", "channel_gain", *_DEVICE, *clock), fading)
    given = [key for key in fading if any(key in device for device in devices)]
    columns: dict[str, Any] = {
        key: np.array([number(device.get(key, 0), f"devices[{k}].{key}") for k, device in enumerate(devices)])
        for key in (*_DEVICE, *clock, *given, *(() if access == "ofdma" else ("channel_gain",)))
    }
    if access == "ofdma":
        width = _integer(data["num_subcarriers"], "num_subcarriers", 1)
        gains = enumerate(device["channel_gain"] for device in devices)
        columns["channel_gain"] = np.array([_numbers(row, f"devices[{k}].channel_gain", width) for k, row in gains])
    columns["channel_gain"] *= _margin(data, columns.pop("rician_k", np.zeros(len(devices))))
    if second and isinstance(data["payload"], list):
        columns["choices"] = _ways(_objects(data, "payload"), len(devices))
        first = next(iter(columns["choices"].values()))
        columns |= {key: value for key, value in first.items() if key in (*_PAYLOAD, *_DOWNLINK)}
    else:
        columns |= _sizes(_object(data, "payload", _PAYLOAD, _DOWNLINK), "payload.", len(devices))
    if "objective" in data:
        goal = _object(data, "objective", _GOAL[:1], _GOAL[1:])
        columns["goal"] = Goal(goal.pop("objective"), **_each_number(goal, "objective."))
    scalars = (*_SCALARS, _WIDTH[access][0], "total_examples")
    columns |= _each_number({key: data[key] for key in scalars if key in data}, "")
    return ResourceProblem(
        access=access,
        bound=BoundConstants(**_each_number(_object(data, "bound", _BOUND), "bound.")),
        device_ids=_device_ids(devices),
        shared_downlink=shared,
        **columns,
    )


def _sizes(source: Mapping[str, Any], where: str, count: int) -> dict[str, Any]:
    """Numbers that are one for all devices, or a list with one per device."""
    found = {}
    for key, value in source.items():
        found[key] = _numbers(value, where + key, count) if isinstance(value, list) else number(value, where + key)
        if not (np.isfinite(found[key]) & (np.asarray(found[key]) >= 0)).all():
            raise ProblemError(f"{where}{key} must be finite and >= 0, found {value!r:.80}")
    return found


def _ways(given: list[dict[str, Any]], count: int) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for i, way in enumerate(given):
        _check_keys(way, f"payload[{i}].", _WAY, (*_DOWNLINK, "adapter_cycles"))
        name = way["name"]
        if not isinstance(name, str) or not name.isprintable() or name in found:
            raise ProblemError(f"payload[{i}].name must be text that names no other way, found {name!r:.80}")
        found[name] = _sizes({key: value for key, value in way.items() if key != "name"}, f"payload[{i}].", count)
    return found


def _margin(data: Mapping[str, Any], rician_k: FloatArray) -> FloatArray:
    """Share of each device's gain to plan with, (K,): all of it, or what holds but for the outage probability."""
    if (rician_k < 0).any() or not np.isfinite(rician_k).all():
        raise ProblemError(f"devices[].rician_k must be finite and >= 0, found {rician_k.min():g}")
    if "outage_probability" not in data:
        return np.ones(1)
    if data["access"] == "ofdma":
        raise ProblemError("outage_probability needs 'fdma' or 'tdma': under OFDMA no single factor holds for a set")
    try:
        return outage_margin(number(data["outage_probability"], "outage_probability"), rician_k)
    except ValueError as error:
        raise ProblemError(str(error)) from error


def _device_ids(devices: list[dict[str, Any]]) -> tuple[str, ...]:
    first: dict[str, int] = {}
    for i, device in enumerate(devices):
        name = device["id"]
        if isinstance(name, bool) or not isinstance(name, str | int) or not str(name).isprintable():
            raise ProblemError(f"devices[{i}].id must be a name without control characters, found {name!r:.80}")
        if first.setdefault(str(name), i) != i:
            raise ProblemError(f"devices[{i}].id must be unique, found {name!r} again")
    return tuple(first)


def read_problem(path: str | Path) -> ResourceProblem:
    """Read a problem file."""
    return problem_from_dict(read_json(path))


def problem_to_dict(problem: ResourceProblem) -> dict[str, Any]:
    """Return the file form of a problem; a payload that differs between devices becomes a list.

    A part of a fleet says by whose examples its weights are divided (``total_examples``).
    """
    sizes = {key: getattr(problem, key) for key in (*_PAYLOAD, *_DOWNLINK) if getattr(problem, key) is not None}
    ways: Any = problem.choices or ({} if problem.noise is None else {"given": {"noise": problem.noise}})
    goal = {} if problem.goal is None else {k: v for k, v in asdict(problem.goal).items() if v is not None}
    part = problem.total_examples != float(problem.num_examples.sum())
    scalars = (*_SCALARS, *_WIDTH[problem.access], *(("total_examples",) if part else ()))
    per_device = [key for key in (*_DEVICE, *_CLOCK, "circuit_energy_j") if getattr(problem, key) is not None]
    word = {_OWN: _SHARED} if problem.shared_downlink else {}
    devices = [
        {"id": name, "channel_gain": problem.channel_gain[k].tolist()}
        | {word.get(key, key): float(getattr(problem, key)[k]) for key in per_device}
        for k, name in enumerate(problem.device_ids)
    ]
    second = goal or ways or word or "circuit_energy_j" in per_device or problem.access == "tdma"
    return {
        "schema": EXTENDED_SCHEMA if second else PROBLEM_SCHEMA,
        "access": problem.access,
        **{key: getattr(problem, key) for key in scalars},
        **({"objective": goal} if goal else {}),
        "payload": [{"name": name} | _shortest(sizes | way) for name, way in ways.items()] or _shortest(sizes),
        "bound": asdict(problem.bound),
        "devices": devices,
    }


def _shortest(sizes: Mapping[str, FloatArray]) -> dict[str, Any]:
    return {key: float(each[0]) if (each == each[0]).all() else each.tolist() for key, each in sizes.items()}


def write_problem(path: str | Path, problem: ResourceProblem) -> None:
    """Write a problem file."""
    _write(path, json.dumps(problem_to_dict(problem), indent=1, allow_nan=False))


def _write(path: str | Path, text: str) -> None:
    with written_whole(Path(path)) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def solution_to_dict(solution: Solution) -> dict[str, Any]:
    """Return the file form of a solution; NaN and infinities become null."""
    proof = solution.certificate
    beyond = proof is not None and any(getattr(solution, key) is not None for key in ("choice", "deadline_s", "cpu_hz"))
    data: dict[str, Any] = {"schema": SOLUTION_SCHEMAS[3 if beyond else 2 if "shift" in (proof or {}) else 1]}
    for key in (*_DECIDED, *_ALLOCATED, *_TOLD):
        value = getattr(solution, key)
        if value is not None or key not in _ALLOCATED:
            data[key] = value.tolist() if isinstance(value, np.ndarray) else value
    if not math.isfinite(solution.lower_bound):
        data |= {"lower_bound": None, "gap": None}
    for key in ("dropout_rate", "latency_s", "energy_j"):
        data[key] = [x if math.isfinite(x) else None for x in data[key]]
    for key in data.keys() & {"subcarrier_owner", "choice"}:
        data[key] = [index if index >= 0 else None for index in data[key]]
    reasons = [reason or None for reason in solution.reasons]
    return data | {"status": solution.status.value, "reasons": reasons, "notes": list(solution.notes)}


def solution_from_dict(data: Mapping[str, Any]) -> Solution:
    """Return the solution that a decoded file describes; what it claims is the checker's business."""
    _check_schema(data, *SOLUTION_SCHEMAS)
    _check_keys(data, "", ("schema", *_DECIDED), (*_ALLOCATED, *_TOLD))
    may_be_null = ("lower_bound", "gap", "certificate", *_ALLOCATED)
    given = {key: value for key, value in data.items() if value is not None or key not in may_be_null}
    found = {key: _READERS[key](value, key) for key, value in given.items() if key != "schema"}
    found.pop("gap", None)  # said for readers; it follows from objective and bound
    return Solution(**{"lower_bound": -np.inf} | found)


def _status(value: Any, key: str) -> SolverStatus:
    states = [item.value for item in SolverStatus]
    if value not in states:
        raise ProblemError(f"{key} must be one of {', '.join(states)}, found {value!r:.80}")
    return SolverStatus(value)


def _floats(value: Any, key: str) -> FloatArray:
    """List (or list of lists) of numbers, null becoming NaN."""
    with suppress(ValueError, OverflowError):
        array = np.array(value, dtype=object)
        if isinstance(value, list) and all(type(item) in (int, float, NoneType) for item in array.flat):
            return array.astype(np.float64)
    raise ProblemError(f"{key} must hold numbers or null in rows of one length")


def _indices(value: Any, key: str) -> np.ndarray:
    found = _list(value, key, int | None, "indices or null")
    return np.array([-1 if k is None else _integer(k, key, 0) for k in found], dtype=np.int64)


_READERS: dict[str, Callable[[Any, str], Any]] = {
    **dict.fromkeys(("method", "admission"), lambda value, key: _of_kind(value, key, str, "text")),
    **dict.fromkeys(("objective", "lower_bound", "gap", "deadline_s", "solve_time_s"), number),
    **dict.fromkeys(("nodes", "iterations"), lambda value, key: _integer(value, key, 0)),
    **dict.fromkeys((*_PER_DEVICE, "bandwidth_hz", "cpu_hz"), _floats),
    **dict.fromkeys(("subcarrier_owner", "choice"), _indices),
    "status": _status,
    "scheduled": lambda value, key: np.array(_list(value, key, bool, "true and false"), dtype=np.bool_),
    "reasons": lambda value, key: tuple(item or "" for item in _list(value, key, str | None, "texts or null")),
    "notes": lambda value, key: tuple(_list(value, key, str, "texts")),
    "certificate": lambda value, key: _of_kind(value, key, dict, "an object"),
}


def read_solution(path: str | Path) -> Solution:
    """Read a solution file."""
    return solution_from_dict(read_json(path))


def write_solution(path: str | Path, solution: Solution) -> None:
    """Write a solution file, one line per key."""
    dump = functools.partial(json.dumps, separators=(",", ":"), allow_nan=False)
    lines = (f" {dump(key)}: {dump(value)}" for key, value in solution_to_dict(solution).items())
    _write(path, "{\n" + ",\n".join(lines) + "\n}")
