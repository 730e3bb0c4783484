"""The default federation and SST-2 at full length: what the README promises, measured."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.support.flower import BIN, ROOT, environment
from tests.support.runs import rounds

pytestmark = pytest.mark.slow
DATA = ROOT.parent / "shared" / "data"


def _fedlodrop(folder: Path, *overrides: str) -> dict:  # type: ignore[type-arg]
    command = [str(BIN / "fedlodrop"), "run", *overrides, f"run.dir={folder}"]
    done = subprocess.run(
        command, env=environment(folder.parent), cwd=ROOT, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((folder / "summary.json").read_text())


def test_the_default_federation_learns_within_its_limits(tmp_path: Path) -> None:
    summary = _fedlodrop(tmp_path / "run")
    records = rounds(tmp_path / "run")
    accuracy = [summary["initial"]["eval"]["accuracy"], *(record["eval"]["accuracy"] for record in records)]
    assert summary["rounds_done"] == 10 and accuracy[-1] > 0.75 > accuracy[1] > accuracy[0] + 0.2  # chance is 1/12
    dense = 4 * summary["adapter_parameters"]
    for record in records:
        for device in record["devices"]:
            if device["scheduled"]:
                assert device["latency_s"] <= device["deadline_s"] * (1 + 1e-9)
                assert device["energy_j"] <= device["energy_budget_j"] * (1 + 1e-9)
                planned = (1 - device["dropout_rate"]) * dense
                assert 0.99 * planned <= device["uplink_adapter_bytes"] <= planned
            else:
                assert device["reason"]


@pytest.mark.skipif(not DATA.exists(), reason="the real SST-2 files are not beside this checkout")
def test_sst2_reaches_eighty_percent_at_half_the_adapter(tmp_path: Path) -> None:
    summary = _fedlodrop(
        tmp_path / "run",
        "task=sst2",
        f"task.train_file={DATA / 'sst2_train.tsv.gz'}",
        "task.train_limit=1600",
        f"task.validation_file={DATA / 'sst2_validation.tsv.gz'}",
        "network.total_bandwidth_hz=2e6",
        "budget.deadline_s=10",
    )
    rates = [d["dropout_rate"] for r in rounds(tmp_path / "run") for d in r["devices"] if d["scheduled"]]
    assert 0.4 < sum(rates) / len(rates) < 0.6
    assert summary["final"]["eval"]["accuracy"] >= 0.80
