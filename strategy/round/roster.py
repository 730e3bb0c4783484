"""Who is there, and who is drawn for a round: places, what their devices announced, and how that changes.

A federation has a fixed number of places (``network.num_devices``, the partitions). A device takes the place it
announces as its partition; a place is empty before its device comes and after it has left, and another device may take
it then. Of those drawn, `optimizer.*.admission` decides who sits out.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from adapter.protocol import INSTRUCTION, PROFILE, DeviceAnnouncement, ProtocolError
from strategy.aggregation.robust import lower_median
from strategy.round.messages import last_line, wire_bytes

PROFILE_QUERY = "query.profile"
_DRAW_STREAM = 0x73616D70  # names the participants' random stream


class FederationError(RuntimeError):
    """A federation that cannot start; the message is one line for the user."""


@dataclass(frozen=True)
class Directory:
    """Places by index: their nodes, what their devices announced, and what asking for it cost."""

    node_ids: tuple[int | None, ...]  # Flower's node in every place; None: empty
    announced: tuple[DeviceAnnouncement | None, ...]  # the last device's in every place; None: there never was one
    setup_bytes: int = 0  # queries and answers so far
    refused: frozenset[int] = frozenset()  # nodes whose answer could not be used; they are not asked again
    unreported: tuple[str, ...] = ()  # why some were turned away before round 1, for the next look at the federation

    @property
    def num_examples(self) -> tuple[int, ...]:
        """Examples per place; 1 for a place that was never taken, which nobody is asked at."""
        return tuple(1 if item is None else item.num_examples for item in self.announced)

    def weights(self, limit: float | None) -> npt.NDArray[np.float64]:
        """Weight (K,) of every place: its examples, at most ``limit`` times the lower median of the places taken.

        A device names its number itself, and without a limit one that names a billion would be the average.
        """
        examples = np.array(self.num_examples, dtype=np.float64)
        if limit is None or not self.present.size:
            return examples
        return np.minimum(examples, limit * lower_median(examples[self.present]))

    @property
    def present(self) -> npt.NDArray[np.int64]:
        """Places that are taken, ascending."""
        return np.array([k for k, node in enumerate(self.node_ids) if node is not None], dtype=np.int64)

    def node(self, device: int) -> int:
        """Return the node of a place that is taken."""
        node = self.node_ids[device]
        assert node is not None, f"place {device} is empty"
        return node


def draw_participants(
    places: npt.NDArray[np.int64], fraction: float, devices_per_round: int | None, seed: int, server_round: int
) -> npt.NDArray[np.int64]:
    """Draw a round's places, ascending, from seed and round alone; ``devices_per_round`` goes before ``fraction``."""
    count = devices_per_round if devices_per_round is not None else int(np.ceil(fraction * places.size - 1e-9))
    count = min(max(count, 1), places.size)
    if count == places.size:
        return places
    return np.sort(np.random.default_rng([_DRAW_STREAM, seed, server_round]).choice(places, count, replace=False))


@dataclass
class Changes:
    """What one look at the federation brought: places taken or left, and why nodes were turned away."""

    joined: list[int] = field(default_factory=list)
    left: list[int] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


def wait_for_nodes(
    grid: Grid, num_devices: int, timeout_s: float, report: Callable[[str], None], least: int | None = None
) -> list[int]:
    """Wait until every device, or ``least`` of them, is there; FederationError if fewer are after ``timeout_s``."""
    deadline, seen, needed = time.monotonic() + timeout_s, -1, num_devices if least is None else min(least, num_devices)
    while len(nodes := list(grid.get_node_ids())) < needed:
        if len(nodes) != seen:
            report(f"waiting for devices: {len(nodes)} of {needed}")
            seen = len(nodes)
        if time.monotonic() > deadline:
            raise FederationError(
                f"expected {needed} devices (network.num_devices), found {len(nodes)} after {timeout_s:g} s; start the "
                f"missing nodes, or begin with fewer (network.min_devices); in a simulation, start the run with "
                f"--federation-config 'num-supernodes={num_devices} client-resources-num-cpus=1' or use `fedlodrop run`"
            )
        time.sleep(0.2)
    return nodes


