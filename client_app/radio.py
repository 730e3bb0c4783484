"""The device's side of a transmission: nothing (accounting), a wait at the granted rates, or the owner's modem.

Under ``radio.mode=account`` the server computes latency and energy, and nobody waits. Under ``realtime`` the device
waits, so that a federation on a LAN has the cell's timing. A node may name a program (``radio.command`` of the *node's*
configuration, never of the run's: a run must not choose what a node executes) that sets its modem, or shapes its
interface, before an upload.
"""

import os
import shlex
import subprocess
import time
from collections.abc import Mapping
from typing import Any

from adapter import HEADER_BYTES, RoundInstruction

COMMAND = "radio.command"  # key of the node configuration
_COMMAND_TIMEOUT_S = 30.0


class RadioError(RuntimeError):
    """A modem that could not be set; the device does not send, and the round records why."""


def wait(num_bytes: int, rate_bps: float) -> float:
    """Wait as long as a message with a buffer of ``num_bytes`` takes; return the seconds, 0 without a rate."""
    seconds = 8.0 * (num_bytes + HEADER_BYTES) / rate_bps if rate_bps > 0 else 0.0
    time.sleep(seconds)
    return seconds


def transmit(num_bytes: int, instruction: RoundInstruction, node_config: Mapping[str, Any]) -> float:
    """Set the modem (RadioError if that fails), or wait for the upload at the granted rate; return the seconds."""
    if command := str(node_config.get(COMMAND, "")):
        _set_modem(shlex.split(command), instruction)
        return 0.0
    return wait(num_bytes, instruction.uplink_rate_bps)


def _set_modem(command: list[str], instruction: RoundInstruction) -> None:
    grant = {
        "FEDLODROP_ROUND": instruction.server_round,
        "FEDLODROP_BANDWIDTH_HZ": instruction.bandwidth_hz,
        "FEDLODROP_TX_POWER_W": instruction.tx_power_w,
        "FEDLODROP_UPLINK_RATE_BPS": instruction.uplink_rate_bps,
        "FEDLODROP_DEADLINE_S": instruction.deadline_s,
    }
    env = os.environ | {name: repr(value) for name, value in grant.items()}
    env.pop("PYTHONSAFEPATH", None)  # meant for our own children; the owner's command finds its modules as ever
    try:
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=_COMMAND_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RadioError(f"{COMMAND}: {command[0]} could not be run ({error})") from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise RadioError(f"{COMMAND}: {command[0]} failed with {done.returncode} ({said[-1] if said else 'no output'})")
