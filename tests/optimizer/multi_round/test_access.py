"""Time shares (TDMA) and a shared downlink: the curve, every method and goal, the checker, files, bad input."""

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optimizer.__main__ import main
from optimizer.allocator import METHODS, RIGID_RULES, make_allocator
from optimizer.fdma.bandwidth_curve import BandwidthCurve
from optimizer.fdma.exact import solve_fdma
from optimizer.feasibility import check_solution
from optimizer.files import problem_from_dict, problem_to_dict, read_problem, write_problem
from optimizer.multi_round.battery import Rounds, allowances, offline_plan
from optimizer.multi_round.geometric import GeometricProgram
from optimizer.multi_round.interior_point import inside
from optimizer.problem import Goal, ProblemError, ResourceProblem, Solution
from optimizer.sensitivity import sensitivity
from tests.optimizer.fleets import contract_cases, extreme_fleet, more_of_each_resource, random_fleet
from tests.optimizer.ofdma_instances import random_problem
from tests.support.cases import first

QUICK = sorted(name for name in METHODS if name != "scip")
GOALS = {"time": Goal("time", max_bound=0.6)}
GOALS["tradeoff"] = Goal("tradeoff", energy_weight_per_j=0.02, time_weight_per_s=0.05)


def timed(seed: int, count: int, **changes: Any) -> ResourceProblem:
    return random_fleet(seed, count, access="tdma", **changes)


def shared(fleet: ResourceProblem, seed: int = 0) -> ResourceProblem:
    """The fleet with downlinks of 5 to 50 Mbit/s, of which the slowest counts."""
    rates = 10 ** np.random.default_rng([seed, 5]).uniform(6.7, 7.7, fleet.num_devices)
    return replace(fleet, downlink_rate_bps=rates, shared_downlink=True)


def _solve(name: str, problem: ResourceProblem, **options: Any) -> Solution:
    return make_allocator(name, **{"time_limit_s": 60.0} | options).allocate(problem, rng=np.random.default_rng(0))


@pytest.mark.parametrize("seed", range(10))
def test_the_share_of_time_is_the_least_that_serves(seed: int) -> None:
    """Against the definitions: at the share the device is served, at a little less no power would do."""
    fleet = timed(seed, 6)
    gamma = np.random.default_rng(seed).uniform(0.3, 0.9, 6)
    curve = BandwidthCurve(fleet)
    share = curve.bandwidth_hz(gamma) / fleet.total_bandwidth_hz
    left_s, bits = curve.uplink_time_s(gamma), curve.uplink_bits(gamma)
    left_j = curve.energy_j - curve.energy_slope_j * (1 - gamma)

    def carried(time_share: np.ndarray) -> np.ndarray:
        power = np.minimum(fleet.max_tx_power_w, left_j / (time_share * left_s))
        snr = power * fleet.channel_gain / (fleet.noise_psd_w_per_hz * fleet.total_bandwidth_hz)
        return time_share * left_s * fleet.total_bandwidth_hz * np.log2(1 + snr)

    finite = np.isfinite(share)
    assert finite.any()
    np.testing.assert_allclose(carried(share)[finite], bits[finite], rtol=1e-9)
    assert (carried(0.999 * share) < bits)[finite].all()


@pytest.mark.parametrize("seed", range(12))
def test_the_share_is_convex_and_falling_in_the_rate_and_in_its_logarithm(seed: int) -> None:
    fleet = timed(seed, 10, energy_budget_j=np.random.default_rng(seed).uniform(0.3, 3.0, 10))
    curve = BandwidthCurve(fleet)
    plain, logarithmic = np.linspace(0, 0.9, 200), 1 - np.exp(np.linspace(0, np.log(0.1), 200))
    for rates in (plain, logarithmic):
        band, slope = curve.bandwidth_and_slope(rates[:, None] + np.zeros(10))
        band[np.isinf(band)] = np.nan
        assert not (np.diff(band, axis=0) > 0).any()
        assert not (np.diff(band, 2, axis=0) < -1e-9 * np.nanmax(band, axis=0)).any()
    side = 1e-7
    gamma = np.random.default_rng(seed).uniform(0.4, 0.89, 10)
    ends = [curve.bandwidth_hz(gamma + step) for step in (-side, side)]
    expected = (ends[1] - ends[0]) / (2 * side)
    near_kink = np.abs(gamma - curve.kink()) < 1e-3
    known = np.isfinite(expected) & ~near_kink
    np.testing.assert_allclose(curve.bandwidth_and_slope(gamma)[1][known], expected[known], rtol=1e-4)


