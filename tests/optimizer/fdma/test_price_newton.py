"""The joint Newton iteration against the brackets it replaces, which these tests also keep exercised."""

from dataclasses import replace

import numpy as np
import pytest

from optimizer import fdma
from optimizer.checker import check_solution
from optimizer.fdma.bandwidth_curve import BandwidthCurve
from optimizer.fdma.price_newton import CertifiedPoint, newton_point
from optimizer.objective import GeneralizationBound
from optimizer.problem import ResourceProblem
from tests.optimizer.fleets import extreme_fleet, random_fleet


def _newton(fleet: ResourceProblem, **options: float) -> CertifiedPoint | None:
    top = np.full(fleet.num_devices, fleet.max_dropout_rate)
    return newton_point(fleet, GeneralizationBound(), BandwidthCurve.of(fleet), np.zeros_like(top), top, **options)


@pytest.mark.parametrize("seed", range(60))
def test_brackets_agree_and_each_bound_is_below_the_other_value(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = extreme_fleet(seed) if seed % 2 else random_fleet(seed, 1 + seed % 25)
    fast = fdma.solve_fdma(fleet)
    monkeypatch.setattr(fdma, "newton_point", lambda *_: None)
    sure = fdma.solve_fdma(fleet)
    assert check_solution(fleet, sure) == [] and sure.gap <= 1e-9
    np.testing.assert_array_equal(fast.scheduled, sure.scheduled)
    assert fast.objective == pytest.approx(sure.objective, rel=2e-12)
    assert fast.lower_bound <= sure.objective * (1 + 1e-13) and sure.lower_bound <= fast.objective * (1 + 1e-13)


@pytest.mark.parametrize("seed", range(20))
def test_ordinary_fleets_need_few_calls_and_no_brackets(seed: int) -> None:
    for num_devices in (3, 30):
        point = _newton(random_fleet(seed, num_devices))
        assert point is not None and point.evaluations <= 10
        assert 0 <= point.objective - point.lower_bound <= 1e-12 * point.objective


@pytest.mark.parametrize("seed", range(10))
def test_devices_may_rest_at_their_kinks(seed: int) -> None:
    """Batteries such that the energy budget takes over from the power cap where the optimum lies already."""
    rich = random_fleet(seed, 12, energy_budget_j=50.0)
    curve, top = BandwidthCurve.of(rich), np.full(12, 0.9)
    at = fdma.solve_box(rich, GeneralizationBound(), np.zeros(12), top).dropout_rate
    joules = curve.max_tx_power_w * curve.uplink_time_s(at) + curve.energy_slope_j * (1 - at) + 50.0 - curve.energy_j
    fleet = replace(rich, energy_budget_j=joules)
    kink, point = BandwidthCurve.of(fleet).kink(), _newton(fleet)
    assert point is not None and point.objective - point.lower_bound <= 1e-12 * point.objective
    assert (np.abs(point.dropout_rate - kink) < 1e-10).sum() >= 10
    assert point.bandwidth_hz.sum() <= fleet.total_bandwidth_hz
    sure = fdma.solve_box(fleet, GeneralizationBound(), np.zeros(12), top, _Plain(fleet))  # a kink costs it up to 1e-9
    assert sure.lower_bound - 1e-12 <= point.objective <= sure.objective * (1 + 2e-12)
    assert point.objective == pytest.approx(sure.objective, rel=1e-9)


class _Plain:
    """The same curves without their type, for which only brackets are used."""

    def __init__(self, fleet: ResourceProblem) -> None:
        curve = BandwidthCurve.of(fleet)
        self.bandwidth_hz, self.bandwidth_and_slope = curve.bandwidth_hz, curve.bandwidth_and_slope
        self.kink, self.smallest_dropout_rate = curve.kink, curve.smallest_dropout_rate


def test_what_cannot_be_certified_is_refused() -> None:
    assert _newton(random_fleet(0, 3), tolerance=-1.0) is None
    assert _newton(random_fleet(0, 3, droppable_bits=0.0, fixed_bits=0.0)) is None  # no price: nobody needs bandwidth
