"""Methods whose model is more than the adapter: what is saved rebuilds it, what a device lost is sent again."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, Message, MetricRecord

from conf.compose import ConfigError, compose_config, join_overrides
from fedlodrop.console.display import print_summary
from fedlodrop.model.load import load_trained
from fedlodrop.report.page import write_report
from server_app.build import build_evaluator, load_data, preflight
from server_app.checkpoint import load_checkpoint
from strategy.aggregation.kept import KeptAverage
from strategy.round.checks import MEMORY_LOST
from tasks.models.lora import adapter_spec, get_adapter, set_adapter
from tests.support.runs import FAST, rounds, run

WIDE = ("network.total_bandwidth_hz=1e7", "lora.r=2", "run.eval_every=9", "tracking=none")


def _intercept(monkeypatch: pytest.MonkeyPatch, before: Any = None, after: Any = None) -> None:
    app = importlib.import_module("client_app.app").app
    original = type(app).__call__

    def call(self: Any, message: Message, context: Context) -> Message:
        where = message.metadata.group_id, context.node_config["partition-id"], message.metadata.message_type
        if before is not None:
            before(where, context)
        reply = original(self, message, context)
        if after is not None:
            after(where, reply)
        return reply

    monkeypatch.setattr(type(app), "__call__", call)


@pytest.mark.parametrize("method", [("strategy=fedex_lora",), ("strategy=flora",), ("strategy=rolora",)], ids=str)
def test_the_saved_result_is_the_evaluated_model(tmp_path: Path, method: tuple[str, ...]) -> None:
    items = (*WIDE, *method, "run.num_rounds=2", "training.lr=2e-2")
    assert run(tmp_path, *items) == 0
    config = compose_config(join_overrides([*FAST, *items]))
    evaluator = build_evaluator(config, load_data(config))
    state = load_checkpoint(tmp_path, adapter_spec(evaluator.model)).state
    shutil.rmtree(tmp_path / "checkpoint")
    model = load_trained(tmp_path).model
    set_adapter(evaluator.model, state)
    for (name, ours), theirs in zip(model.named_parameters(), evaluator.model.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    assert evaluator(state)["eval"] == rounds(tmp_path)[-1]["eval"]
    if state.base:  # the adapter alone is another model
        without = evaluator(get_adapter(evaluator.model))["eval"]["loss"]
        assert without != rounds(tmp_path)[-1]["eval"]["loss"]


@pytest.mark.parametrize("method", ["rolora", "fedex_lora", "fedsa_lora"])
def test_a_device_that_lost_its_memory_says_so_and_is_sent_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    def forget(where: tuple[str, int, str], context: Context) -> None:
        if where == ("3", 1, "train"):
            for name in list(context.state):
                del context.state[name]

    _intercept(monkeypatch, before=forget)
    assert run(tmp_path, *WIDE, f"strategy={method}", "run.num_rounds=4") == 0
    failures = [[(f["device"], f["kind"]) for f in record["failures"]] for record in rounds(tmp_path)]
    assert failures[:2] == [[], []] and failures[3] == [] and ("device-1", MEMORY_LOST) in failures[2]
    if method != "fedsa_lora":
        sizes = {device["id"]: device["downlink_bytes"] for device in rounds(tmp_path)[3]["devices"]}
        assert sizes["device-1"] > sizes["device-0"]


def test_devices_that_take_part_now_and_then_catch_up_with_the_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every device trains from the server's base to the last bit, whether it missed rounds or not."""
    training = importlib.import_module("client_app.training")
    strategy = importlib.import_module("strategy.base").LoraStrategy
    used: list[dict[str, np.ndarray]] = []
    global_base: list[dict[str, np.ndarray]] = []
    original, aggregate = training.set_adapter, strategy.aggregate_train

    def watch(model: Any, state: Any) -> None:
        used.append({name: value.copy() for name, value in state.base.items()})
        original(model, state)

    def remember(self: Any, server_round: int, replies: Any) -> Any:
        global_base.append(dict(self._state.base))
        return aggregate(self, server_round, replies)

    monkeypatch.setattr(training, "set_adapter", watch)
    monkeypatch.setattr(strategy, "aggregate_train", remember)
    assert run(tmp_path, *WIDE, "strategy=fedex_lora", "strategy.devices_per_round=2", "run.num_rounds=5") == 0
    assert not any(record["failures"] for record in rounds(tmp_path))
    assert len(used) == 10 and len(global_base) == 5
    for position, base in enumerate(used):
        wanted = global_base[position // 2]
        assert base.keys() == wanted.keys() and all(np.array_equal(base[name], wanted[name]) for name in wanted)


def test_fedsa_has_no_global_score_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    assert run(tmp_path, *WIDE, "strategy=fedsa_lora", "run.num_rounds=2", "model.freeze_head=false") == 0
    for record in rounds(tmp_path):
        assert record["personalised"] is True and "eval" not in record and "gap" not in record
        assert 0 <= record["client_eval"]["accuracy"] <= 1 and record["client_eval"]["devices"] == 4
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["final"] is None and summary["best"] is None
    assert summary["personalised"] == rounds(tmp_path)[-1]["client_eval"]
    console = Console(record=True, width=160)
    print_summary(console, tmp_path, "fedlodrop")
    assert "devices' own models" in console.export_text()
    write_report([tmp_path], tmp_path / "report.html")
    assert "devices, held out" in (tmp_path / "report.html").read_text()
    with pytest.raises(ConfigError, match="one model per device"):
        load_trained(tmp_path)


def test_hetlora_devices_prune_themselves_and_keep_the_lower_rank(tmp_path: Path) -> None:
    items = (
        "strategy=hetlora",
        "lora.r=4",
        "strategy.ranks=null",
        "strategy.prune_weight=30",
        "training.optimizer=sgd",
    )
    assert run(tmp_path, *WIDE, *items, "training.lr=0.05", "run.num_rounds=5") == 0
    ranks = json.loads((tmp_path / "checkpoint" / "position.json").read_text())["method"]["ranks"]
    assert min(ranks) < 4 and min(ranks) >= 1
    first, last = ([d["uplink_adapter_bytes"] for d in rounds(tmp_path)[k]["devices"]] for k in (0, -1))
    assert min(last) < min(first) and not any(record["failures"] for record in rounds(tmp_path))


@pytest.mark.parametrize(("method", "rank"), [("fedex_lora", 1), ("hetlora", 2), ("hetlora", 7), ("flora", 1)])
def test_a_rank_that_was_not_asked_for_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, rank: int
) -> None:
    def lie(where: tuple[str, int, str], reply: Message) -> None:
        if where[1:] == (2, "train"):
            record = reply.content["report"]
            assert isinstance(record, MetricRecord)
            record["rank"] = rank

    _intercept(monkeypatch, after=lie)
    assert run(tmp_path, *WIDE, f"strategy={method}", "strategy.ranks=null", "run.num_rounds=1") == 0
    (record,) = rounds(tmp_path)
    assert [(f["device"], f["kind"]) for f in record["failures"]] == [("device-2", "rank")]


