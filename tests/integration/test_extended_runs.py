"""Runs whose plan chooses number types, shares time, or broadcasts: recorded, explained, and refused in one line."""

from pathlib import Path

import pytest

from adapter import ProtocolError, RoundInstruction
from conf.compose import ConfigError, compose_config, join_overrides
from fedlodrop.console.explain import explain
from tests.support.runs import rounds, run

CHOICES = ("wire.choices=[fp32, int8, int4]", "network.total_bandwidth_hz=3e3", "network.num_devices=4")
VERIFY = "allocator.verify=true"


def test_devices_send_in_the_number_type_that_the_plan_chose(tmp_path: Path) -> None:
    assert run(tmp_path, *CHOICES, VERIFY) == 0
    sizes: dict[str, set[int]] = {}
    for record in rounds(tmp_path):
        assert record["failures"] == [] and record["plan"]["gap"] <= 1e-3 and record["plan"]["verified"]["gap"] <= 1e-3
        for row in record["devices"]:
            assert ("wire_dtype" in row) == row["scheduled"]
            if row["scheduled"]:
                sizes.setdefault(row["wire_dtype"], set()).add(row["uplink_bytes"])
                assert row["latency_s"] <= row["deadline_s"] * (1 + 1e-9)
                assert row["energy_j"] <= row["energy_budget_j"] * (1 + 1e-9)
    assert sizes and set(sizes) <= {"fp32", "int8", "int4"} and sizes.keys() != {"fp32"}
    last = rounds(tmp_path)[-1]
    assert not explain(tmp_path, last["round"], last["devices"][0]["id"]).differences


@pytest.mark.parametrize("setting", ["network=tdma", "network.shared_downlink=true"])
def test_time_shares_and_a_broadcast_keep_every_limit_and_are_explained(setting: str, tmp_path: Path) -> None:
    assert run(tmp_path, setting, "device=mixed", VERIFY) == 0
    for record in rounds(tmp_path):
        rows = [row for row in record["devices"] if row["scheduled"]]
        assert rows and record["failures"] == [] and record["plan"]["verified"]["gap"] <= 1e-9
        assert all(row["latency_s"] <= row["deadline_s"] * (1 + 1e-9) for row in rows)
        assert all(row["energy_j"] <= row["energy_budget_j"] * (1 + 1e-9) for row in rows)
        assert sum(row["bandwidth_hz"] for row in rows) <= 3.6e5 * (1 + 1e-9)
    last = rounds(tmp_path)[-1]
    assert not explain(tmp_path, last["round"], last["devices"][0]["id"]).differences


def test_an_instruction_names_a_known_number_type_or_none() -> None:
    record = {"server-round": 1, "dropout-rate": 0.0, "mask-seed": 1, "bandwidth-hz": 1.0, "tx-power-w": 1.0}
    record |= {"deadline-s": 1.0, "cpu-hz": 1.0, "factors": "AB", "code": b""}
    assert "wire-dtype" not in RoundInstruction.from_record(record).to_record()
    assert RoundInstruction.from_record(record | {"wire-dtype": "int4"}).wire_dtype == "int4"
    with pytest.raises(ProtocolError, match="wire-dtype must be one of fp32, fp16, int8, int4, found 'int2'"):
        RoundInstruction.from_record(record | {"wire-dtype": "int2"})


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["wire.choices=[fp32, int3]"], "wire.choices must be a list of different ones of fp32"),
        (["wire.choices=[int8, int8]"], "wire.choices must be a list of different ones of fp32"),
        (["wire.choices=[fp32]", "wire.noise={fp32: -1.0}"], "wire.noise must be a number >= 0 for each of"),
        (["wire.choices=[fp32]", "allocator.cpu_clock=free"], "allocator.cpu_clock must be fixed with wire.choices"),
        (["allocator=scip", "allocator.verify=true"], "allocator.verify must be false with scip"),
        (["wire.choices=[fp32]", "budget.battery_j={watch: 1.0}"], "battery_policy must be spend with wire.choices"),
        (["network=ofdma", "budget.battery_j={watch: 1.0}"], "budget.battery_policy must be spend under OFDMA"),
    ],
)
def test_settings_that_make_no_sense_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compose_config(join_overrides(overrides))