@functools.cache
def _solved(name: str, kind: str, objective: str) -> tuple[ResourceProblem, Solution]:
    access = kind.split()[0]
    fleet = random_problem(2, 6, seed=1) if access == "ofdma" else random_fleet(3, 5, access=access)
    problem = replace(shared(fleet) if "shared" in kind else fleet, goal=GOALS.get(objective))
    limit = 1.0 if access == "ofdma" or (name == "psca" and objective != "bound") else 60.0
    return problem, _solve(name, problem, gap=1e-3, time_limit_s=limit)


@pytest.mark.parametrize(("kind", "objective"), contract_cases("tdma", "fdma shared", "tdma shared", "ofdma shared"))
@pytest.mark.parametrize("name", QUICK)
def test_contract_of_every_method(name: str, kind: str, objective: str) -> None:
    access = kind.split()[0]
    (problem, found), (_, exact) = (_solved(method, kind, objective) for method in (name, "exact"))
    assert check_solution(problem, found) == [] and found.method == name
    assert found.lower_bound <= found.objective
    if name not in RIGID_RULES and objective != "time":
        assert found.scheduled.any()
    if access != "ofdma" and name in ("exact", "bnb"):
        assert found.gap <= 1e-6
    if found.scheduled.any() and (found.scheduled == exact.scheduled).all():
        assert found.objective >= exact.lower_bound * (1 - 1e-12)
        assert exact.objective >= found.lower_bound * (1 - 1e-12)


@pytest.mark.parametrize("objective", first(1, ["bound", "time", "tradeoff"]))
@pytest.mark.parametrize("kind", ["tdma", "shared"])
def test_more_of_any_resource_never_hurts(kind: str, objective: str) -> None:
    fleet = timed(0, 6, total_bandwidth_hz=8e5) if kind == "tdma" else shared(random_fleet(0, 6))
    fleet = replace(fleet, goal=GOALS.get(objective))
    base = _solve("exact", fleet)
    for field, value in more_of_each_resource(fleet).items():
        better = _solve("exact", replace(fleet, **{field: value}))
        assert better.scheduled.all() and better.objective <= base.objective * (1 + 2e-6), field


@pytest.mark.parametrize("seed", range(12))
def test_extreme_fleets_get_an_answer(seed: int) -> None:
    for fleet in (replace(extreme_fleet(seed), access="tdma"), shared(extreme_fleet(seed))):
        for name in ("exact", "equal"):
            found = _solve(name, fleet)
            assert check_solution(fleet, found) == [] and found.lower_bound <= found.objective
            if name == "exact" and found.scheduled.any():
                assert found.gap <= 1e-9


@pytest.mark.parametrize("seed", range(4))
def test_time_shares_carry_less_than_frequencies_and_as_much_without_a_cap(seed: int) -> None:
    fleet = timed(seed, 6)
    loud, quiet = (replace(fleet, max_tx_power_w=watt) for watt in (np.full(6, 1e3), fleet.max_tx_power_w))
    values = [_solve("exact", replace(each, access=access)) for each in (loud, quiet) for access in ("tdma", "fdma")]
    assert values[0].objective == pytest.approx(values[1].objective, rel=1e-9)
    assert values[2].objective >= values[3].objective


@pytest.mark.parametrize("seed", range(3))
def test_who_is_served_over_a_shared_downlink_is_the_heaviest_set_at_its_best(seed: int) -> None:
    """Brute force over all sets of four devices, at a deadline that the slowest downlinks endanger."""
    fleet = shared(random_fleet(seed, 4, deadline_s=3.2, total_bandwidth_hz=1e6), seed)
    fleet = replace(fleet, downlink_rate_bps=fleet.downlink_rate_bps / 8)
    found, best = _solve("exact", fleet), (0.0, np.inf)
    for bits in range(1, 16):
        keep = np.array([bool(bits & (1 << k)) for k in range(4)])
        one = solve_fdma(fleet.decided(keep, None).subset(keep))
        if one.scheduled.all():
            best = min(best, (-round(float(fleet.weights[keep].sum()), 12), one.objective))
    assert -best[0] == pytest.approx(float(fleet.weights[found.scheduled].sum()))
    assert found.objective <= best[1] * (1 + 1e-9) and found.lower_bound <= best[1] * (1 + 1e-12)
    own = replace(fleet, shared_downlink=False)
    assert _solve("exact", own).scheduled.sum() >= found.scheduled.sum()
    assert all(found.reasons[k] for k in np.flatnonzero(~found.scheduled))


