"""Code of the user's own on a SuperLink and SuperNodes with TLS: alike it is used, otherwise the node is turned away."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.test_plugins import MODULE
from tests.support.deployment import QUICK, Federation, documented
from tests.support.runs import rounds

pytestmark = [pytest.mark.flower, pytest.mark.slow]
CLASSES = "strategy.class=mine:LateFreeze allocator.class=mine:shares task.class=mine:parity"
COMMON = f"{CLASSES} network.num_devices=3 network.total_bandwidth_hz=1e8 run.dir=first {QUICK} run.round_timeout_s=240"
KEYS = [command for command in documented() if command.startswith(("deploy/cert", "deploy/node_keys"))]
LINK = [command for command in documented() if command.startswith(("deploy/superlink", "deploy/operator"))]


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    """Start three nodes in folders of their own: two with the server's module, one with another version, or none."""
    with Federation(tmp_path / "clean") as running:
        (running.folder / "mine.py").write_text(MODULE)
        running.set_up([*KEYS, *LINK])
        yield running


def _start_nodes(federation: Federation, modules: list[str | None]) -> None:
    for k, module in enumerate(modules):
        place = federation.folder / f"machine-{k}"
        place.mkdir()
        if module is not None:
            (place / "mine.py").write_text(module)
        settings = f"partition-id={k} num-partitions=3"
        node = f"../deploy/supernode.sh ../secrets node-{k} ../state/node-{k} 127.0.0.1:9093 910{k} '{settings}'"
        federation.start(f"node-{k}", f"cd {place.name} && {node}")


def _submit(federation: Federation, more: str = "") -> tuple[int, str]:
    done = federation.run(f"python deploy/submit.py --retries 0 --every 1 '{COMMON} {more}'", timeout_s=900)
    return done.returncode, done.stdout + done.stderr


def _results(federation: Federation) -> Path:
    return federation.folder / "state" / "superlink" / "results" / "first"


def test_nodes_with_the_servers_module_train_with_it(federation: Federation) -> None:
    _start_nodes(federation, [MODULE] * 3)
    code, said = _submit(federation)
    assert code == 0, said + federation.log("superlink")[-3000:]
    records = rounds(_results(federation))
    sent = [sum(device["uplink_adapter_bytes"] for device in record["devices"]) for record in records]
    assert len(records) == 3 and 0 < sent[1] == sent[2] < sent[0]  # lora_B alone after the first round
    assert {record["plan"]["solver"] for record in records} == {"mine:shares"}
    assert not any(record["failures"] for record in records)
    summary = json.loads((_results(federation) / "summary.json").read_text())
    assert summary["label_names"] == ["even", "odd"] and summary["strategy"] == "mine:LateFreeze"


def test_a_node_with_another_module_or_none_is_turned_away_in_one_line(federation: Federation) -> None:
    _start_nodes(federation, [MODULE, f"{MODULE}# another version\n", None])
    code, said = _submit(federation, "run.num_rounds=1")
    assert code == 1 and "was turned away" in said, said
    code, said = _submit(federation, "run.num_rounds=1 network.min_devices=1")
    assert code == 0, said + federation.log("superlink")[-3000:]
    records = rounds(_results(federation))
    refused = sorted(item["message"] for item in records[0]["failures"] if item["kind"] == "refused")
    assert len(records) == 1 and len(refused) == 2 and not any("\n" in line for line in refused)
    assert any("the module of mine:parity on this device differs from the server's" in line for line in refused)
    assert any("task.class: cannot import 'mine:parity'" in line for line in refused)
