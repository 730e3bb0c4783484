"""Problems and solutions as JSON files (schemas fedlodrop/resource-problem/2 and fedlodrop/solution/4).

Unusable input raises `ProblemError` naming the field; files are written whole or not at all.
"""

import difflib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.atomic import written_whole
from optimizer.problem import (
    BoundConstants,
    Choice,
    FloatArray,
    Goal,
    ProblemError,
    ResourceProblem,
    Solution,
    SolverStatus,
)
from wireless.channel import outage_margin

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
    """Refuse an object that lacks a key or has one that nobody would read."""
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
        raise ProblemError(f"schema must be {' or '.join(map(repr, schemas))}, found {_short(found)}")


def _short(value: Any) -> str:
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**50 else "a very long integer"
    return text if len(text) < 80 else f"{text[:77]}..."


def _object(source: Mapping[str, Any], key: str, needed: Sequence[str], optional: Sequence[str] = ()) -> dict[str, Any]:
    value = source[key]
    if not isinstance(value, dict):
        raise ProblemError(f"{key} must be an object, found {_short(value)}")
    _check_keys(value, f"{key}.", needed, optional)
    return value


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ProblemError(f"{where} must be a number, found {_short(value)}")
    try:
        return float(value)
    except OverflowError as error:
        raise ProblemError(f"{where} is too large for a number") from error