def test_fedit_averages_all_devices_by_their_examples(tmp_path: Path) -> None:
    # Trap 3: FLoRA's released FedIT baseline keeps client 0 only. Two devices alone must give other models than both.
    found = {}
    for name, patch in (("all", None), ("only 0", 0)):
        with pytest.MonkeyPatch.context() as monkeypatch:
            if patch is not None:
                monkeypatch.setattr(
                    KeptAverage, "add", lambda self, a, add=KeptAverage.add: add(self, a) if a.device == 0 else None
                )
            assert run(tmp_path / name, *WIDE, "strategy=fedit", "run.num_rounds=1") == 0
        found[name] = (tmp_path / name / "adapter" / "adapter_model.safetensors").read_bytes()
    assert found["all"] != found["only 0"]


@pytest.mark.parametrize(
    ("overrides", "match"),
    [
        (("strategy=flora", "wire.error_feedback=true"), "wire.error_feedback must be false with flora"),
        (("strategy=flexlora", "strategy.ranks.phones=2"), "unknown key 'strategy.ranks.phones'"),
        (("strategy=rolora", "strategy.factors=both"), "strategy.factors must be alternate for RoLora"),
        (("strategy=fedex_lora", "strategy.aggregation=kept"), "strategy.aggregation must be exact"),
    ],
    ids=str,
)
def test_settings_that_contradict_a_method_are_refused_before_the_run(overrides: tuple[str, ...], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        config = compose_config(join_overrides([*FAST, *WIDE, *overrides]))
        preflight(config)


@pytest.mark.parametrize("method", ["rolora", "fedex_lora"])
def test_four_bits_and_error_feedback(tmp_path: Path, method: str) -> None:
    assert (
        run(tmp_path, *WIDE, f"strategy={method}", "wire.dtype=int4", "wire.error_feedback=true", "run.num_rounds=3")
        == 0
    )
    assert not any(record["failures"] for record in rounds(tmp_path))
