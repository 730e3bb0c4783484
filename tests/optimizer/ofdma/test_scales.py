"""Cells whose numbers are far from the usual: thin rates, wide subcarriers; every answer is feasible and none fails."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from optimizer.allocator import make_allocator
from optimizer.feasibility import check_solution
from optimizer.ofdma.model import OfdmaModel
from optimizer.ofdma.waterfilling import list_members, sort_members, waterfill_power, waterfill_rate
from tests.optimizer.ofdma_instances import random_problem


@pytest.mark.parametrize("method", ["bnb", "psca", "equal", "common"])
@pytest.mark.parametrize("seed", range(10))
def test_thin_rates_end_in_an_answer(method: str, seed: int) -> None:
    """Payloads of 1e-5 to 1e-10 bit/s/Hz: the rate of a subcarrier is lost in the difference of two logarithms."""
    rng = np.random.default_rng([seed, 3])
    cell = random_problem(int(rng.integers(1, 5)), int(rng.integers(2, 13)), seed, load=10 ** rng.uniform(5, 7))
    wider = 10 ** rng.uniform(5, 10)
    cell = replace(cell, subcarrier_hz=cell.subcarrier_hz * wider)
    solution = make_allocator(method, time_limit_s=20).allocate(cell, rng=np.random.default_rng(0))
    assert check_solution(cell, solution) == [] and solution.scheduled.any()


@pytest.mark.parametrize("wider", [1.0, 1e6, 1e12, 1e20])
def test_power_and_rate_are_inverse_at_every_scale(wider: float) -> None:
    cell = random_problem(3, 8, 0)
    model = OfdmaModel(replace(cell, subcarrier_hz=cell.subcarrier_hz * wider))
    sets = sort_members(model, np.arange(3), list_members(np.ones((3, 8), dtype=bool)))
    for share in (1e-12, 1e-6, 1e-2, 1.0):
        power = share * model.power
        np.testing.assert_allclose(waterfill_power(sets, waterfill_rate(sets, power)[0]), power, rtol=1e-12)