def test_the_checker_knows_shares_and_the_common_rate() -> None:
    fleet = timed(1, 4)
    found = _solve("exact", fleet)
    assert check_solution(replace(fleet, access="fdma"), found), "the same numbers are another allocation"
    assert found.bandwidth_hz is not None
    lie = replace(found, bandwidth_hz=found.bandwidth_hz * 1.01)
    assert any(item.constraint == "total_bandwidth_hz" for item in check_solution(fleet, lie))
    loud = replace(found, tx_power_w=found.tx_power_w * 1.01)
    assert any(item.constraint == "tx_power_w" for item in check_solution(fleet, loud))
    cell = shared(random_fleet(1, 4))
    alone = replace(cell, shared_downlink=False)
    assert any(item.constraint == "deadline_s" for item in check_solution(cell, _solve("exact", alone)))


@pytest.mark.parametrize("kind", ["tdma", "shared"])
def test_files_say_what_the_problem_is_and_the_verifier_proves_the_answer(tmp_path: Path, kind: str) -> None:
    fleet = timed(1, 4) if kind == "tdma" else shared(random_fleet(1, 4))
    problem, out = str(tmp_path / "p.json"), str(tmp_path / "s.json")
    write_problem(problem, fleet)
    assert problem_to_dict(read_problem(problem)) == problem_to_dict(fleet)
    assert main(["solve", problem, "--out", out]) == 0 and main(["check", problem, out]) == 0
    assert main(["verify", problem, out]) == 0
    with pytest.raises(ProblemError):
        problem_from_dict(problem_to_dict(fleet) | {"schema": "fedlodrop/resource-problem/1"})


def test_a_device_without_its_broadcast_rate_is_refused() -> None:
    data = problem_to_dict(shared(random_fleet(1, 2)))
    data["devices"][1]["downlink_rate_bps"] = data["devices"][1].pop("broadcast_rate_bps")
    with pytest.raises(ProblemError, match=r"devices\[0\].downlink_rate_bps is missing"):
        problem_from_dict(data)


def test_batteries_and_logarithms_hold_for_time_shares() -> None:
    """Rows along random lines are convex, the offline bound holds, and the policy's allowances are used up at most."""
    fleet, rng = timed(0, 4, total_bandwidth_hz=1e6), np.random.default_rng(0)
    program = GeometricProgram(fleet, np.full(4, 0.1), time_weight_per_s=0.1)
    assert inside(program) is not None
    for _ in range(40):
        ends = [rng.uniform(program.low, program.high) for _ in range(2)]
        for end in ends:
            end[:, 5] = end[0, 5]
        values = [program.evaluate((1 - s) * ends[0] + s * ends[1]).rows for s in np.linspace(0, 1, 11)]
        assert (np.diff(values, 2, axis=0) >= -1e-10 * (1 + np.abs(values).max(axis=0))).all()
    gain = fleet.channel_gain * rng.exponential(1.0, (8, 4))
    battery = fleet.energy_budget_j * 8 * 0.3
    plan = offline_plan(Rounds(fleet, gain), battery)
    assert plan.lower_bound <= plan.cost <= plan.lower_bound * 1.05
    spend, _ = allowances(replace(fleet, channel_gain=gain[0]), gain[:0], battery, 8)
    assert (spend <= battery).all() and spend.any()


@pytest.mark.parametrize("seed", range(4))
def test_prices_of_time_shares_are_what_a_little_more_changes(seed: int) -> None:
    fleet = timed(seed, 5)
    found = _solve("exact", fleet, gap=1e-9)
    prices = sensitivity(fleet, found)
    for field, expected in (("energy_budget_j", prices.per_joule), ("max_tx_power_w", prices.per_watt)):
        for k in np.flatnonzero(found.scheduled):
            step = 1e-5 * getattr(fleet, field) * (np.arange(5) == k)
            ends = [_solve("exact", replace(fleet, **{field: getattr(fleet, field) + s * step})) for s in (-1, 1)]
            measured = (ends[1].objective - ends[0].objective) / (2 * step[k])
            assert measured == pytest.approx(expected[k], rel=2e-2, abs=1e-6)


def test_an_unknown_access_is_refused() -> None:
    with pytest.raises(ProblemError, match="access must be one of fdma, tdma, ofdma, found 'cdma'"):
        random_fleet(0, 2, access="cdma")
