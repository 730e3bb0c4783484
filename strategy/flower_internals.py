"""Names of Flower outside its public interface, for the versions that were checked; no other file touches any of them.

It lies here because `strategy` is the lowest room that needs one: the size of a message on the wire.
"""

from importlib.metadata import version
from typing import Any

from flwr.app import Message

VERSIONS = ("1.41", "1.42")


class FlowerVersionError(RuntimeError):
    """A version of Flower that was not checked; the message is one line for the user."""


def check_version(found: str) -> None:
    """Raise `FlowerVersionError` unless a version of Flower is one of those whose internals are known."""
    if ".".join(found.split(".")[:2]) not in VERSIONS:
        raise FlowerVersionError(
            f"expected flwr {' or '.join(VERSIONS)}, whose internals are known here, found {found}; "
            "install one of them: pip install 'flwr[simulation]>=1.41,<1.43'"
        )


check_version(version("flwr"))
from flwr.common.config import parse_config_args  # noqa: E402
from flwr.common.constant import ErrorCode  # noqa: E402
from flwr.common.serde import message_from_proto as from_wire  # noqa: E402
from flwr.common.serde import message_to_proto as to_wire  # noqa: E402
from flwr.proto.message_pb2 import Message as WireMessage  # noqa: E402
from flwr.supercore.task_identity import TaskIdentity  # noqa: E402

__all__ = ["ErrorCode", "WireMessage", "from_wire", "parse_config_args", "to_wire"]


def identify_process(number: int) -> None:
    """Make this process the run, the node and the task of this number: without them no message can be made in it."""
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = number


def set_metadata(message: Message, **fields: Any) -> None:
    """Overwrite fields of a message's metadata that only Flower writes: ``set_metadata(message, message_id="1")``."""
    known = message.metadata.__dict__
    for name, value in fields.items():
        if f"_{name}" not in known:
            raise AttributeError(f"a message's metadata have no field {name!r}")
        known[f"_{name}"] = value
