import numpy as np
import pytest

from optimizer.fdma import schemes
from optimizer.fdma.exact import solve_fdma
from optimizer.fdma.schemes import fit_shares
from optimizer.feasibility import check_solution
from optimizer.solver_interface import Arguments
from tests.optimizer.fleets import random_fleet

RULES = ("common", "equal", "fixed", "none", "proportional", "random")


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("seed", range(5))
def test_rules_are_feasible_and_never_below_the_optimum(rule: str, seed: int) -> None:
    fleet = random_fleet(seed, 12, total_bandwidth_hz=4e6)
    solution, optimum = getattr(schemes, rule)(fleet), solve_fdma(fleet)
    assert check_solution(fleet, solution) == []
    assert solution.lower_bound <= solution.objective
    if (solution.scheduled == optimum.scheduled).all():
        assert solution.objective >= optimum.lower_bound


def test_each_rule_does_what_its_name_says() -> None:
    fleet = random_fleet(8, 6, total_bandwidth_hz=3e7, energy_budget_j=5.0, channel_gain=np.full(6, 1e-9))
    assert not schemes.none(fleet).dropout_rate.any()
    assert np.ptp(schemes.common(fleet).dropout_rate) == 0
    fixed = schemes.fixed(fleet, Arguments(dropout_rate=0.3))
    np.testing.assert_array_equal(fixed.dropout_rate, 0.3)
    for solution in (fixed, schemes.equal(fleet)):
        np.testing.assert_allclose(solution.bandwidth_hz, 3e7 / 6)
    assert schemes.fixed(fleet, Arguments(dropout_rate=0.99)).dropout_rate[0] == fleet.max_dropout_rate


def test_random_follows_its_generator() -> None:
    fleet = random_fleet(8, 6, total_bandwidth_hz=3e6)
    draws = [schemes.random(fleet, Arguments(rng=np.random.default_rng(seed))).objective for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]


def test_sharing_serves_as_many_as_can_live_with_their_share() -> None:
    need = np.array([1.0, 2.0, 3.0, 100.0, np.inf])
    np.testing.assert_array_equal(fit_shares(need, np.ones(5), 9.0), [True, True, True, False, False])
    np.testing.assert_array_equal(fit_shares(need, np.ones(5), 3.9), [True, False, False, False, False])
    assert not fit_shares(need, np.ones(5), 0.5).any()
