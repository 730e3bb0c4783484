"""Problems and solutions as JSON files (schemas fedlodrop/resource-problem/1 and fedlodrop/solution/2).

Unusable input raises `ProblemError` naming the field; files are written whole or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.atomic import written_whole
from optimizer.problem import BoundConstants, FloatArray, ProblemError, ResourceProblem, Solution, SolverStatus

PROBLEM_SCHEMA = "fedlodrop/resource-problem/1"
SOLUTION_SCHEMA, EARLIER_SCHEMA = (
    "fedlodrop/solution/2",
    "fedlodrop/solution/1",
)  # 2 adds the certificate and the admission
_DEVICE_KEYS = (
    "num_examples",
    "downlink_rate_bps",
    "cpu_hz",
    "capacitance",
    "fixed_cycles",
    "adapter_cycles",
    "max_tx_power_w",
    "energy_budget_j",
)


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


def write_json(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file atomically: a reader sees the old file or the new one, never a part."""
    text = json.dumps(content, indent=1, allow_nan=False)
    with written_whole(Path(path)) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def _take(source: Mapping[str, Any], key: str, where: str = "") -> Any:
    if key not in source:
        raise ProblemError(f"{where}{key} is missing")
    return source[key]


def _object(source: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = _take(source, key)
    if not isinstance(value, dict):
        raise ProblemError(f"{key} must be an object, found {value!r}")
    return value


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ProblemError(f"{where} must be a number, found {value!r}")
    try:
        return float(value)
    except OverflowError as error:
        raise ProblemError(f"{where} is too large for a number") from error


def _numbers(value: Any, where: str, count: int) -> list[float]:
    if not isinstance(value, list) or len(value) != count:
        found = f"{len(value)} of them" if isinstance(value, list) else repr(value)
        raise ProblemError(f"{where} must be a list of {count} numbers, found {found}")
    return [_number(item, f"{where}[{i}]") for i, item in enumerate(value)]


def problem_from_dict(data: Mapping[str, Any]) -> ResourceProblem:
    """Return the problem that a decoded file describes."""
    schema = _take(data, "schema")
    if schema != PROBLEM_SCHEMA:
        raise ProblemError(f"schema must be {PROBLEM_SCHEMA!r}, found {schema!r}")
    access = _take(data, "access")
    if access not in ("fdma", "ofdma"):
        raise ProblemError(f"access must be 'fdma' or 'ofdma', found {access!r}")
    devices = _take(data, "devices")
    if not isinstance(devices, list) or not devices or not all(isinstance(item, dict) for item in devices):
        raise ProblemError("devices must be a list of at least one object")
    bound, payload = _object(data, "bound"), _object(data, "payload")
    names = [item.name for item in fields(BoundConstants)]
    constants = BoundConstants(**{name: _number(_take(bound, name, "bound."), f"bound.{name}") for name in names})
    columns: dict[str, Any] = {
        key: np.array([_number(_take(d, key, f"devices[{i}]."), f"devices[{i}].{key}") for i, d in enumerate(devices)])
        for key in _DEVICE_KEYS
    }
    keys = (*_PAYLOAD_KEYS, *(key for key in _DOWNLINK_KEYS if key in payload))
    columns |= {key: _payload(_take(payload, key, "payload."), f"payload.{key}", len(devices)) for key in keys}
    for key in _CLOCK_KEYS:
        if any(key in device for device in devices):
            columns[key] = np.array(
                [_number(_take(d, key, f"devices[{i}]."), f"devices[{i}].{key}") for i, d in enumerate(devices)]
            )
    columns |= {key: _number(_take(data, key), key) for key in ("deadline_s", "noise_psd_w_per_hz", "max_dropout_rate")}
    if "total_examples" in data:
        columns["total_examples"] = _number(data["total_examples"], "total_examples")
    return ResourceProblem(
        access=access,
        bound=constants,
        device_ids=_device_ids(devices),
        channel_gain=_gains(data, devices, access),
        **columns,
        **_width(data, access),
    )


_PAYLOAD_KEYS = ("droppable_bits", "fixed_bits")
_CLOCK_KEYS = ("min_cpu_hz", "max_cpu_hz")  # optional: left out, the clock is fixed
_DOWNLINK_KEYS = (
    "downlink_droppable_bits",
    "downlink_fixed_bits",
)  # optional: left out, the download is like the upload


def _payload(value: Any, where: str, count: int) -> FloatArray:
    """One size for all, or a list with one per device."""
    sizes = np.array(_numbers(value, where, count) if isinstance(value, list) else [_number(value, where)] * count)
    if not (np.isfinite(sizes) & (sizes >= 0)).all():
        raise ProblemError(f"{where} must be finite and >= 0, found {value!r}")
    return sizes


def _device_ids(devices: list[dict[str, Any]]) -> tuple[str, ...]:
    ids = tuple(_take(item, "id", f"devices[{i}].") for i, item in enumerate(devices))
    first: dict[str, int] = {}
    for i, name in enumerate(ids):
        if not isinstance(name, str | int) or not str(name).isprintable():
            raise ProblemError(f"devices[{i}].id must be a name without control characters, found {name!r}")
        if first.setdefault(str(name), i) != i:
            raise ProblemError(f"devices[{i}].id must be unique, found {name!r} again")
    ids = tuple(map(str, ids))
    return ids


def _gains(data: Mapping[str, Any], devices: list[dict[str, Any]], access: str) -> FloatArray:
    raw = [_take(item, "channel_gain", f"devices[{i}].") for i, item in enumerate(devices)]
    if access == "fdma":
        return np.array([_number(value, f"devices[{i}].channel_gain") for i, value in enumerate(raw)])
    count = _take(data, "num_subcarriers")
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ProblemError(f"num_subcarriers must be an integer >= 1, found {count!r}")
    return np.array([_numbers(value, f"devices[{i}].channel_gain", count) for i, value in enumerate(raw)])


def _width(data: Mapping[str, Any], access: str) -> dict[str, Any]:
    key = "total_bandwidth_hz" if access == "fdma" else "subcarrier_hz"
    return {key: _number(_take(data, key), key)}


def read_problem(path: str | Path) -> ResourceProblem:
    """Read a problem file."""
    return problem_from_dict(read_json(path))


def problem_to_dict(problem: ResourceProblem) -> dict[str, Any]:
    """Return the file form of a problem; a payload that differs between devices becomes a list.

    A part of a fleet says by whose examples its weights are divided (``total_examples``).
    """
    ofdma = problem.access == "ofdma"
    payload = {}
    for key in (*_PAYLOAD_KEYS, *(key for key in _DOWNLINK_KEYS if getattr(problem, key) is not None)):
        sizes = getattr(problem, key)
        payload[key] = float(sizes[0]) if (sizes == sizes[0]).all() else sizes.tolist()
    width = {"num_subcarriers": problem.num_subcarriers, "subcarrier_hz": problem.subcarrier_hz} if ofdma else {}
    width |= {} if ofdma else {"total_bandwidth_hz": problem.total_bandwidth_hz}
    if problem.total_examples != float(problem.num_examples.sum()):
        width["total_examples"] = problem.total_examples
    devices = [
        {"id": name, "channel_gain": problem.channel_gain[k].tolist()}
        | {
            key: float(getattr(problem, key)[k])
            for key in (*_DEVICE_KEYS, *_CLOCK_KEYS)
            if getattr(problem, key) is not None
        }
        for k, name in enumerate(problem.device_ids)
    ]
    return {
        "schema": PROBLEM_SCHEMA,
        "access": problem.access,
        "deadline_s": problem.deadline_s,
        "noise_psd_w_per_hz": problem.noise_psd_w_per_hz,
        "max_dropout_rate": problem.max_dropout_rate,
        **width,
        "payload": payload,
        "bound": {item.name: getattr(problem.bound, item.name) for item in fields(BoundConstants)},
        "devices": devices,
    }


def write_problem(path: str | Path, problem: ResourceProblem) -> None:
    """Write a problem file."""
    write_json(path, problem_to_dict(problem))


def _nullable(values: FloatArray) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]


