import numpy as np
import pytest

from wireless.cost import payload_bits, round_cost

ARGUMENTS = {
    "uplink_bits": 1e6,
    "downlink_bits": 2e6,
    "cycles": 1e9,
    "cpu_hz": 2e9,
    "capacitance": 1e-28,
    "downlink_rate_bps": 1e7,
    "uplink_rate_bps": 5e5,
    "tx_power_w": 0.2,
}


def test_a_round_by_hand() -> None:
    cost = round_cost(**ARGUMENTS)
    assert cost.latency_s == pytest.approx(0.2 + 0.5 + 2.0) and cost.energy_j == pytest.approx(1e-28 * 4e18 * 1e9 + 0.4)


def test_the_payload_is_affine() -> None:
    gamma = np.array([0.0, 0.25, 1.0])
    np.testing.assert_array_equal(payload_bits(10.0, 100.0, gamma), [110.0, 85.0, 10.0])


def test_zero_rate_is_late_unless_there_is_nothing_to_send() -> None:
    with np.errstate(all="raise"):
        assert round_cost(**(ARGUMENTS | {"uplink_rate_bps": 0.0})).latency_s == np.inf
        silent = round_cost(**(ARGUMENTS | {"uplink_rate_bps": 0.0, "uplink_bits": 0.0, "tx_power_w": 0.0}))
        assert silent.latency_s == pytest.approx(0.7) and silent.energy_j == pytest.approx(0.4)


def test_broadcasts_to_the_fleet() -> None:
    cost = round_cost(**(ARGUMENTS | {"cpu_hz": np.array([1e9, 2e9, 4e9])}))
    assert cost.latency_s.shape == cost.energy_j.shape == (3,)
    assert (np.diff(cost.latency_s) < 0).all() and (np.diff(cost.energy_j) > 0).all()
