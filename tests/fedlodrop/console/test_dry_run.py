"""`run --dry-run`: the first round's plan without weights, for small and for very large models, and its exit status."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from conf.compose import ROOT, compose_config, join_overrides
from fedlodrop.cli import cli
from fedlodrop.console.dry_run import dry_run, estimate_memory, plan_federation
from tests.support.runs import FAST, rounds, run

LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaModel"],
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
}
ROBERTA = {
    "model_type": "roberta",
    "architectures": ["RobertaModel"],
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "vocab_size": 50265,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
}


def test_the_plan_is_that_of_the_real_first_round(tmp_path: Path) -> None:
    items = [*FAST, "run.num_rounds=1", "network.total_bandwidth_hz=2e4", "partition=dirichlet"]
    assert run(tmp_path, *items) == 0
    ledger = plan_federation(compose_config(join_overrides(items))).strategy.plan(1)
    record = rounds(tmp_path)[0]
    assert ledger.solution.objective == record["plan"]["objective"]
    rates = [row["dropout_rate"] for row in record["devices"]]
    np.testing.assert_array_equal(ledger.solution.dropout_rate, np.array(rates, dtype=float))


@pytest.mark.parametrize(
    ("shape", "millions", "adapter"), [(LLAMA, 6607, 32 * 2 * 8 * 8192), (ROBERTA, 354, 24 * 2 * 8 * 2048)]
)
def test_large_models_need_their_config_only(
    tmp_path: Path, shape: dict[str, object], millions: int, adapter: int
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(shape))
    words = [
        "model=hub",
        f"model.path={tmp_path}",
        "lora.target_modules=null",
        "budget.deadline_s=1e5",
        "budget.energy_j=1e6",
        "network.total_bandwidth_hz=1e7",
        "run.engine=local",
    ]
    config, stream = compose_config(join_overrides(words)), io.StringIO()
    assert dry_run(config, Console(file=stream, width=100))
    text = stream.getvalue()
    planned = plan_federation(config)
    assert planned.model.base_parameters // 10**6 == pytest.approx(millions, rel=0.01)
    assert f"{adapter:,}" in text and "no tokenizer is at hand" in text
    memory = estimate_memory(planned)
    assert memory["libraries"] > 0 and memory["base"] == 4 * planned.model.base_parameters


def test_the_estimate_is_above_a_real_worker(tmp_path: Path) -> None:
    """In a process of its own: the peak of this one is whatever the tests before needed."""
    items = [*FAST, "run.num_rounds=1"]
    program = "import sys; from tests.support.runs import run; sys.exit(run(*sys.argv[1:]))"
    subprocess.run([sys.executable, "-c", program, str(tmp_path), *items], cwd=ROOT, check=True)
    peak = json.loads((tmp_path / "summary.json").read_text())["peak_rss_mib"]
    memory = estimate_memory(plan_federation(compose_config(join_overrides(items))))
    assert 0.5 * peak < (sum(memory.values()) - memory["sums"]) / 2**20 < 3.0 * peak


@pytest.mark.parametrize(
    "cell", [["network=fdma"], ["network=ofdma", "network.num_subcarriers=16"]], ids=["fdma", "ofdma"]
)
def test_a_cell_that_serves_nobody_is_told_what_would_serve(cell: list[str], tmp_path: Path) -> None:
    """A payload as large as SmolLM2's with r = 8 on all modules: some 4 MB."""
    shape = LLAMA | {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_hidden_layers": 30}
    (tmp_path / "config.json").write_text(json.dumps(shape))
    model = ["model=hub", f"model.path={tmp_path}", "lora.target_modules=[all-linear]", "network.num_devices=6"]
    words = [*FAST, *model, *cell, "network.fading=none", "budget.deadline_s=1"]
    stream = io.StringIO()
    assert not dry_run(compose_config(join_overrides(words)), Console(file=stream, width=250))
    text = stream.getvalue()
    assert "sits out" not in text
    for count in (3, 6):
        (line,) = [line for line in text.splitlines() if f"({count} of 6): " in line]
        ways = line.split("): ")[1].split(", or ")
        assert len(ways[-1].split()) == 3  # of the three together each is the least beside the others
        for settings in (way.split() for way in ways):
            assert _served(words, settings) >= count, settings
            for k, item in enumerate(settings):
                key, value = item.split("=")
                less = [*settings[:k], f"{key}={0.8 * float(value)}", *settings[k + 1 :]]
                assert _served(words, less) < count, less


def _served(words: list[str], settings: list[str]) -> int:
    return int(
        plan_federation(compose_config(join_overrides([*words, *settings]))).strategy.plan(1).solution.scheduled.sum()
    )


def test_nobody_served_is_a_failure_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runner = CliRunner()
    served = runner.invoke(cli, ["run", "--dry-run", *FAST])
    assert served.exit_code == 0 and "plan of round 1" in served.output
    nobody = runner.invoke(cli, ["run", "--dry-run", *FAST, "budget.deadline_s=1e-6"])
    assert nobody.exit_code == 3 and "everybody" in nobody.output
    assert not list(tmp_path.iterdir())