def solution_to_dict(solution: Solution) -> dict[str, Any]:
    """Return the file form of a solution; NaN and infinities become null."""
    finite = np.isfinite(solution.lower_bound)
    data: dict[str, Any] = {
        "schema": SOLUTION_SCHEMA,
        "method": solution.method,
        "status": solution.status.value,
        "objective": solution.objective,
        "lower_bound": solution.lower_bound if finite else None,
        "gap": solution.gap if finite else None,
        "nodes": solution.nodes,
        "iterations": solution.iterations,
        "solve_time_s": solution.solve_time_s,
        "scheduled": solution.scheduled.tolist(),
    }
    data |= {name: _nullable(getattr(solution, name)) for name in ("dropout_rate", "latency_s", "energy_j")}
    if solution.bandwidth_hz is not None:
        data["bandwidth_hz"] = solution.bandwidth_hz.tolist()
    if solution.subcarrier_owner is not None:
        data["subcarrier_owner"] = [int(owner) if owner >= 0 else None for owner in solution.subcarrier_owner]
    if solution.cpu_hz is not None:
        data["cpu_hz"] = solution.cpu_hz.tolist()
    data["tx_power_w"] = solution.tx_power_w.tolist()
    data["reasons"], data["notes"] = [reason or None for reason in solution.reasons], list(solution.notes)
    data["certificate"], data["admission"] = solution.certificate, solution.admission
    return data


