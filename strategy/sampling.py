"""Who takes part: waiting for all devices, learning who is who, and drawing the round's participants from the seed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from adapter.protocol import INSTRUCTION, PROFILE
from strategy.messages import wire_bytes

PROFILE_QUERY = "query.profile"
_STREAM = 0x73616D70  # names the participants' random stream


class FederationError(RuntimeError):
    """A federation that cannot start; the message is one line for the user."""


@dataclass(frozen=True)
class Directory:
    """Devices by index: ``node_ids[k]`` and ``num_examples[k]`` of partition k, and what asking for them cost."""

    node_ids: tuple[int, ...]
    num_examples: tuple[int, ...]
    setup_bytes: int


def wait_for_nodes(grid: Grid, num_devices: int, timeout_s: float, report: Callable[[str], None]) -> list[int]:
    """Wait until every device has registered; the server starts before the nodes do.

    Raises
    ------
    FederationError
        If another number of nodes than ``num_devices`` is there after ``timeout_s``.
    """
    deadline, seen = time.monotonic() + timeout_s, -1
    while len(nodes := list(grid.get_node_ids())) < num_devices:
        if len(nodes) != seen:
            report(f"waiting for devices: {len(nodes)} of {num_devices}")
            seen = len(nodes)
        if time.monotonic() > deadline:
            raise FederationError(_wrong_count(len(nodes), num_devices) + f" after {timeout_s:g} s")
        time.sleep(0.2)
    if len(nodes) > num_devices:
        raise FederationError(_wrong_count(len(nodes), num_devices))
    return nodes


def _wrong_count(found: int, expected: int) -> str:
    return (
        f"expected {expected} devices (network.num_devices), found {found}; start the run with "
        f"--federation-config 'num-supernodes={expected} client-resources-num-cpus=1' or use `fedlodrop run`"
    )


def query_directory(grid: Grid, nodes: list[int], code: bytes, timeout_s: float) -> Directory:
    """Ask every node for its partition and its number of examples.

    Raises
    ------
    FederationError
        If a node does not answer, answers with an error (other code, unusable data), or partitions are not 0..K-1.
    """
    content = RecordDict({INSTRUCTION: ConfigRecord({"code": code})})
    messages = [Message(content, node, PROFILE_QUERY, ttl=timeout_s) for node in nodes]
    replies = list(grid.send_and_receive(messages, timeout=timeout_s))
    found: dict[int, tuple[int, int]] = {}
    for reply in replies:
        if reply.has_error():
            raise FederationError(f"a device could not start: {last_line(reply.error.reason)}")
        profile = reply.content[PROFILE]
        device, num_examples = profile["partition-id"], profile["num-examples"]
        if not isinstance(device, int) or not isinstance(num_examples, int) or num_examples < 1:
            raise FederationError(f"expected a partition and a number of examples, found {dict(profile)}")
        if device in found:
            raise FederationError(f"two devices claim partition {device}; give every node its own partition-id")
        found[device] = (reply.metadata.src_node_id, num_examples)
    if sorted(found) != list(range(len(nodes))):
        missing = sorted(set(range(len(nodes))) - set(found))
        raise FederationError(f"expected partitions 0 to {len(nodes) - 1}, no answer from {missing} within {timeout_s:g} s")
    ordered = [found[device] for device in range(len(nodes))]
    cost = sum(wire_bytes(message) for message in messages) + sum(wire_bytes(reply) for reply in replies)
    return Directory(tuple(node for node, _ in ordered), tuple(count for _, count in ordered), cost)


def last_line(reason: str | None) -> str:
    """Return the last non-empty line of a remote error (Flower sends whole tracebacks)."""
    lines = [line.strip() for line in (reason or "").replace("\\n", "\n").splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"


def draw_participants(
    num_devices: int, *, fraction: float, devices_per_round: int | None, seed: int, server_round: int
) -> npt.NDArray[np.int64]:
    """Draw the devices that are asked this round, ascending.

    Parameters
    ----------
    num_devices : int
        K.
    fraction : float
        Share of the devices, at least one; ignored when ``devices_per_round`` is given.
    devices_per_round : int or None
        Number of devices, at most K.
    seed, server_round : int
        The draw depends on these alone.

    Returns
    -------
    ndarray
        Shape (participants,).
    """
    count = devices_per_round if devices_per_round is not None else int(np.ceil(fraction * num_devices - 1e-9))
    count = min(max(count, 1), num_devices)
    if count == num_devices:
        return np.arange(num_devices, dtype=np.int64)
    rng = np.random.default_rng([_STREAM, seed, server_round])
    return np.sort(rng.choice(num_devices, count, replace=False)).astype(np.int64)
