from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize

from optimizer.allocator import make_allocator
from optimizer.fdma.bandwidth_curve import BandwidthCurve
from optimizer.fdma.completion import spend_bandwidth
from optimizer.fdma.exact import solve_box, solve_fdma
from optimizer.feasibility import check_solution
from optimizer.objective import GeneralizationBound
from optimizer.problem import InfeasibleProblemError, SolverStatus
from tests.optimizer.fleets import extreme_fleet, random_fleet, shared_instance

# Values of a separate program, certified to 1e-9.
CERTIFIED = {"fdma_k3": 0.43948047, "fdma_k10": 0.46277203, "fdma_k100": 0.44558295, "fdma_k1000": 0.44538536}


@pytest.mark.parametrize("name", CERTIFIED)
def test_certified_values_are_reproduced(name: str) -> None:
    problem = shared_instance(name)
    solution = solve_fdma(problem)
    assert solution.objective == pytest.approx(CERTIFIED[name], abs=6e-9)
    assert solution.status is SolverStatus.OPTIMAL and 0 <= solution.gap <= 1e-9
    assert check_solution(problem, solution) == []


@pytest.mark.parametrize("seed", range(5))
def test_no_general_purpose_solver_finds_less(seed: int) -> None:
    """Reference: SciPy's SLSQP on the reduced problem, started at the exact answer's neighbourhood and at the top."""
    fleet = random_fleet(seed, 4)
    solution = solve_fdma(fleet)
    assert solution.scheduled.all()
    curve, objective = BandwidthCurve(fleet), GeneralizationBound()
    low = np.maximum(curve.feasible_from(), 0.0) + 1e-3
    for start in (np.full(4, 0.9), np.clip(solution.dropout_rate + 0.02, low, 0.9)):
        found = minimize(
            lambda g: float(objective.value(fleet, g).sum()),
            start,
            jac=lambda g: objective.derivative(fleet, g),
            bounds=list(zip(low, np.full(4, 0.9), strict=True)),
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 500},
            constraints={"type": "ineq", "fun": lambda g: 1 - curve.bandwidth_hz(g).sum() / fleet.total_bandwidth_hz},
        )
        if found.success and curve.bandwidth_hz(found.x).sum() <= fleet.total_bandwidth_hz * (1 + 1e-9):
            assert found.fun >= solution.lower_bound - 1e-9
            assert found.fun == pytest.approx(solution.objective, rel=1e-5)


@pytest.mark.parametrize("seed", range(80))
def test_extreme_fleets_are_solved_to_a_certificate(seed: int) -> None:
    fleet = extreme_fleet(seed)
    solution = solve_fdma(fleet)
    assert check_solution(fleet, solution) == []
    if solution.status is SolverStatus.INFEASIBLE:
        assert all(solution.reasons)
    else:
        assert solution.status is SolverStatus.OPTIMAL and solution.gap <= 1e-9
        assert all(bool(reason) != on for reason, on in zip(solution.reasons, solution.scheduled, strict=True))


def test_kkt_conditions_hold_at_the_optimum() -> None:
    """Phi' + mu b' = 0 for every device strictly inside its range and away from its kink."""
    fleet = random_fleet(7, 30)
    top = np.full(30, 0.9)
    result = solve_box(BandwidthCurve(fleet), GeneralizationBound(), np.zeros(30), top)
    curve = BandwidthCurve(fleet)
    slope = GeneralizationBound().derivative(fleet, result.dropout_rate)
    pull = result.price * curve.bandwidth_and_slope(result.dropout_rate)[1]
    inside = (result.dropout_rate < 0.9 - 1e-9) & (np.abs(result.dropout_rate - curve.kink()) > 1e-6)
    assert inside.any() and result.price > 0
    np.testing.assert_allclose(slope[inside], -pull[inside], rtol=1e-6)


def test_a_box_keeps_its_sides_and_an_empty_one_raises() -> None:
    fleet = random_fleet(2, 6)
    free = solve_fdma(fleet).dropout_rate
    low = np.minimum(free + 0.02, 0.9)
    result = solve_box(BandwidthCurve(fleet), GeneralizationBound(), low, np.full(6, 0.9))
    assert (result.dropout_rate >= low).all() and result.objective >= solve_fdma(fleet).objective
    with pytest.raises(InfeasibleProblemError, match="Hz needed"):
        solve_box(BandwidthCurve(fleet), GeneralizationBound(), np.zeros(6), free - 0.01)


def test_spare_bandwidth_goes_where_it_saves_most_energy() -> None:
    """Reference: SLSQP on the energy over the bandwidths, three devices."""
    fleet = random_fleet(4, 3, total_bandwidth_hz=3e6)
    gamma = np.full(3, 0.6)
    least = BandwidthCurve(fleet).bandwidth_hz(gamma)
    assert least.sum() < 3e6
    ours = spend_bandwidth(fleet, gamma, least)
    assert (ours >= least * (1 - 1e-12)).all() and ours.sum() == pytest.approx(3e6, rel=1e-9)
    curve = BandwidthCurve(fleet)
    bits, time_s = curve.uplink_bits(gamma), curve.uplink_time_s(gamma)

    def energy(share: np.ndarray) -> float:
        return float(
            (time_s * curve.noise_to_gain * share * 3e6 * np.expm1(bits * np.log(2) / (time_s * share * 3e6))).sum()
        )

    found = minimize(
        energy,
        least / least.sum(),
        method="SLSQP",
        bounds=[(b / 3e6, 1) for b in least],
        constraints={"type": "eq", "fun": lambda s: s.sum() - 1},
        options={"ftol": 1e-16, "maxiter": 500},
    )
    assert energy(ours / 3e6) <= found.fun * (1 + 1e-6)
    assert energy(ours / 3e6) < 0.9 * energy(least / 3e6)


def test_ample_resources_give_the_unconstrained_minimiser() -> None:
    fleet = random_fleet(1, 5, total_bandwidth_hz=1e9, deadline_s=60.0, energy_budget_j=50.0)
    solution = solve_fdma(fleet)
    np.testing.assert_allclose(GeneralizationBound().derivative(fleet, solution.dropout_rate), 0.0, atol=1e-9)
    assert solution.gap <= 1e-12 and check_solution(fleet, solution) == []


def test_identical_devices_get_the_same() -> None:
    fleet = random_fleet(1, 6)
    same = {
        name: np.full(6, getattr(fleet, name)[2])
        for name in ("num_examples", "channel_gain", "cpu_hz", "energy_budget_j")
    }
    solution = solve_fdma(replace(fleet, **same, total_examples=0.0))
    assert np.ptp(solution.dropout_rate) < 1e-12 and np.ptp(solution.bandwidth_hz) < 1e-3


def test_two_runs_are_bit_identical() -> None:
    fleet = random_fleet(11, 40)
    first, second = solve_fdma(fleet), solve_fdma(fleet)
    for name in ("dropout_rate", "bandwidth_hz", "tx_power_w"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


@pytest.mark.benchmark
@pytest.mark.parametrize(("num_devices", "limit_s"), [(1000, 0.1), (10_000, 0.6)])
def test_speed(num_devices: int, limit_s: float) -> None:
    fleet = random_fleet(0, num_devices)
    make_allocator("exact").allocate(fleet)
    solution = make_allocator("exact").allocate(fleet)
    assert solution.gap <= 1e-8 and solution.solve_time_s <= limit_s
