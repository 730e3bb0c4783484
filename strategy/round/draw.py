"""Who takes part: waiting for the devices, and drawing the round's participants from the seed."""

import re
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from flwr.serverapp import Grid

LONGEST_REASON = 400  # characters of a remote error that are kept
_REMOTE = re.compile(r"<class '(?:\w+\.)*(\w+)'>:<'(.*)'>", re.DOTALL)  # a SuperNode's form of an exception
_STREAM = 0x73616D70  # names the participants' random stream


class FederationError(RuntimeError):
    """A federation that cannot start; the message is one line for the user."""


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


def last_line(reason: str | None) -> str:
    """Return the last non-empty line of a remote error: a traceback, or a SuperNode's form of one."""
    remote = _REMOTE.fullmatch((reason or "").strip())
    text = f"{remote[1]}: {remote[2]}" if remote else reason or ""
    lines = [line.strip() for line in text.replace("\\n", "\n").splitlines() if line.strip()]
    last = lines[-1] if lines else "no reason given"
    return last if len(last) <= LONGEST_REASON else last[: LONGEST_REASON - 1] + "…"


def draw_participants(
    num_devices: int, fraction: float, devices_per_round: int | None, seed: int, server_round: int
) -> npt.NDArray[np.int64]:
    """Draw a round's devices, ascending, from seed and round alone; ``devices_per_round`` goes before ``fraction``."""
    count = devices_per_round if devices_per_round is not None else int(np.ceil(fraction * num_devices - 1e-9))
    count = min(max(count, 1), num_devices)
    if count == num_devices:
        return np.arange(num_devices, dtype=np.int64)
    rng = np.random.default_rng([_STREAM, seed, server_round])
    return np.sort(rng.choice(num_devices, count, replace=False)).astype(np.int64)