def solution_from_dict(data: Mapping[str, Any]) -> Solution:
    """Return the solution that a decoded file describes; what it claims is the checker's business."""
    schema = _take(data, "schema")
    if schema not in (SOLUTION_SCHEMA, EARLIER_SCHEMA):
        raise ProblemError(f"schema must be {SOLUTION_SCHEMA!r} or {EARLIER_SCHEMA!r}, found {schema!r}")
    status = _take(data, "status")
    if status not in [item.value for item in SolverStatus]:
        raise ProblemError(f"status must be one of {', '.join(item.value for item in SolverStatus)}, found {status!r}")
    scheduled = _take(data, "scheduled")
    if not isinstance(scheduled, list) or not all(isinstance(item, bool) for item in scheduled):
        raise ProblemError("scheduled must be a list of true and false")
    bound, owner = _take(data, "lower_bound"), data.get("subcarrier_owner")
    return Solution(
        method=str(_take(data, "method")),
        status=SolverStatus(status),
        scheduled=np.array(scheduled, dtype=np.bool_),
        dropout_rate=_floats(data, "dropout_rate"),
        latency_s=_floats(data, "latency_s"),
        energy_j=_floats(data, "energy_j"),
        tx_power_w=_floats(data, "tx_power_w"),
        objective=_number(_take(data, "objective"), "objective"),
        lower_bound=-np.inf if bound is None else _number(bound, "lower_bound"),
        bandwidth_hz=_floats(data, "bandwidth_hz") if "bandwidth_hz" in data else None,
        subcarrier_owner=None if owner is None else _owners(owner),
        nodes=int(_number(data.get("nodes", 0), "nodes")),
        iterations=int(_number(data.get("iterations", 0), "iterations")),
        solve_time_s=_number(data.get("solve_time_s", 0.0), "solve_time_s"),
        reasons=tuple(str(reason or "") for reason in data.get("reasons", ())),
        notes=tuple(map(str, data.get("notes", ()))),
        certificate=data.get("certificate"),
        admission=str(data.get("admission", "not proven")),
        cpu_hz=_floats(data, "cpu_hz") if "cpu_hz" in data else None,
    )


def _floats(data: Mapping[str, Any], key: str) -> FloatArray:
    """List (or list of lists) of numbers, null becoming NaN."""
    try:
        return np.array(_take(data, key), dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ProblemError(f"{key} must hold numbers or null in rows of one length") from error


def _owners(values: Any) -> np.ndarray:
    usable = isinstance(values, list) and all(
        item is None or (isinstance(item, int) and not isinstance(item, bool)) for item in values
    )
    if not usable:
        raise ProblemError("subcarrier_owner must be a list of device indices or null")
    return np.array([-1 if item is None else item for item in values], dtype=np.int64)


def read_solution(path: str | Path) -> Solution:
    """Read a solution file."""
    return solution_from_dict(read_json(path))


def write_solution(path: str | Path, solution: Solution) -> None:
    """Write a solution file."""
    write_json(path, solution_to_dict(solution))
