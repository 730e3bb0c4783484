from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from conf.compose import compose_config
from wireless.device import assign_classes, draw_devices

CONF = Path(__file__).parents[2] / "conf" / "device"


def _classes(name: str) -> dict[str, dict[str, float]]:
    """Return a fleet as it is composed: one may build on another."""
    return {key: dict(vars(found)) for key, found in compose_config(f"device={name}").device.classes.items()}


@pytest.mark.parametrize("name", sorted(path.stem for path in CONF.glob("*.yaml")))
def test_every_shipped_fleet_can_be_drawn(name: str) -> None:
    kinds, arrays = draw_devices(np.random.default_rng(0), 10, _classes(name))
    assert len(kinds) == 10 and all(value.shape == (10,) and (value > 0).all() for value in arrays.values())


def test_shares_are_met_and_the_order_is_seeded() -> None:
    shares = {"watch": 0.3, "phone": 0.5, "laptop": 0.2}
    names = assign_classes(np.random.default_rng(1), 10, shares)
    assert Counter(names) == {"watch": 3, "phone": 5, "laptop": 2}
    assert names == assign_classes(np.random.default_rng(1), 10, dict(reversed(shares.items())))
    assert sum(Counter(assign_classes(np.random.default_rng(1), 7, shares)).values()) == 7


def test_wrong_classes_are_refused_by_name() -> None:
    values = _classes("phone")["phone"]
    with pytest.raises(ValueError, match="cpu_hz must be finite and > 0"):
        draw_devices(np.random.default_rng(0), 3, {"phone": values | {"cpu_hz": 0.0}})
    with pytest.raises(ValueError, match="shares"):
        assign_classes(np.random.default_rng(0), 3, {"phone": 0.0})
