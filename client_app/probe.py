"""What a device says about its hardware: its owner's node configuration, measured memory, and a timed training step."""

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import psutil
from flwr.app import RecordDict

from adapter import AdapterMask, RoundInstruction, gather, pack
from adapter.protocol import FACT_RANGES, check_facts
from client_app.memory import DeviceMemory, Parcel
from client_app.training import train_round
from client_app.worker import Device, shared_model
from conf.convert import downlink_dtype

_STEPS = 3  # the fastest of them: what the machine can do, not what else it was doing


def announced_facts(device: Device, node_config: Mapping[str, Any]) -> dict[str, float]:
    """Return what a device announces about itself, by ``profile.source``.

    ``config``: nothing. ``node``: what the node configuration says. ``probe``: also the memory and a measured training
    step, where it does not say. ProtocolError if it holds a fact outside its range.
    """
    if (source := device.config.profile.source) == "config":
        return {}
    given = check_facts({name: node_config[name] for name in FACT_RANGES if name in node_config})
    if source == "node":
        return given
    measured = {"memory-mib": psutil.virtual_memory().total / 2**20}
    if "step-s" not in given:
        measured["step-s"] = measured_step_s(device)
    return {**measured, **given}


def measured_step_s(device: Device) -> float:
    """Return the seconds of one real training step on a whole batch: the fastest of three, after a warm-up."""
    shared = shared_model(device)
    one_step = replace(device.config, training=replace(device.config.training, local_steps=1, local_epochs=None))
    mask, device = AdapterMask.full(shared.spec), replace(device, config=one_step)
    start = gather(shared.spec, shared.initial, mask)
    parcel = Parcel(pack(shared.spec, start, mask, downlink_dtype(one_step)).tobytes())
    instruction = RoundInstruction(1, 0.0, 0, 0.0, 0.0, 0.0, 0.0, "AB", b"")
    seconds = []
    for _ in range(_STEPS + 1):
        began, nothing_kept = time.perf_counter(), DeviceMemory(RecordDict())
        train_round(shared, device, parcel, instruction, nothing_kept)
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:])
