"""Accounting waits for nobody, real time waits as long as the grant takes, a node's own program sets its modem."""

from __future__ import annotations

import os
import stat
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from adapter import HEADER_BYTES, RoundInstruction, RoundReport
from client_app import radio
from client_app.radio import RadioError, transmit, wait

ACCOUNT = RoundInstruction(3, 0.5, 1, 9e4, 0.1, 4.0, 1e9, "AB", b"12345678")
GRANT = replace(ACCOUNT, uplink_rate_bps=1e5, downlink_rate_bps=1e6)
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the radio would have slept."""
    seconds: list[float] = []
    monkeypatch.setattr(radio, "time", SimpleNamespace(sleep=seconds.append))
    return seconds


def test_accounting_waits_for_nobody(slept: list[float]) -> None:
    assert wait(10**6, ACCOUNT.downlink_rate_bps) == transmit(10**6, ACCOUNT, {}) == 0
    assert slept == [0, 0]


def test_real_time_waits_as_long_as_the_bits_take(slept: list[float]) -> None:
    down, up = wait(5000, GRANT.downlink_rate_bps), transmit(2000, GRANT, {})
    assert slept == [down, up] == [8 * (5000 + HEADER_BYTES) / 1e6, 8 * (2000 + HEADER_BYTES) / 1e5]


def test_rates_and_measured_times_travel_only_where_they_are() -> None:
    assert RoundInstruction.from_record(GRANT.to_record()) == GRANT
    assert not {"uplink-rate-bps", "downlink-rate-bps"} & set(ACCOUNT.to_record())
    report = RoundReport(3, 1, 10, 0.5, 1.0, upload_s=0.25)
    assert RoundReport.from_record(report.to_record()) == report
    assert "upload-s" not in replace(report, upload_s=0.0).to_record()


def _program(folder: Path, text: str) -> Path:
    path = folder / "modem.sh"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_the_nodes_program_gets_the_grant_and_the_node_does_not_wait(tmp_path: Path, slept: list[float]) -> None:
    program = _program(tmp_path, f'env | grep FEDLODROP_ > "$1"; echo {tmp_path}')
    assert transmit(2000, GRANT, {"radio.command": f"{program} {tmp_path / 'seen'}"}) == 0 and not slept
    seen = dict(line.split("=", 1) for line in (tmp_path / "seen").read_text().splitlines())
    assert float(seen["FEDLODROP_UPLINK_RATE_BPS"]) == 1e5 and float(seen["FEDLODROP_BANDWIDTH_HZ"]) == 9e4
    assert float(seen["FEDLODROP_TX_POWER_W"]) == 0.1 and seen["FEDLODROP_ROUND"] == "3"


@pytest.mark.parametrize(
    ("text", "message"), [("echo no modem >&2; exit 3", "failed with 3 \\(no modem\\)"), (None, "could not be run")]
)
def test_a_program_that_fails_keeps_the_device_from_sending(tmp_path: Path, text: str | None, message: str) -> None:
    program = _program(tmp_path, text) if text else tmp_path / "absent"
    with pytest.raises(RadioError, match=message):
        transmit(2000, GRANT, {"radio.command": str(program)})


def test_the_tc_hook_shapes_the_interface_to_the_granted_rate(tmp_path: Path) -> None:
    tool = _program(tmp_path, f'echo "$@" > {tmp_path / "called"}')
    tool.rename(tmp_path / "tc")
    env = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "FEDLODROP_UPLINK_RATE_BPS": "123456.7"}
    hook = str(ROOT / "deploy" / "hooks" / "tc.sh")
    assert subprocess.run([hook, "eth7"], env=env, check=False).returncode == 0
    assert (tmp_path / "called").read_text().split()[
        :9
    ] == "qdisc replace dev eth7 root tbf rate 123457bit burst".split()
    assert subprocess.run([hook], env=env, capture_output=True, check=False).returncode == 2
