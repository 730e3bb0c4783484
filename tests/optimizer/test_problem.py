from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from optimizer.problem import InfeasibleProblemError, ProblemError, ResourceProblem
from tests.optimizer.fleets import random_fleet


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"deadline_s": 0.0}, "deadline_s must be finite and > 0"),
        ({"deadline_s": float("nan")}, "deadline_s must be finite"),
        ({"deadline_s": "4"}, "deadline_s must be a number"),
        ({"noise_psd_w_per_hz": -1e-21}, "noise_psd_w_per_hz must be finite and > 0"),
        ({"max_dropout_rate": 1.0}, "max_dropout_rate must lie in [0, 1)"),
        ({"total_bandwidth_hz": float("inf")}, "total_bandwidth_hz must be finite"),
        ({"channel_gain": np.array([1e-9, -1e-9, 1e-9])}, "devices[1].channel_gain must be finite and >= 0"),
        ({"channel_gain": np.array([1e-9, 1e-9])}, "channel_gain must be a number or have shape (3,)"),
        ({"energy_budget_j": np.array([1.0, np.nan, 1.0])}, "devices[1].energy_budget_j must be finite"),
        ({"cpu_hz": np.array([1e9, 1e9, 0.0])}, "devices[2].cpu_hz must be finite and > 0"),
        ({"access": "cdma"}, "access must be one of fdma, tdma, ofdma"),
        ({"access": "ofdma"}, "subcarrier_hz must be finite and > 0"),
        ({"access": "ofdma", "subcarrier_hz": 9e4}, "channel_gain must have shape (3, num_subcarriers)"),
        ({"device_ids": ()}, "devices must name at least one device"),
        ({"total_examples": -1.0}, "total_examples must be finite and >= 0"),
    ],
)
def test_unusable_values_are_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ProblemError) as caught:
        replace(random_fleet(0, 3), **changes)
    assert message in str(caught.value)


def test_scalars_become_one_value_per_device() -> None:
    fleet = random_fleet(0, 3, energy_budget_j=1.0)
    np.testing.assert_array_equal(fleet.energy_budget_j, np.ones(3))
    assert fleet.weights.sum() == pytest.approx(1.0)


def test_ofdma_bandwidth_is_that_of_its_subcarriers() -> None:
    problem: ResourceProblem = replace(
        random_fleet(0, 2), access="ofdma", channel_gain=np.ones((2, 5)), subcarrier_hz=9e4
    )
    assert problem.num_subcarriers == 5 and problem.total_bandwidth_hz == 4.5e5
    assert problem.subset(np.array([False, True])).channel_gain.shape == (1, 5)


def test_an_empty_subset_is_refused() -> None:
    with pytest.raises(InfeasibleProblemError, match="at least one device"):
        random_fleet(0, 2).subset(np.zeros(2, dtype=np.bool_))