def query_directory(
    grid: Grid, nodes: Sequence[int], code: bytes, timeout_s: float, places: int, least: int | None = None
) -> Directory:
    """Ask every node for its announcement before the first round; one that cannot take part is turned away.

    ``code`` is the digest of the server's source, ``places`` their number, ``least`` how many must be taken to begin
    (default: all); FederationError if fewer are, with the reason of a node that was turned away.
    """
    directory, changes = _admit(grid, Directory((None,) * places, (None,) * places), list(nodes), code, timeout_s)
    if directory.present.size < (places if least is None else least):
        if changes.refused:
            raise FederationError(changes.refused[0])
        missing = sorted(set(range(places)) - set(directory.present.tolist()))
        raise FederationError(f"expected partitions 0 to {places - 1}, no answer from {missing} within {timeout_s:g} s")
    return replace(directory, unreported=tuple(changes.refused))


def refresh_directory(grid: Grid, directory: Directory, code: bytes, timeout_s: float) -> tuple[Directory, Changes]:
    """Look who left and who came since the last round; ask newcomers, but never again who was turned away."""
    online, earlier = list(grid.get_node_ids()), directory.unreported
    left = [k for k, node in enumerate(directory.node_ids) if node is not None and node not in set(online)]
    nodes = tuple(None if k in left else node for k, node in enumerate(directory.node_ids))
    directory = replace(directory, node_ids=nodes, refused=directory.refused & set(online), unreported=())
    new = [node for node in online if node not in directory.refused and node not in nodes]
    directory, changes = _admit(grid, directory, new, code, timeout_s) if new else (directory, Changes())
    changes.left, changes.refused = left, [*earlier, *changes.refused]
    return directory, changes


def _admit(
    grid: Grid, directory: Directory, nodes: list[int], code: bytes, timeout_s: float
) -> tuple[Directory, Changes]:
    content = RecordDict({INSTRUCTION: ConfigRecord({"code": code})})
    messages = [Message(content, node, PROFILE_QUERY, ttl=timeout_s) for node in nodes]
    replies = list(grid.send_and_receive(messages, timeout=timeout_s))
    asked = {message.metadata.message_id: message.metadata.dst_node_id for message in messages}
    taken, announced = list(directory.node_ids), list(directory.announced)
    changes, refused = Changes(), set(directory.refused)
    for reply in sorted(replies, key=lambda item: str(item.metadata.reply_to_message_id)):
        node = asked.pop(reply.metadata.reply_to_message_id, None)
        if node is None:
            continue  # nothing was asked, or it was answered already
        try:
            item = _announcement(reply, taken)
        except (ProtocolError, FederationError) as error:
            changes.refused.append(f"{error}; node {node} was turned away")
            refused.add(node)
        else:
            taken[item.partition_id], announced[item.partition_id] = node, item
            changes.joined.append(item.partition_id)
    changes.joined.sort()
    cost = sum(map(wire_bytes, [*messages, *replies]))
    return Directory(tuple(taken), tuple(announced), directory.setup_bytes + cost, frozenset(refused)), changes


def _announcement(reply: Message, taken: list[int | None]) -> DeviceAnnouncement:
    if reply.has_error():
        raise FederationError(f"a device could not start: {last_line(reply.error.reason)}")
    record = reply.content.get(PROFILE)
    if not isinstance(record, MetricRecord):
        raise FederationError("a device could not start: expected a metric record with its profile")
    try:
        item = DeviceAnnouncement.from_record(record)
    except ProtocolError as error:
        raise FederationError(f"a device's profile cannot be used: {error}") from error
    if item.partition_id >= len(taken):
        raise FederationError(
            f"a device announces partition {item.partition_id}, but network.num_devices={len(taken)} has partitions "
            f"0 to {len(taken) - 1}; start it with another partition-id or the run with a larger network.num_devices"
        )
    if taken[item.partition_id] is not None:
        raise FederationError(f"two devices claim partition {item.partition_id}; give every node its own partition-id")
    return item
