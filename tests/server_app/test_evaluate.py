"""A run on a language model: answers before and after in summary and output, the learning rate that falls, its preset."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from conf.compose import compose_config
from fedlodrop.console.display import print_summary
from fedlodrop.report.page import build_report
from server_app.evaluate import SHOWN
from tasks.models.files import model_source
from tests.support.gguf import tiny_llama, write_gguf
from tests.support.runs import rounds, run

pytest.importorskip("gguf")


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    model_source.cache_clear()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    monkeypatch.setattr("tasks.scoring.generation.MAX_NEW_TOKENS", 8)
    return f"model.gguf_file='{write_gguf(tmp_path / 'tiny.gguf', tiny_llama())}'"


def test_a_run_shows_what_the_model_answers_before_and_after(model: str, tmp_path: Path) -> None:
    small = ("run.num_rounds=1", "task.train_limit=24", "task.validation_limit=12", "task.holdout=4")
    folder = tmp_path / "run"
    overrides = ("task=calls", "model=hub", model, "lora.layers=1", "budget.deadline_s=60", *small)
    assert run(folder, *overrides, "model.max_tokens=200", "run.train_eval_size=4") == 0
    summary = json.loads((folder / "summary.json").read_text())
    answers = summary["answers"]
    assert answers["num_examples"] == 12 and len(answers["samples"]) == SHOWN
    assert set(answers["scores"]) == {"exact_call", "right_name", "valid_json", "argument_f1"}
    assert all(set(sample) == {"request", "expected", "before", "after"} for sample in answers["samples"])
    assert json.loads(answers["samples"][0]["expected"])["name"]
    assert "teacher_forced_match" in rounds(folder)[0]["eval"] and "perplexity" in rounds(folder)[0]["eval"]
    for number, sample in enumerate(answers["samples"]):
        sample |= {"request": f"request-{number}", "after": f"\x1b[31m<script>after-{number}"}
    (folder / "summary.json").write_text(json.dumps(summary))
    page, console = build_report([folder]), Console(record=True, width=120)
    print_summary(console, folder, "fedlodrop")
    shown = console.export_text()
    assert "12 unseen requests: exact call" in shown
    above, _, below = page.partition("over 12 unseen requests")
    assert 'class="scroll all"' in above.rpartition("<div")[2]  # as long as it is, without a bar
    table = below.partition("</table>")[0]
    for number in range(SHOWN):
        assert f"request-{number}<" in table and f"&lt;script&gt;after-{number}<" in table and "<script" not in table
        assert f"request-{number} " in shown and f"<script>after-{number}" in shown and "\\x1b[31m" in shown
    assert "\x1b" not in shown


def test_the_learning_rate_falls_from_round_to_round(tmp_path: Path) -> None:
    for name, decay in (("constant", "1.0"), ("falling", "0.1")):
        assert run(tmp_path / name, "run.num_rounds=2", f"training.lr_decay={decay}") == 0
    constant, falling = (rounds(tmp_path / name) for name in ("constant", "falling"))
    assert constant[0]["eval"] == falling[0]["eval"]  # the first round has the whole rate
    assert constant[1]["eval"] != falling[1]["eval"]


def test_the_preset_is_one_choice_that_keys_still_override() -> None:
    config = compose_config("experiment=llm training.lr=1e-3")
    assert (config.task.name, config.model.name, config.training.lr) == ("calls", "smollm2", 1e-3)
    assert (config.network.num_devices, config.device.classes["watch"].share) == (10, 0.3)
    assert compose_config("").task.name == "intents"
    with pytest.raises(ValueError, match="experiment has no choice 'lm'; did you mean 'llm'"):
        compose_config("experiment=lm")
