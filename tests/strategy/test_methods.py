"""What every method must do: one table of methods, one contract. Short federations with the tiny model, in this process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from flwr.app import Message

from adapter import HEADER_BYTES, AdapterSpec, RoundInstruction
from adapter.protocol import BASE, BUFFER
from conf.compose import compose_config, join_overrides
from server_app.build import describe, load_data
from server_app.checkpoint import load_checkpoint
from server_app.engines.in_process import LocalGrid
from strategy import STRATEGIES
from strategy.round.messages import wire_bytes
from tests.support.runs import FAST, rounds, run, without_wall_times

K, R = 4, 2
WIDE = (
    "network.total_bandwidth_hz=1e7",
    f"lora.r={R}",
    f"network.num_devices={K}",
    "run.eval_every=2",
    "tracking=none",
)
CENTRAL = (
    "strategy.clip_factor=null",
    "privacy.model=central",
    "privacy.clip_norm=0.5",
    "privacy.noise_multiplier=0.1",
    "privacy.noise_seed=3",
)

# Overrides of every method beside `strategy=<name>`, and its traffic in LoRA numbers per module and device from round 2
# on (the table of docs/methods.md), as functions of m, n, the device's rank r, the round, and the sum of all ranks.
METHODS: dict[str, tuple[str, ...]] = {
    "fedit": ("strategy=fedit",),
    "fedlodrop": ("strategy=fedlodrop", "network.total_bandwidth_hz=2e4"),
    "ffa_lora": ("strategy=ffa_lora",),
    "rolora": ("strategy=rolora",),
    "rolora, dropout": (
        "strategy=fedlodrop",
        "strategy.factors=alternate",
        "allocator=fixed",
        "allocator.dropout_rate=0.5",
    ),
    "fedex_lora": ("strategy=fedex_lora",),
    "fedlodrop, exact": (
        "strategy=fedlodrop",
        "strategy.aggregation=exact",
        "allocator=fixed",
        "allocator.dropout_rate=0.5",
    ),
    "flora": ("strategy=flora", "strategy.ranks.watch=1"),
    "flexlora": ("strategy=flexlora", "strategy.ranks.watch=1"),
    "hetlora": ("strategy=hetlora", "strategy.ranks.watch=1", "strategy.prune_decay=null"),
    "hetlora, pruning": ("strategy=hetlora", "strategy.prune_weight=10", "training.lr=1e-2"),
    "fedsa_lora": ("strategy=fedsa_lora",),
    "local": ("strategy=local",),
    "centralized": ("strategy=centralized",),
    "fedlodrop, fedyogi": (
        "strategy=fedlodrop",
        "strategy.server_optimizer=fedyogi",
        "strategy.server_lr=0.01",
        "allocator=fixed",
        "allocator.dropout_rate=0.5",
    ),
    "ffa_lora, fedadam": ("strategy=ffa_lora", "strategy.server_optimizer=fedadam", "strategy.server_lr=0.01"),
    "rolora, fedavgm, [B, B, A]": (
        "strategy=rolora",
        "strategy.phases=[B,B,A]",
        "strategy.server_optimizer=fedavgm",
        "training.proximal_mu=0.1",
        "training.loraplus_lr_ratio=4",
        "lora.scale_by_devices=true",
    ),
    "fedlodrop, central": (
        "strategy=fedlodrop",
        "strategy.aggregation=previous",
        "allocator=fixed",
        "allocator.dropout_rate=0.5",
        *CENTRAL,
    ),
    "ffa_lora, fedavgm, central": ("strategy=ffa_lora", "strategy.server_optimizer=fedavgm", *CENTRAL),
    "rolora, central": ("strategy=rolora", *CENTRAL),
    "rolora, kept": ("strategy=rolora", "strategy.optimizer_state=kept", "strategy.devices_per_round=2"),
}
TRAFFIC = {
    "fedit": lambda m, n, r, t, total: (r * (m + n), r * (m + n)),
    "ffa_lora": lambda m, n, r, t, total: (r * m, r * m),
    "fedex_lora": lambda m, n, r, t, total: (r * (m + n), r * (m + n) + (t > 1) * min(m * n, (total - r) * (m + n))),
    "flora": lambda m, n, r, t, total: (r * (m + n), (t > 1) * min(m * n, total * (m + n))),
    "flexlora": lambda m, n, r, t, total: (r * (m + n), r * (m + n)),
    "hetlora": lambda m, n, r, t, total: (r * (m + n), r * (m + n)),
    "fedsa_lora": lambda m, n, r, t, total: (r * n, r * n),
    "local": lambda m, n, r, t, total: (r * n, r * n),
    # Up the factor that trains; down the one averaged last, which the device does not have yet (in round 1 the first
    # one).
    "rolora": lambda m, n, r, t, total: (r * m, r * n if t > 1 else r * m) if t % 2 else (r * n, r * m),
    "rolora, fedavgm, [B, B, A]": lambda m, n, r, t, total: (r * n if t == 3 else r * m, r * m),
    # Both factors down in every round: a plan must not know who was drawn before.
    "rolora, central": lambda m, n, r, t, total: (r * (m if t % 2 else n), r * (m + n)),
    "rolora, dropout": lambda m, n, r, t, total: (
        (r * m / 2, r * n if t > 1 else r * m) if t % 2 else (r * n / 2, r * m)
    ),
}


CHANGES_BASE = {"fedex_lora", "fedlodrop, exact", "flora"}


def _spec(*overrides: str) -> AdapterSpec:
    config = compose_config(join_overrides([*FAST, *WIDE, *overrides]))
    return describe(config, load_data(config)).spec


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: tmp_path_factory.mktemp("whole") for name in METHODS}


def test_every_method_has_its_place_in_the_table() -> None:
    assert {items[0].split("=")[1] for items in METHODS.values()} == set(STRATEGIES)


@pytest.mark.parametrize("name", METHODS)
def test_contract(name: str, whole: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three rounds without a failure and with finite numbers, planned bytes never exceeded, traffic as in the table."""
    seen: list[tuple[int, int, int, int, int]] = []
    original = LocalGrid._answer

    def watch(self, message: Message) -> Message:  # type: ignore[no-untyped-def]
        reply = original(self, message)
        if message.metadata.message_type == "train":
            down, up = (sum(len(array.data) for array in item.content[BUFFER].values()) for item in (message, reply))
            header = max(wire_bytes(message) - down - 96 * (BASE in message.content[BUFFER]), wire_bytes(reply) - up)
            rank = RoundInstruction.from_record(message.content["instruction"]).delivery.rank or R
            seen.append((int(message.metadata.group_id), up, down, rank, header))
        return reply

    monkeypatch.setattr(LocalGrid, "_answer", watch)
    assert run(whole[name], *WIDE, *METHODS[name]) == 0
    records = rounds(whole[name])
    assert len(records) == 3 and not any(record["failures"] for record in records)
    for record in records:
        for device in record["devices"]:
            assert device["latency_s"] <= device["deadline_s"] and device["energy_j"] <= device["energy_budget_j"]
    spec = _spec(*METHODS[name])
    state = load_checkpoint(whole[name], spec).state
    for part in (state.lora_A, state.lora_B, state.head, state.base):
        assert all(np.isfinite(value).all() for value in part.values())
    assert max(header for *_, header in seen) <= HEADER_BYTES
    if name in TRAFFIC:
        head = 0 if name in ("fedsa_lora", "local") else spec.head_parameters
        for server_round, up, down, rank, _ in seen:
            total = sum(r for t, _, _, r, _ in seen if t == server_round)
            shapes = [(m.out_features, m.in_features) for m in spec.modules]
            stated = np.sum([TRAFFIC[name](m, n, rank, server_round, total) for m, n in shapes], axis=0)
            np.testing.assert_allclose(np.array([up, down]) / 4 - head, stated, rtol=0.01)


