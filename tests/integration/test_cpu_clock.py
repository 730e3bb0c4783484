"""A federation whose allocator also chooses the clocks: recorded per device, sent to it, within the budgets."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapter import RoundInstruction
from conf.compose import ConfigError, compose_config
from strategy.round import messages
from tests.support.runs import rounds, run

CLOCK = 5e5  # so slow that computing takes a second of the tiny model's round
SLOW = (
    "device=watch",
    "network.total_bandwidth_hz=2e4",
    "budget.deadline_s=4",
    "budget.energy_j=0.01",
    "run.num_rounds=1",
    f"device.classes.watch.cpu_hz={CLOCK}",
    "device.classes.watch.capacitance=1.6e-19",
)


FREE = ("allocator.cpu_clock=free", "allocator.cpu_range=[0.3,1.0]", "allocator.verify=true")


@pytest.mark.parametrize(
    "network", [(), ("network=ofdma", "network.num_subcarriers=8", "allocator=bnb")], ids=["fdma", "ofdma"]
)
def test_the_chosen_clock_is_recorded_and_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: tuple[str, ...]
) -> None:
    sent: list[RoundInstruction] = []
    build = messages.train_message

    def note(flat, instruction, *rest, **options):  # type: ignore[no-untyped-def]
        sent.append(instruction)
        return build(flat, instruction, *rest, **options)

    monkeypatch.setattr(messages, "train_message", note)
    assert run(tmp_path, *SLOW, *network, *FREE) == 0
    assert all(record["plan"]["verified"] for record in rounds(tmp_path))
    rows = [row for record in rounds(tmp_path) for row in record["devices"] if row["scheduled"]]
    clocks = [row["cpu_hz"] for row in rows]
    # At the class's own clock computing alone takes 0.02 J, twice the budget: nobody could have been served.
    assert rows and 0.3 * CLOCK <= min(clocks) and max(clocks) <= 0.8 * CLOCK
    assert sorted(order.cpu_hz for order in sent) == sorted(clocks)
    for row in rows:
        assert row["latency_s"] <= row["deadline_s"] * (1 + 1e-9) and row["energy_j"] <= row["energy_budget_j"] * (
            1 + 1e-9
        )


def test_an_unusable_range_is_refused_with_its_key() -> None:
    with pytest.raises(ConfigError, match=r"allocator.cpu_range must be \[low, high\]"):
        compose_config("allocator.cpu_range=[1.2,2.0]")
