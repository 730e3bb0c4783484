"""Attendance before every round: who left, who came, and what that means for the plan."""

import copy
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from flwr.serverapp import Grid

from strategy.base import LoraStrategy
from strategy.round.fleet import Estimates
from strategy.round.roster import Changes, FederationError, refresh_directory


def refresh(grid: Grid, strategy: LoraStrategy) -> Changes:
    """Bring a strategy's directory up to date; a newcomer is planned with what it announced, and holds nothing yet."""
    settings = strategy.settings
    strategy.directory, changes = refresh_directory(grid, strategy.directory, settings.code, settings.round_timeout_s)
    for device in changes.joined:
        announced = strategy.directory.announced[device]
        assert announced is not None
        strategy.fleet = strategy.fleet.with_announcement(device, announced)
        strategy.replaced(device)
    return changes


def look_around(grid: Grid, strategy: LoraStrategy, timeout_s: float, report: Callable[[str], None]) -> Changes:
    """Take in newcomers and let leavers go; FederationError if all left and none comes back within ``timeout_s``."""
    changes, deadline = refresh(grid, strategy), time.monotonic() + timeout_s
    if not strategy.directory.present.size:
        report("every device has left; waiting for one to come back")
    while not strategy.directory.present.size:
        if time.monotonic() > deadline:
            raise FederationError(
                f"every device has left and none came back within {timeout_s:g} s (run.node_timeout_s)"
            )
        time.sleep(min(1.0, timeout_s / 10))
        later = refresh(grid, strategy)
        changes = Changes(later.joined, changes.left, changes.refused + later.refused)
    return changes


def learn_from_round(strategy: LoraStrategy) -> None:
    """Move the compute and link estimates towards what the devices measured in the round that has just ended."""
    ledger, weight = strategy.ledger, strategy.settings.smoothing
    if weight == 0:
        return
    neutral = np.ones(strategy.fleet.template.num_devices)
    estimates = copy.deepcopy(strategy.fleet.estimates) or Estimates(neutral, neutral.copy())
    for position, device in enumerate(map(int, ledger.devices)):
        if (received := ledger.received.get(device)) is None:
            continue
        estimates.observe("compute", device, received.report.train_s / ledger.planned_train_s(position), weight)
        if received.report.upload_s:
            measured_bps = 8 * received.uplink_bytes / received.report.upload_s
            estimates.observe("link", device, ledger.link_ratio(position, measured_bps), weight)
    strategy.fleet = replace(strategy.fleet, estimates=estimates)


def note_changes(record: dict[str, Any], strategy: LoraStrategy, changes: Changes) -> None:
    """Write who left, who was turned away and who joined into a round's record."""
    names = strategy.fleet.template.device_ids
    gone = [{"device": names[k], "kind": "left", "message": "the device has left the federation"} for k in changes.left]
    turned = [{"device": None, "kind": "refused", "message": message} for message in changes.refused]
    record["failures"] = [*gone, *turned, *record["failures"]]
    if changes.joined:
        record["joined"] = [names[k] for k in changes.joined]