# Whose state is larger than the adapter; the others go on from it alone, as the integration tests show for FedLoDrop.
WITH_MEMORY = (
    "fedlodrop, fedyogi",
    "rolora, fedavgm, [B, B, A]",
    "rolora, central",
    "rolora, kept",
    "fedlodrop, exact",
    "flora",
    "hetlora, pruning",
    "fedsa_lora",
    "local",
)


@pytest.mark.parametrize(
    "name", [name if name in WITH_MEMORY else pytest.param(name, marks=pytest.mark.slow) for name in METHODS]
)
def test_resumed_equals_uninterrupted(name: str, whole: dict[str, Path], tmp_path: Path) -> None:
    """Equal to the last bit: records, bytes and adapter, from a checkpoint after round 2; so it is deterministic too."""
    if not (whole[name] / "rounds.jsonl").exists():  # this test alone, or in another process than the one above
        assert run(whole[name], *WIDE, *METHODS[name]) == 0
    assert run(tmp_path, *WIDE, *METHODS[name], "run.num_rounds=2") == 0
    assert run(tmp_path, *WIDE, *METHODS[name], f"run.resume='{tmp_path}'") == 0
    assert [without_wall_times(r) for r in rounds(tmp_path)] == [without_wall_times(r) for r in rounds(whole[name])]
    for folder in (tmp_path, whole[name]):
        assert (folder / "base_delta.safetensors").exists() == (name in CHANGES_BASE)
    files = [(folder / "adapter" / "adapter_model.safetensors").read_bytes() for folder in (tmp_path, whole[name])]
    assert files[0] == files[1]
