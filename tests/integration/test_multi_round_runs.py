"""Runs with batteries, estimated channels and other goals: who sits out and why, what is recorded, exact resume."""

from pathlib import Path

import pytest

from conf.compose import ConfigError, compose_config, join_overrides
from fedlodrop.console.explain import explain
from fedlodrop.report.curves import cost_charts
from fedlodrop.report.data import load_runs
from strategy.round.battery_policy import Batteries
from tests.support.runs import rounds, run, without_wall_times

BATTERY = ("run.num_rounds=4", "budget.battery_j={watch: 0.003, phone: 0.003, laptop: 0.003}")


@pytest.fixture(scope="module")
def battery_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("battery")
    assert run(folder, *BATTERY) == 0
    return folder


def test_charges_fall_by_what_rounds_cost_and_never_below_zero(battery_run: Path) -> None:
    records = rounds(battery_run)
    for before, after in zip(records, records[1:], strict=False):
        for first, then in zip(before["devices"], after["devices"], strict=True):
            spent = first["energy_j"] or 0.0
            assert then["charge_j"] == pytest.approx(max(first["charge_j"] - spent, 0.0), rel=1e-12)
    assert all(row["price_per_j"] >= 0 for record in records for row in record["devices"])


def test_explain_knows_the_batteries_of_a_round(battery_run: Path) -> None:
    last = rounds(battery_run)[-1]
    explained = explain(battery_run, last["round"], last["devices"][0]["id"])
    assert not explained.differences
    row = last["devices"][0]
    assert f"Its battery held {row['charge_j']:.4g} J of 0.003 J" in explained.reasons[-1]
    assert f"at a price of {row['price_per_j']:.3g} per joule" in explained.reasons[-1]


def test_the_report_draws_charge_and_price(battery_run: Path) -> None:
    charts = {chart.key: chart for chart in cost_charts(load_runs([battery_run]))}
    records = rounds(battery_run)
    means = [sum(row["charge_j"] for row in record["devices"]) / len(record["devices"]) for record in records]
    assert charts["charge"].data[0]["y"] == pytest.approx(means, rel=1e-3)
    assert charts["charge"].data[1]["y"] == pytest.approx(
        [min(row["charge_j"] for row in record["devices"]) for record in records], rel=1e-3
    )
    assert len(charts["joule-price"].data[0]["y"]) == len(records)


def test_who_spends_all_at_once_sits_out_later_and_says_so(tmp_path: Path, battery_run: Path) -> None:
    assert run(tmp_path, *BATTERY, "budget.battery_policy=spend") == 0
    greedy, priced = rounds(tmp_path), rounds(battery_run)
    served = [
        [sum(row["scheduled"] for row in record["devices"]) for record in records] for records in (greedy, priced)
    ]
    assert served[0][0] >= served[1][0] and served[0][-1] < served[0][0]
    assert sum(served[1]) >= sum(served[0])
    reasons = {row["reason"] for records in (greedy, priced) for record in records for row in record["devices"]}
    assert any(reason and ("battery" in reason or "energy budget" in reason) for reason in reasons)


@pytest.mark.parametrize("policy", ["prices", "spend"])
def test_a_run_that_broke_off_goes_on_exactly(policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, broken, settings = tmp_path / "whole", tmp_path / "broken", (*BATTERY, f"budget.battery_policy={policy}")
    assert run(whole, *settings) == 0
    original = Batteries.allot
    with monkeypatch.context() as patch:

        def break_off(self, problem, devices, server_round, channel):  # type: ignore[no-untyped-def]
            if server_round == 3:
                raise RuntimeError("power cut")
            return original(self, problem, devices, server_round, channel)

        patch.setattr(Batteries, "allot", break_off)
        with pytest.raises(RuntimeError, match="power cut"):
            run(broken, *settings)
    assert run(broken, *settings, f"run.resume='{broken}'") == 0
    assert [without_wall_times(r) for r in rounds(broken)] == [without_wall_times(r) for r in rounds(whole)]


def test_missed_deadlines_are_recorded_and_survived(tmp_path: Path) -> None:
    assert run(tmp_path, "network.csi=estimated", "network.outage_probability=0.4", "run.num_rounds=4") == 0
    records = rounds(tmp_path)
    late = [(record, failure) for record in records for failure in record["failures"] if failure["kind"] == "deadline"]
    assert late and all("weaker than planned" in failure["message"] for _, failure in late)
    asked, used = (sum(record["answers"][key] for record in records) for key in ("asked", "used"))
    assert used == asked - len(late) > 0
    assert all(record["sim_latency_s"] == 4.0 for record, _ in late)


def test_a_goal_shortens_the_rounds(tmp_path: Path) -> None:
    weights = ("allocator.objective=tradeoff", "allocator.time_weight_per_s=0.05", "budget.circuit_energy_j=0.01")
    weights += ("allocator.verify=true",)
    assert run(tmp_path, *weights, "run.num_rounds=2") == 0
    for record in rounds(tmp_path):
        rows = [row for row in record["devices"] if row["scheduled"]]
        assert rows and len({row["deadline_s"] for row in rows}) == 1 and rows[0]["deadline_s"] < 4.0
        assert all(row["latency_s"] <= row["deadline_s"] * (1 + 1e-9) and row["energy_j"] > 0.01 for row in rows)
        assert record["plan"]["gap"] <= 1e-4


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["allocator.objective=time"], "allocator.max_bound must be a number with allocator.objective=time"),
        (["allocator.max_bound=0.4"], "allocator.max_bound must be a number with allocator.objective=time and null"),
        (["network=ofdma", "network.csi=estimated"], "network.csi must be perfect under OFDMA"),
        (["network=ofdma", "budget.battery_j={watch: 1.0}"], "budget.battery_policy must be spend under OFDMA"),
        (["budget.battery_j={watch: -1.0}"], "budget.battery_j.watch must be >= 0"),
        (["network.outage_probability=1.0"], "network.outage_probability must be in"),
    ],
)
def test_settings_that_make_no_sense_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compose_config(join_overrides(overrides))
