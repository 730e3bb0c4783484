"""`explain`: the round built again agrees with the record, the words name what binds or what it would take."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from conf.compose import ConfigError
from fedlodrop.console.explain import explain, print_explanation
from tests.support.runs import rounds, run

CELL = (
    "run.num_rounds=2",
    "network.num_devices=4",
    "network.total_bandwidth_hz=4e3",
    "partition=dirichlet",
    "bound.empirical_scale=0.05",
    "device=phone",
    "network.cell_radius_m=800",
)
NETWORKS = {
    "fdma": (),
    "ofdma": ("network=ofdma", "network.num_subcarriers=12", "allocator=bnb"),
    "rule": ("allocator=equal",),
    "clock": ("allocator.cpu_clock=free",),
}


@pytest.fixture(scope="module", params=list(NETWORKS))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param)
    assert run(path, *CELL, *NETWORKS[request.param]) == 0
    return path


def test_every_device_of_a_run_is_explained(folder: Path) -> None:
    words = ""
    for k, row in enumerate(rounds(folder)[1]["devices"]):
        found = explain(folder, 2, str(k))
        assert found.differences == [] and found.device == row["id"] and found.reasons
        if row["scheduled"]:
            assert found.solution.dropout_rate[found.position] == row["dropout_rate"]
        else:
            assert row["reason"] in found.reasons[0]
        stream = io.StringIO()
        print_explanation(found, Console(file=stream, width=100))
        words += stream.getvalue()
        assert "agrees with the record" in stream.getvalue()
    assert "binds" in words


def test_a_changed_record_is_noticed(folder: Path) -> None:
    path = folder / "rounds.jsonl"
    text = path.read_text()
    records = [json.loads(line) for line in text.splitlines()]
    row = next(row for row in records[0]["devices"] if row["scheduled"])
    row["tx_power_w"] *= 1.01
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    try:
        assert any("transmit power" in line for line in explain(folder, 1, row["id"]).differences)
    finally:
        path.write_text(text)


def test_unknown_rounds_and_devices_are_one_line(folder: Path) -> None:
    with pytest.raises(ConfigError, match="--round must be one of the rounds 1 to 2"):
        explain(folder, 9, "0")
    with pytest.raises(ConfigError, match="--device must be one of those asked in round 1"):
        explain(folder, 1, "11")


def test_bad_input_is_told_before_anything_slow_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "rounds.jsonl").write_text('{"round": 1, "devices": []}\n')
    code = (
        "import sys\nfrom pathlib import Path\nfrom fedlodrop.console.explain import explain\n"
        f"try: explain(Path({str(tmp_path)!r}), 1, '0')\nexcept ValueError: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    "change",
    ["num_devices: 2", "num_devices: 6", "access: ofdma", "access: fdma", "num_subcarriers: 2"],
    ids=lambda text: text,
)
def test_a_configuration_that_the_rounds_were_not_made_with_is_one_line(
    folder: Path, tmp_path: Path, change: str
) -> None:
    """Such as runs that were continued with other settings before that was refused, and files edited by hand."""
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    text = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(re.sub(rf"^  {change.split()[0]} .*$", f"  {change}", text, flags=re.M))
    for k in range(4):
        try:
            found = explain(copy, 1, str(k))
        except ConfigError as error:
            assert "config.yaml" in str(error) and "\n" not in str(error)
        else:  # the same problem for those who were there, or one that is said to be another
            assert found.reasons and (
                found.differences or change.split()[0] != "num_devices:" or change == "num_devices: 6"
            )
