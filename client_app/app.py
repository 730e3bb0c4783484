"""The ClientApp: says who it is, trains a sub-adapter, scores a model on held-out examples."""

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

# Ray's workers import first from the folder of the process that starts it: that in which the SuperLink was started,
# perhaps another checkout, whose `client_app` would then run.
if Path(sys.argv[0]).name == "flwr-simulation":
    os.chdir(Path(__file__).resolve().parent.parent)

from adapter import DeviceAnnouncement, RoundInstruction  # noqa: E402
from adapter.protocol import BASE, BUFFER, INSTRUCTION, PROFILE, REPORT, buffer_fields  # noqa: E402
from client_app.memory import DeviceMemory, Parcel  # noqa: E402
from conf.compose import ROOT, ConfigError, compose_config  # noqa: E402
from conf.convert import device_code  # noqa: E402
from tasks.process import prepare_process  # noqa: E402

if TYPE_CHECKING:  # torch and its friends are imported inside the handlers: the driver process needs none
    from client_app.worker import Device

prepare_process()
app = ClientApp()


def _require_same_code(code: object, context: Context) -> None:
    try:
        config = compose_config(str(context.run_config.get("overrides", "")))
        mine, paths = device_code(config), [path for path in (config.task.name, config.partition.kind) if ":" in path]
    except ConfigError:  # settings that the server's own code could read
        mine, paths = b"", []
    if code == mine:
        return
    if paths and isinstance(code, bytes) and code[:4] == mine[:4]:
        raise RuntimeError(
            f"the module of {' or '.join(paths)} on this device differs from the server's; copy the server's file here"
        )
    raise RuntimeError(
        f"this device runs other code than the server (from {ROOT}); on a SuperNode, delete that folder, the next run "
        "brings it anew; in a simulation, stop the SuperLink that was started elsewhere, or use `fedlodrop run`"
    )


def _open(message: Message, context: Context) -> "tuple[RoundInstruction, Device, Parcel, DeviceMemory]":
    """Return the orders, the device that they are for, the arrays beside them and what the device remembers."""
    from client_app.worker import open_device

    instruction = RoundInstruction.from_record(message.content.config_records[INSTRUCTION])
    _require_same_code(instruction.code, context)
    device, arrays = open_device(context.run_config, context.node_config), message.content.array_records[BUFFER]
    parcel = Parcel(arrays[BUFFER].data, arrays[BASE].data if BASE in arrays else None)
    return instruction, device, parcel, DeviceMemory(context.state)


@app.query("profile")
def profile(message: Message, context: Context) -> Message:
    """Answer with the partition, the number of examples, and what is known about the hardware."""
    from client_app.probe import announced_facts
    from client_app.worker import open_device

    _require_same_code(message.content.config_records[INSTRUCTION]["code"], context)
    device = open_device(context.run_config, context.node_config)
    facts = announced_facts(device, context.node_config)
    answer = DeviceAnnouncement(device.number, len(device.train), len(device.holdout), facts)
    return Message(RecordDict({PROFILE: MetricRecord(answer.to_record())}), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the received sub-adapter and answer with the changes of its entries."""
    from client_app.radio import transmit, wait
    from client_app.training import train_round
    from client_app.worker import shared_model

    instruction, device, parcel, memory = _open(message, context)
    wait(len(parcel.buffer) + len(parcel.base or b""), instruction.downlink_rate_bps)
    flat, report = train_round(shared_model(device), device, parcel, instruction, memory)
    report = replace(report, upload_s=transmit(flat.nbytes, instruction, context.node_config))
    memory.commit()
    arrays = ArrayRecord({BUFFER: Array(**buffer_fields(flat))})
    return Message(RecordDict({BUFFER: arrays, REPORT: MetricRecord(report.to_record())}), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Score the received adapter on the device's held-out examples; nothing of it is remembered."""
    from client_app.training import score
    from client_app.worker import shared_model

    instruction, device, parcel, memory = _open(message, context)
    scores = score(shared_model(device), device, parcel, instruction, memory)
    return Message(RecordDict({REPORT: MetricRecord(scores)}), reply_to=message)