def _integer(value: Any, where: str, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**63:
        raise ProblemError(f"{where} must be an integer >= {least}, found {_short(value)}")
    return value


def _list(value: Any, where: str, kinds: Any, what: str, count: int | None = None) -> list[Any]:
    usable = isinstance(value, list) and all(isinstance(item, kinds) for item in value)
    if not usable or (count is not None and len(value) != count):
        found = f"{len(value)} of them" if usable else _short(value)
        raise ProblemError(f"{where} must be a list of {f'{count} ' if count is not None else ''}{what}, found {found}")
    return list(value)


def _numbers(value: Any, where: str, count: int) -> list[float]:
    return [_number(item, f"{where}[{i}]") for i, item in enumerate(_list(value, where, object, "numbers", count))]


def problem_from_dict(data: Mapping[str, Any]) -> ResourceProblem:
    """Return the problem that a decoded file describes."""
    _check_schema(data, PROBLEM_SCHEMA, EXTENDED_SCHEMA)
    second = data["schema"] == EXTENDED_SCHEMA
    extended, fading = (_EXTENDED, _FADING) if second else ((), ())
    access = data.get("access")
    if access not in list(_WIDTH) or (access == "tdma" and not second):
        known = "'fdma', 'tdma' (version 2) or 'ofdma'"
        raise ProblemError(f"access must be {known}, found {_short(access)}")
    needed = ("schema", "access", *_SCALARS, *_WIDTH[access], "payload", "bound", "devices")
    _check_keys(data, "", needed, ("total_examples", *extended))
    devices = _list(data["devices"], "devices", dict, "at least one object")
    if not devices:
        raise ProblemError("devices must be a list of at least one object, found none")
    clock = _CLOCK if any(key in device for device in devices for key in _CLOCK) else ()
    shared = second and all(_SHARED in device for device in devices)
    if shared:
        devices = [{_OWN if key == _SHARED else key: value for key, value in device.items()} for device in devices]
    for k, device in enumerate(devices):
        _check_keys(device, f"devices[{k}].", ("id", "channel_gain", *_DEVICE, *clock), fading)
    given = [key for key in fading if any(key in device for device in devices)]
    columns: dict[str, Any] = {
        key: np.array([_number(device.get(key, 0), f"devices[{k}].{key}") for k, device in enumerate(devices)])
        for key in (*_DEVICE, *clock, *given)
    }
    gain = _gains(data, devices) * _margin(data, columns.pop("rician_k", np.zeros(len(devices))))
    if second and isinstance(data["payload"], list):
        columns |= _ways(data["payload"], len(devices))
    else:
        payload = _object(data, "payload", _PAYLOAD, _DOWNLINK)
        columns |= {key: _payload(value, f"payload.{key}", len(devices)) for key, value in payload.items()}
    columns |= {key: _number(data[key], key) for key in (*_SCALARS, _WIDTH[access][0], "total_examples") if key in data}
    bound = _object(data, "bound", _BOUND)
    return ResourceProblem(
        access=access,
        bound=BoundConstants(**{key: _number(value, f"bound.{key}") for key, value in bound.items()}),
        device_ids=_device_ids(devices),
        channel_gain=gain,
        goal=_goal(data) if "objective" in data else None,
        shared_downlink=shared,
        **columns,
    )


def _ways(given: Any, count: int) -> dict[str, Any]:
    """Ways to send, of a payload that is a list; the first one's bits stand for the payload."""
    ways = []
    for i, way in enumerate(_list(given, "payload", dict, "objects")):
        _check_keys(way, f"payload[{i}].", _WAY, (*_DOWNLINK, "adapter_cycles"))
        parts = {key: _payload(value, f"payload[{i}].{key}", count) for key, value in way.items() if key != "name"}
        if not isinstance(way["name"], str) or not way["name"].isprintable():
            raise ProblemError(f"payload[{i}].name must be text, found {_short(way['name'])}")
        ways.append(Choice(way["name"], **parts))
    if not ways:
        raise ProblemError("payload must be an object, or a list of at least one way to send, found none")
    first = ways[0].parts
    return {"choices": tuple(ways)} | {key: first[key] for key in (*_PAYLOAD, *_DOWNLINK) if key in first}


def _goal(data: Mapping[str, Any]) -> Goal:
    names = [item.name for item in fields(Goal)][1:]
    found = _object(data, "objective", ("objective",), names)
    numbers = {key: _number(found[key], f"objective.{key}") for key in names if key in found}
    if not isinstance(found["objective"], str):
        raise ProblemError(f"objective.objective must be text, found {_short(found['objective'])}")
    return Goal(found["objective"], **numbers)


def _margin(data: Mapping[str, Any], rician_k: FloatArray) -> FloatArray:
    """Share of each device's gain to plan with, (K,): all of it, or what holds but for the outage probability."""
    if (rician_k < 0).any() or not np.isfinite(rician_k).all():
        raise ProblemError(f"devices[].rician_k must be finite and >= 0, found {rician_k.min():g}")
    if "outage_probability" not in data:
        return np.ones(1)
    if data["access"] == "ofdma":
        raise ProblemError("outage_probability needs 'fdma' or 'tdma': under OFDMA no single factor holds for a set")
    try:
        return outage_margin(_number(data["outage_probability"], "outage_probability"), rician_k)
    except ValueError as error:
        raise ProblemError(str(error)) from error


def _payload(value: Any, where: str, count: int) -> FloatArray:
    """One size for all, or a list with one per device."""
    sizes = np.array(_numbers(value, where, count) if isinstance(value, list) else [_number(value, where)] * count)
    if not (np.isfinite(sizes) & (sizes >= 0)).all():
        raise ProblemError(f"{where} must be finite and >= 0, found {_short(value)}")
    return sizes


def _device_ids(devices: list[dict[str, Any]]) -> tuple[str, ...]:
    first: dict[str, int] = {}
    for i, device in enumerate(devices):
        name = device["id"]
        if isinstance(name, bool) or not isinstance(name, str | int) or not str(name).isprintable():
            raise ProblemError(f"devices[{i}].id must be a name without control characters, found {_short(name)}")
        if first.setdefault(str(name), i) != i:
            raise ProblemError(f"devices[{i}].id must be unique, found {name!r} again")
    return tuple(first)


def _gains(data: Mapping[str, Any], devices: list[dict[str, Any]]) -> FloatArray:
    raw = [(f"devices[{i}].channel_gain", device["channel_gain"]) for i, device in enumerate(devices)]
    if data["access"] != "ofdma":
        return np.array([_number(value, where) for where, value in raw])
    count = _integer(data["num_subcarriers"], "num_subcarriers", 1)
    return np.array([_numbers(value, where, count) for where, value in raw])


def read_problem(path: str | Path) -> ResourceProblem:
    """Read a problem file."""
    return problem_from_dict(read_json(path))


def problem_to_dict(problem: ResourceProblem) -> dict[str, Any]:
    """Return the file form of a problem; a payload that differs between devices becomes a list.

    A part of a fleet says by whose examples its weights are divided (``total_examples``).
    """
    sizes = {key: getattr(problem, key) for key in (*_PAYLOAD, *_DOWNLINK) if getattr(problem, key) is not None}
    payload: Any = {key: _shortest(value) for key, value in sizes.items()}
    ways = problem.choices or (() if problem.noise is None else (Choice("given", problem.noise),))
    if ways:
        values = ((way.name, sizes | way.parts) for way in ways)
        payload = [{"name": name} | {key: _shortest(value) for key, value in part.items()} for name, part in values]
    part = problem.total_examples != float(problem.num_examples.sum())
    scalars = (*_SCALARS, *_WIDTH[problem.access], *(("total_examples",) if part else ()))
    per_device = [key for key in (*_DEVICE, *_CLOCK, "circuit_energy_j") if getattr(problem, key) is not None]
    goal = (
        {} if problem.goal is None else {key: value for key, value in asdict(problem.goal).items() if value is not None}
    )
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
        "payload": payload,
        "bound": {key: getattr(problem.bound, key) for key in _BOUND},
        "devices": devices,
    }


