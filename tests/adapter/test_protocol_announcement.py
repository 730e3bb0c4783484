"""What a device announces is believed within its range only."""

from __future__ import annotations

import pytest

from adapter.protocol import FACT_RANGES, DeviceAnnouncement, ProtocolError

GOOD = {"partition-id": 2, "num-examples": 160, "num-holdout": 10, "cpu-hz": 2e9, "step-s": 0.1}


def test_an_announcement_comes_back_as_it_was() -> None:
    item = DeviceAnnouncement.from_record(GOOD)
    assert item == DeviceAnnouncement(2, 160, 10, {"cpu-hz": 2e9, "step-s": 0.1})
    assert DeviceAnnouncement.from_record(item.to_record()) == item


@pytest.mark.parametrize(
    "change",
    [
        {"partition-id": -1},
        {"partition-id": True},
        {"partition-id": 1.0},
        {"num-examples": 0},
        {"num-examples": 10**12},
        {"num-holdout": -3},
        {"num-holdout": None},
        {"num-examples": "many"},
        {"bonus": 1.0},
        {"cpu-hz": [1.0, 2.0]},
        {"cpu-hz": float("nan")},
        {"step-s": 0.0},
        {"step-s": float("inf")},
        *({name: 10 * high + 1} for name, (_, high) in FACT_RANGES.items()),
    ],
    ids=str,
)
def test_nothing_outside_its_range_or_of_another_type_is_taken(change: dict[str, object]) -> None:
    with pytest.raises(ProtocolError):
        DeviceAnnouncement.from_record({**GOOD, **change})


@pytest.mark.parametrize("missing", ["partition-id", "num-examples", "num-holdout"])
def test_the_counts_are_required(missing: str) -> None:
    with pytest.raises(ProtocolError, match=missing):
        DeviceAnnouncement.from_record({key: value for key, value in GOOD.items() if key != missing})
