"""Whole federations in this process: determinism, equality with plain averaging, the ledger, resume, misbehaving devices."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Error, Message
from peft import PeftModel

from adapter import AdapterState
from conf.compose import compose_config, join_overrides
from conf.convert import lora_settings, model_settings
from server_app.build import load_data
from server_app.checkpoint import load_checkpoint
from server_app.engines.in_process import LocalGrid
from strategy.flower_internals import VERSIONS
from tasks.data.batches import sample_batches, tokenise
from tasks.models.build import build_base, build_model
from tasks.models.lora import adapter_spec, get_adapter, set_adapter, trainable_parameters
from tasks.models.tokenizer import load_tokenizer
from tasks.scoring.evaluation import compute_metrics, evaluate, task_loss
from tests.support.runs import FAST, rounds, run, without_wall_times

TIGHT = ("network.total_bandwidth_hz=2e4", "budget.deadline_s=4", "partition=dirichlet")


@pytest.fixture(scope="module")
def tight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tight")
    assert run(folder, *TIGHT) == 0
    return folder


def test_results_are_complete(tight: Path) -> None:
    for name in (
        "config.yaml",
        "environment.json",
        "rounds.jsonl",
        "summary.json",
        "checkpoint/position.json",
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
    ):
        assert (tight / name).is_file(), name
    assert not list(tight.glob(".*tmp*"))
    record = rounds(tight)[-1]
    assert {
        "round",
        "wall_s",
        "train_loss",
        "plan",
        "devices",
        "sim_latency_s",
        "sim_time_s",
        "energy_j",
        "failures",
        "eval",
        "train_eval",
        "gap",
    } <= set(record)
    assert {"solver", "objective", "lower_bound", "gap", "solve_time_s"} <= set(record["plan"])
    assert {
        "id",
        "scheduled",
        "reason",
        "dropout_rate",
        "bandwidth_hz",
        "tx_power_w",
        "latency_s",
        "energy_j",
        "deadline_s",
        "energy_budget_j",
        "uplink_bytes",
        "downlink_bytes",
        "uplink_adapter_bytes",
        "num_examples",
        "train_loss",
    } <= set(record["devices"][0])
    environment = json.loads((tight / "environment.json").read_text())
    assert (
        environment["server_pid"] > 0
        and environment["seed"] == 0
        and environment["versions"]["flwr"].startswith(VERSIONS)
    )
    summary = json.loads((tight / "summary.json").read_text())
    assert summary["rounds_done"] == 3 and summary["uplink_bytes"] > 0 and summary["peak_rss_mib"] > 50


def test_same_seed_same_rounds(tight: Path, tmp_path: Path) -> None:
    assert run(tmp_path, *TIGHT) == 0
    assert [without_wall_times(r) for r in rounds(tmp_path)] == [without_wall_times(r) for r in rounds(tight)]


def test_another_seed_another_run(tight: Path, tmp_path: Path) -> None:
    assert run(tmp_path, *TIGHT, "run.seed=1") == 0
    assert [r["train_loss"] for r in rounds(tmp_path)] != [r["train_loss"] for r in rounds(tight)]


def test_nobody_exceeds_deadline_or_energy_in_bytes_really_sent(tight: Path) -> None:
    rates = set()
    for record in rounds(tight):
        for device in record["devices"]:
            if device["scheduled"]:
                rates.add(round(device["dropout_rate"], 3))
                assert device["latency_s"] <= device["deadline_s"] * (1 + 1e-9)
                assert device["energy_j"] <= device["energy_budget_j"] * (1 + 1e-9)
            else:
                assert device["reason"] and device["uplink_bytes"] == 0
    assert len(rates) > 1, "the cell is meant to be tight enough that dropout rates differ"


def test_the_saved_adapter_loads_with_peft_and_scores_the_same(tight: Path) -> None:
    config = compose_config(join_overrides([*FAST, *TIGHT]))
    task = load_data(config)
    base = build_base(model_settings(config), num_outputs=task.num_outputs, kind=task.kind, seed=config.run.seed)
    model = PeftModel.from_pretrained(base, str(tight / "adapter")).eval()
    torch.set_num_threads(config.run.eval_threads)
    loss, predictions = evaluate(model, tokenise(load_tokenizer(model_settings(config)), task.test), 64)
    reported = rounds(tight)[-1]["eval"]
    assert loss == pytest.approx(reported["loss"], abs=1e-7)
    assert compute_metrics(task.metrics, predictions, task.test.labels)["accuracy"] == reported["accuracy"]


def test_without_dropout_it_is_plain_federated_averaging(tmp_path: Path) -> None:
    """Gamma = 0 and no pressure: three rounds equal FedAvg of LoRA, written out without masks, packing or radio.

    Equal to 1e-6, not bit for bit: the product sends float32 changes and adds their float64 mean to the old value,
    FedAvg averages the float32 values themselves.
    """
    items = (
        *FAST,
        "budget.max_dropout_rate=0",
        "budget.deadline_s=1e6",
        "network.total_bandwidth_hz=1e9",
        "training.head_lr=null",
        "strategy.clip_factor=null",
    )
    assert run(tmp_path, *items[len(FAST) :]) == 0
    assert all(d["dropout_rate"] == 0 for r in rounds(tmp_path) for d in r["devices"])
    config = compose_config(join_overrides(list(items)))
    reference = _plain_fedavg(config)
    outputs = load_data(config).num_outputs
    start = build_model(model_settings(config), lora_settings(config), num_outputs=outputs, seed=config.run.seed)
    ours, before = load_checkpoint(tmp_path, adapter_spec(start)).state, get_adapter(start)
    for part in ("lora_A", "lora_B", "head"):
        for name, value in getattr(ours, part).items():
            np.testing.assert_allclose(value, getattr(reference, part)[name], atol=1e-6, rtol=0)
    assert max(np.abs(ours.lora_B[name] - before.lora_B[name]).max() for name in ours.lora_B) > 1e-3


def _plain_fedavg(config) -> AdapterState:  # type: ignore[no-untyped-def]
    worker = importlib.import_module("client_app.worker")
    stream = importlib.import_module("client_app.training")._BATCH_STREAM
    task, t = load_data(config), config.training
    model = build_model(
        model_settings(config), lora_settings(config), num_outputs=task.num_outputs, seed=config.run.seed
    )
    torch.set_num_threads(1)
    for server_round in range(1, config.run.num_rounds + 1):
        state, answers, weights = get_adapter(model), [], []
        for k in range(config.network.num_devices):
            nodes = {"partition-id": k, "num-partitions": config.network.num_devices}
            data = worker.open_device({"overrides": join_overrides([*FAST])}, nodes).train
            set_adapter(model, state)
            model.train()
            parameters = list(trainable_parameters(model).values())
            optimizer = torch.optim.AdamW(parameters, lr=t.lr, weight_decay=t.weight_decay)
            rng = np.random.default_rng([stream, config.run.seed, server_round, k])
            rng.integers(2**31)  # the product draws the seed of the model's own dropout first
            for index in sample_batches(len(data), t.batch_size, steps=t.local_steps, rng=rng):
                batch = data.batch(index)
                optimizer.zero_grad()
                task_loss(model(**batch.inputs), batch.labels, model.kind).backward()
                torch.nn.utils.clip_grad_norm_(parameters, t.max_grad_norm)
                optimizer.step()
            answers.append([value.detach().numpy().astype(np.float64) for value in parameters])
            weights.append(len(data))
        with torch.no_grad():
            for parameter, values in zip(parameters, zip(*answers, strict=True), strict=True):
                parameter.copy_(torch.from_numpy(np.average(values, axis=0, weights=weights)))
    return get_adapter(model)


def test_a_resumed_run_equals_the_uninterrupted_one(tight: Path, tmp_path: Path) -> None:
    assert run(tmp_path, *TIGHT, "run.num_rounds=1") == 0
    with (tmp_path / "rounds.jsonl").open("a") as handle:
        handle.write('{"round": 2, "half')  # killed while writing
    assert run(tmp_path, *TIGHT, f"run.resume='{tmp_path}'") == 0
    ours, theirs = rounds(tmp_path), rounds(tight)
    assert [without_wall_times(r) for r in ours] == [without_wall_times(r) for r in theirs]
    a, b = ((folder / "adapter" / "adapter_model.safetensors").read_bytes() for folder in (tmp_path, tight))
    assert a == b


@pytest.mark.parametrize(
    "overrides", [("allocator=psca",), ("network=ofdma", "network.num_subcarriers=8", "allocator=bnb")]
)
def test_resume_starts_the_allocator_where_it_was(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(whole, *TIGHT, *overrides) == 0
    assert run(parts, *TIGHT, *overrides, "run.num_rounds=2") == 0
    assert run(parts, *TIGHT, *overrides, f"run.resume='{parts}'") == 0
    assert [without_wall_times(r) for r in rounds(parts)] == [without_wall_times(r) for r in rounds(whole)]


def test_a_damaged_checkpoint_gives_way_to_the_previous_one(tight: Path, tmp_path: Path) -> None:
    assert run(tmp_path, *TIGHT, "run.num_rounds=2") == 0
    (tmp_path / "checkpoint" / "adapter.safetensors").write_bytes(b"\0" * 100)
    assert run(tmp_path, *TIGHT, f"run.resume='{tmp_path}'") == 0
    assert [without_wall_times(r) for r in rounds(tmp_path)] == [without_wall_times(r) for r in rounds(tight)]


def test_a_device_that_misbehaves_is_left_out_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = importlib.import_module("client_app.app").app
    original = type(app).__call__

    def misbehave(self, message: Message, context) -> Message:  # type: ignore[no-untyped-def]
        reply = original(self, message, context)
        if message.metadata.message_type.startswith("train"):
            if context.node_config["partition-id"] == 1:
                raise RuntimeError("out of memory")
            if context.node_config["partition-id"] == 2:
                reply.content["report"]["num-examples"] = 10**6
        return reply

    monkeypatch.setattr(type(app), "__call__", misbehave)
    assert run(tmp_path, "run.num_rounds=1") == 0
    (record,) = rounds(tmp_path)
    assert [(f["device"], f["kind"]) for f in record["failures"]] == [
        ("device-1", "client_error"),
        ("device-2", "examples"),
    ]
    assert "out of memory" in record["failures"][0]["message"]
    assert [d["uplink_bytes"] > 0 for d in record["devices"]] == [True, False, False, True]


def test_all_devices_failing_leaves_the_model_and_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = importlib.import_module("client_app.training")
    monkeypatch.setattr(training, "train_round", lambda *_: (_ for _ in ()).throw(RuntimeError("no")))
    assert run(tmp_path, "run.num_rounds=2") == 3  # nothing was learnt, and that is no success
    first, second = rounds(tmp_path)
    assert len(first["failures"]) == 4 and first["train_loss"] is None
    assert first["eval"] == second["eval"]


def test_a_dead_worker_stops_the_run_which_can_be_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Trap 7: a dead simulation worker stays in Flower's pool and swallows most later messages of every round.
    with monkeypatch.context() as patch:
        original = LocalGrid._answer

        def die(self, message: Message) -> Message:  # type: ignore[no-untyped-def]
            reply = original(self, message)
            if message.metadata.message_type == "train" and message.metadata.group_id == "2":
                return Message(
                    Error(0, "<class 'ray.exceptions.ActorDiedError'>:<'The actor died.'>"), reply_to=message
                )
            return reply

        patch.setattr(LocalGrid, "_answer", die)
        assert run(tmp_path) == 2
    failure = json.loads((tmp_path / "failure.json").read_text())["message"]
    assert "simulation worker died in round 2" in failure and "fedlodrop resume" in failure
    assert len(rounds(tmp_path)) == 2
    assert run(tmp_path, f"run.resume='{tmp_path}'") == 0
    assert len(rounds(tmp_path)) == 3 and not (tmp_path / "failure.json").exists()


def test_nothing_depends_on_what_a_process_remembers(
    tight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Trap 9: in deployment every message is answered by a new process, whose caches are empty.
    worker = importlib.import_module("client_app.worker")
    caches = [worker._shared_model, worker._task, worker._partitions, worker._share]
    original = LocalGrid._answer

    def forget(self, message: Message) -> Message:  # type: ignore[no-untyped-def]
        for cache in caches:
            cache.cache_clear()
        return original(self, message)

    monkeypatch.setattr(LocalGrid, "_answer", forget)
    assert run(tmp_path, *TIGHT, "run.num_rounds=1") == 0
    assert without_wall_times(rounds(tmp_path)[0]) == without_wall_times(rounds(tight)[0])


def test_part_of_the_devices_per_round_and_scores_on_the_devices(tmp_path: Path) -> None:
    assert run(tmp_path, "strategy.devices_per_round=2", "run.client_evaluation=0.25", "run.eval_every=2") == 0
    records = rounds(tmp_path)
    assert all(len(r["devices"]) == 2 for r in records)
    assert all(r["client_eval"]["devices"] == 2 and 0 <= r["client_eval"]["accuracy"] <= 1 for r in records)
    assert ["eval" in r for r in records] == [False, True, True]


@pytest.mark.parametrize(
    "overrides",
    [
        ("strategy=fedit", "network.total_bandwidth_hz=1e7"),
        ("strategy.factors=b_only",),
        ("strategy.aggregation=previous", "strategy.mask=bernoulli"),
        ("wire.dtype=fp16", "training.optimizer=sgd", "training.momentum=0.9"),
        ("wire.dtype=int8",),
        ("wire.dtype=int4", "wire.downlink_dtype=fp32", "strategy.factors=b_only", "run.client_evaluation=0.25"),
        ("training.local_epochs=1", "strategy.scaled=false", "training.warmup_steps=2"),
        ("allocator=equal",),
        ("allocator=fixed", "allocator.dropout_rate=0.25"),
        ("allocator=random",),
        ("network.fading=rician", "partition=group"),
        ("model.freeze_head=true", "lora.layers=1", "training.prefix_cache=off"),
        ("lora.layers=1", "training.fused_lora=false", "run.client_evaluation=0.25"),
        ("training.dtype=bfloat16", "training.device=cpu"),
    ],
    ids=lambda items: " ".join(items),
)
def test_every_option_runs(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    assert run(tmp_path, "run.num_rounds=1", *overrides) == 0
    (record,) = rounds(tmp_path)
    assert not record["failures"] and any(d["scheduled"] for d in record["devices"])
    if "strategy=fedit" in overrides:
        assert {d["dropout_rate"] for d in record["devices"] if d["scheduled"]} == {0.0}


def test_kept_states_change_no_decision_and_no_loss(tmp_path: Path) -> None:
    options = ("lora.layers=1", "run.num_rounds=4", f"training.prefix_cache_dir='{tmp_path}/states'")
    for name, extra in (("off", ("training.prefix_cache=off",)), ("first", ()), ("second", ())):
        assert run(tmp_path / name, *options, *extra) == 0
    off, first, second = (rounds(tmp_path / name) for name in ("off", "first", "second"))
    assert [without_wall_times(r) for r in first] == [without_wall_times(r) for r in second]
    for cached, plain in zip(first, off, strict=True):
        for key in ("eval", "validation", "train_eval"):
            assert cached[key]["loss"] == pytest.approx(plain[key]["loss"], abs=1e-5)
        assert cached["train_loss"] == pytest.approx(plain["train_loss"], abs=1e-5)
        assert [d["dropout_rate"] for d in cached["devices"]] == [d["dropout_rate"] for d in plain["devices"]]
    summaries = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("off", "first", "second")]
    assert "prefix_cache" not in summaries[0] and summaries[1]["prefix_cache"]["misses"] > 0
    assert summaries[2]["prefix_cache"]["hit_rate"] == 1.0 and summaries[2]["prefix_cache"]["disk_mib"] > 0


def test_a_fleet_that_nobody_can_serve_ends_with_one_line(tmp_path: Path) -> None:
    assert run(tmp_path, "budget.energy_j=0") == 3
    failure = json.loads((tmp_path / "failure.json").read_text())
    assert "no device could be served" in failure["message"] and "budget.energy_j" in failure["message"]
    assert len(rounds(tmp_path)) == 3 and not any(d["scheduled"] for r in rounds(tmp_path) for d in r["devices"])