def _shortest(sizes: FloatArray) -> float | list[float]:
    return float(sizes[0]) if (sizes == sizes[0]).all() else sizes.tolist()


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
    finite = math.isfinite(solution.lower_bound)
    data |= {"status": solution.status.value} | ({} if finite else {"lower_bound": None, "gap": None})
    data |= {
        key: [x if math.isfinite(x) else None for x in data[key]] for key in ("dropout_rate", "latency_s", "energy_j")
    }
    for key in ("subcarrier_owner", "choice"):
        if key in data:
            data[key] = [index if index >= 0 else None for index in data[key]]
    return data | {"reasons": [reason or None for reason in solution.reasons], "notes": list(solution.notes)}


def solution_from_dict(data: Mapping[str, Any]) -> Solution:
    """Return the solution that a decoded file describes; what it claims is the checker's business."""
    _check_schema(data, *SOLUTION_SCHEMAS)
    _check_keys(data, "", ("schema", *_DECIDED), (*_ALLOCATED, *_TOLD))
    states = [item.value for item in SolverStatus]
    if data["status"] not in states:
        raise ProblemError(f"status must be one of {', '.join(states)}, found {_short(data['status'])}")
    for key, kind in (("method", str), ("admission", str), ("certificate", dict | None)):
        if not isinstance(data.get(key, "" if kind is str else None), kind):
            raise ProblemError(f"{key} must be {'text' if kind is str else 'an object'}, found {_short(data[key])}")
    bound = data["lower_bound"]
    if data.get("gap") is not None:  # said for readers; it follows from the two numbers before it
        _number(data["gap"], "gap")
    words = str | None
    given = [key for key in (*_PER_DEVICE, "bandwidth_hz", "cpu_hz") if key in data]
    arrays: dict[str, Any] = {key: _floats(data[key], key) for key in given}
    return Solution(
        method=data["method"],
        status=SolverStatus(data["status"]),
        scheduled=np.array(_list(data["scheduled"], "scheduled", bool, "true and false"), dtype=np.bool_),
        objective=_number(data["objective"], "objective"),
        lower_bound=-np.inf if bound is None else _number(bound, "lower_bound"),
        subcarrier_owner=_indices(data, "subcarrier_owner"),
        choice=_indices(data, "choice"),
        nodes=_integer(data.get("nodes", 0), "nodes", 0),
        iterations=_integer(data.get("iterations", 0), "iterations", 0),
        deadline_s=None if data.get("deadline_s") is None else _number(data["deadline_s"], "deadline_s"),
        solve_time_s=_number(data.get("solve_time_s", 0.0), "solve_time_s"),
        reasons=tuple(reason or "" for reason in _list(data.get("reasons", []), "reasons", words, "texts or null")),
        notes=tuple(_list(data.get("notes", []), "notes", str, "texts")),
        certificate=data.get("certificate"),
        admission=data.get("admission", "not proven"),
        **arrays,
    )


def _floats(values: Any, key: str) -> FloatArray:
    """List (or list of lists) of numbers, null becoming NaN."""
    rows: Iterable[Any] = values if isinstance(values, list) else [values]
    flat = [item for row in rows for item in (row if isinstance(row, list) else [row])]
    if not isinstance(values, list) or not all(type(item) in (int, float, type(None)) for item in flat):
        raise ProblemError(f"{key} must hold numbers or null in rows of one length")
    try:
        return np.array(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ProblemError(f"{key} must hold numbers or null in rows of one length") from error


def _indices(data: Mapping[str, Any], key: str) -> np.ndarray | None:
    if data.get(key) is None:
        return None
    found = _list(data[key], key, int | None, "indices or null")
    return np.array([-1 if k is None else _integer(k, key, 0) for k in found], dtype=np.int64)


def read_solution(path: str | Path) -> Solution:
    """Read a solution file."""
    return solution_from_dict(read_json(path))


def write_solution(path: str | Path, solution: Solution) -> None:
    """Write a solution file, one line per key."""
    content = solution_to_dict(solution).items()
    lines = (
        f" {json.dumps(key)}: {json.dumps(value, separators=(',', ':'), allow_nan=False)}" for key, value in content
    )
    _write(path, "{\n" + ",\n".join(lines) + "\n}")
