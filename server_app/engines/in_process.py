"""Flower's grid without Flower's processes: the same ServerApp and ClientApp, one process, no Ray.

Messages are serialized and parsed in both directions, exactly as on a network, so sizes and number types are the real
ones.
"""

import hashlib
import importlib
import traceback
from collections.abc import Iterable
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from server_app.checkpoint import Saved
from strategy.flower_internals import ErrorCode, from_wire, identify_process, set_metadata, to_wire

_FIRST_NODE = 2**63 + 1000  # node identifiers as long as real ones
_RUN = 2**63 + 1


class LocalGrid(Grid):
    """A federation in this process: ``client_app`` answers message after message for the devices 0 to num_nodes - 1."""

    def __init__(self, client_app: ClientApp, num_nodes: int, run_config: dict[str, Any]) -> None:
        identify_process(_RUN)  # else no message can be made
        self._app, self._sent = client_app, 0
        self._waiting: dict[str, Message] = {}  # sent, not answered yet
        self._contexts: dict[int, Context] = {}
        for k in range(num_nodes):
            place: dict[str, Any] = {"partition-id": k, "num-partitions": num_nodes}
            self._contexts[_FIRST_NODE + k] = Context(_RUN, _FIRST_NODE + k, place, RecordDict(), dict(run_config))

    def save_devices(self) -> Saved:
        """Return what the devices remember; arrays that several of them hold are listed once."""
        facts: dict[str, Any] = {}
        tensors: dict[str, np.ndarray] = {}
        for node, context in self._contexts.items():
            records: dict[str, Any] = {}
            for name, record in context.state.array_records.items():
                records[name] = {}
                for key, array in record.items():
                    value = array.numpy()
                    digest = hashlib.sha256(str(value.shape).encode() + value.tobytes()).hexdigest()
                    records[name][key], tensors[digest] = digest, value
            numbers = {name: dict(record) for name, record in context.state.config_records.items()}
            facts[str(node)] = {"arrays": records, "numbers": numbers}
        return Saved(facts, tensors)

    def restore_devices(self, saved: Saved) -> None:
        """Give every device its memory back."""
        for node, context in self._contexts.items():
            held = saved.facts.get(str(node), {"arrays": {}, "numbers": {}})
            for name, keys in held["arrays"].items():
                context.state[name] = ArrayRecord({key: Array(saved.tensors[digest]) for key, digest in keys.items()})
            for name, numbers in held["numbers"].items():
                context.state[name] = ConfigRecord(numbers)

    def set_run(self, run: Any) -> None:
        """Do nothing: there is one run."""

    @property
    def run(self) -> Any:
        """There is no run record here."""
        return None

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        """Refuse: messages are made with ``Message(...)``."""
        raise NotImplementedError("make messages with flwr.app.Message and send them with send_and_receive")

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Take a list of messages; a device works when its answer is asked for."""
        if not isinstance(messages, list):
            raise TypeError("messages must be a list: the deployment grid iterates over them twice")
        for number, message in enumerate(messages, self._sent):
            set_metadata(message, message_id=f"{number:064x}")
            self._waiting[message.metadata.message_id] = message
        self._sent += len(messages)
        return [message.metadata.message_id for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Let the first of the named devices that has not answered yet work, and return its answer."""
        identifier = next((name for name in message_ids if name in self._waiting), None)
        if identifier is None:
            return []
        return [from_wire(to_wire(self._answer(self._waiting.pop(identifier))))]

    def get_node_ids(self) -> Iterable[int]:
        """Return all nodes; they are there from the start."""
        return list(self._contexts)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Return all answers in the order of the messages; nobody is waited for, so ``timeout`` is not used."""
        return [reply for name in self.push_messages(messages) for reply in self.pull_messages([name])]

    def _answer(self, message: Message) -> Message:
        received = from_wire(to_wire(message))
        try:
            reply = self._app(received, self._contexts[message.metadata.dst_node_id])
        except Exception:  # what a device raises is an answer, as in Flower, not the end of the server
            reply = Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, traceback.format_exc()), reply_to=received)
        set_metadata(reply, message_id=f"{2**255 + self._sent:064x}")
        return reply


def run_in_process(overrides: str, num_devices: int) -> int:
    """Run the ServerApp and the ClientApp of this project in this process; return the exit code."""
    run_config: dict[str, Any] = {"overrides": overrides}
    # By name, as Flower does it: the server's code never imports the device's.
    client_app = importlib.import_module("client_app.app").app
    server = importlib.import_module("server_app.app")
    grid = LocalGrid(client_app, num_devices, run_config)
    try:
        server.app(grid, Context(_RUN, 1, {}, RecordDict(), run_config))
    except server.RunEndedError as error:
        return int(error.exit_code)
    return 0
