"""The program in logarithms: derivatives, convexity (and where it fails without logarithms), and certified bounds."""

from dataclasses import replace

import numpy as np
import pytest

from optimizer.fdma.admission import admit_fdma
from optimizer.fdma.bandwidth_curve import BandwidthCurve
from optimizer.feasibility import evaluate
from optimizer.multi_round.geometric import CLOCK, TIME, GeometricProgram, X
from optimizer.multi_round.interior_point import inside, minimise
from optimizer.problem import FloatArray, ResourceProblem
from tests.optimizer.fleets import extreme_fleet, random_fleet


def _free_clock(fleet: ResourceProblem) -> ResourceProblem:
    return replace(fleet, min_cpu_hz=0.4 * fleet.cpu_hz, max_cpu_hz=1.5 * fleet.cpu_hz)


def _program(fleet: ResourceProblem, energy: float = 0.05, seconds: float = 0.03) -> GeometricProgram:
    return GeometricProgram(fleet, np.full(fleet.num_devices, energy), time_weight_per_s=seconds)


def _start(program: GeometricProgram) -> FloatArray:
    point = inside(program)
    assert point is not None
    return point


@pytest.mark.parametrize("clock", [False, True])
def test_slopes_and_curvature_are_those_of_the_rows(clock: bool) -> None:
    fleet, rng = random_fleet(1, 5), np.random.default_rng(0)
    owner = np.arange(5) % 2
    fleet = _free_clock(fleet) if clock else fleet
    program = GeometricProgram(
        fleet, rng.random(5), time_weight_per_s=0.1, battery_of=owner, battery_j=np.array([9.0, 8.0])
    )
    point, step = _start(program), 1e-5
    at = program.evaluate(point)
    row_price, coupling_price = rng.random(at.rows.shape), rng.random(at.coupling.shape)
    move = rng.standard_normal(point.shape) * program.moves
    move[:, TIME] = move[0, TIME]

    def lagrangian(point: FloatArray) -> tuple[float, FloatArray]:
        at = program.evaluate(point)
        slope = at.cost_slope + np.einsum("nm,nmi->ni", row_price, at.row_slope) + at.coupling_slope @ coupling_price
        return at.cost + float((row_price * at.rows).sum() + coupling_price @ at.coupling), slope

    (ahead, steep), (behind, flat) = lagrangian(point + step * move), lagrangian(point - step * move)
    assert (ahead - behind) / (2 * step) == pytest.approx(float((lagrangian(point)[1] * move).sum()), rel=1e-7)
    bend = np.einsum("ni,nij,nj->", move, program.hessian(at, row_price, coupling_price, 1.0), move)
    assert float(((steep - flat) * move).sum()) / (2 * step) == pytest.approx(bend, rel=1e-7)


def test_every_row_and_the_cost_are_convex_along_random_lines() -> None:
    rng = np.random.default_rng(0)
    for seed in range(60):
        fleet = random_fleet(seed, 6)
        program = _program(_free_clock(fleet) if seed % 2 else fleet)
        ends = [program.low + rng.random(program.low.shape) * (program.high - program.low) for _ in range(2)]
        for end in ends:
            end[:, TIME] = end[0, TIME]
        values = []
        for share in np.linspace(0, 1, 21):
            at = program.evaluate((1 - share) * ends[0] + share * ends[1])
            values.append(np.concatenate([at.rows.ravel(), at.coupling, [at.cost]]))
        size = np.abs(values).max(axis=0)
        assert (np.diff(values, 2, axis=0) >= -1e-11 * (1 + size)).all()


def test_without_logarithms_the_bandwidth_is_not_convex_in_dropout_and_deadline() -> None:
    """The counter-example of docs/multi_round.md: why the deadline needs logarithms."""
    failures = {"plain": 0, "logarithms": 0}
    rng = np.random.default_rng(0)
    for seed in range(300):
        fleet = random_fleet(seed, 1, energy_budget_j=10.0)

        def need_hz(kept: float, deadline: float, fleet: ResourceProblem = fleet) -> float:
            curve = BandwidthCurve(replace(fleet, deadline_s=deadline))
            return float(curve.bandwidth_hz(np.array([1 - kept]))[0])

        ends = rng.uniform([0.1, 1.5], [1.0, 8.0], (2, 2))
        for name, path in (("plain", ends), ("logarithms", np.log(ends))):
            middle, back = path.mean(axis=0), np.exp if name == "logarithms" else lambda value: value
            left, centre, right = (need_hz(*map(float, back(where))) for where in (path[0], middle, path[1]))
            if np.isfinite(left) and np.isfinite(right):
                failures[name] += bool(centre > 0.5 * (left + right) * (1 + 1e-9))
    assert failures["logarithms"] == 0 < failures["plain"]


@pytest.mark.parametrize("seed", range(30))
def test_the_gap_closes_on_random_and_extreme_fleets(seed: int) -> None:
    rng = np.random.default_rng(seed)
    fleet = extreme_fleet(seed) if seed % 2 else random_fleet(seed, 7)
    on = admit_fdma(fleet).scheduled
    if not on.any():
        pytest.skip("nobody can be served")
    fleet = fleet.subset(on)
    program = _program(_free_clock(fleet) if seed % 3 == 0 else fleet, *(10 ** rng.uniform(-4, 0, 2)))
    found = minimise(program)
    assert found is not None
    assert 0 <= found.cost - found.lower_bound <= 1e-8 * found.cost


@pytest.mark.parametrize("seed", range(4))
def test_no_admissible_plan_is_below_the_bound_and_any_prices_prove_one(seed: int) -> None:
    """Brute force: a fine grid over deadline, dropout rates and the split of the band between two devices."""
    fleet = _free_clock(random_fleet(seed, 2)) if seed % 2 else random_fleet(seed, 2)
    program = _program(fleet)
    found = minimise(program)
    assert found is not None
    best = np.inf
    for deadline in np.linspace(0.4, 1.0, 13) * fleet.deadline_s:
        for factor in (0.4, 0.7, 1.0, 1.5) if seed % 2 else (1.0,):
            at = replace(fleet, deadline_s=deadline).at_clock(factor * fleet.cpu_hz)
            curve = BandwidthCurve(at)
            for gamma in np.linspace(0, fleet.max_dropout_rate, 16):
                for other in np.linspace(0, fleet.max_dropout_rate, 16):
                    best = min(best, _cheapest(at, curve, np.array([gamma, other])))
    assert found.lower_bound <= best <= found.cost * 1.1
    rng = np.random.default_rng(seed)
    for _ in range(50):
        spread = 10 ** rng.uniform(-1, 1, found.row_price.shape)
        assert program.lower_bound(found.point, found.row_price * spread, found.coupling_price) <= found.cost


def _cheapest(at: ResourceProblem, curve: BandwidthCurve, gamma: FloatArray) -> float:
    """Trade-off of two devices at given rates: the band left over their needs split in 12 ways."""
    least = curve.bandwidth_hz(gamma)
    if not least.sum() <= at.total_bandwidth_hz:
        return np.inf
    best = np.inf
    for share in np.linspace(0, 1, 12):
        band = least + (at.total_bandwidth_hz - least.sum()) * np.array([share, 1 - share])
        rate = curve.uplink_bits(gamma) / curve.uplink_time_s(gamma)
        power = at.noise_psd_w_per_hz * band * np.expm1(rate * np.log(2) / band) / at.channel_gain
        found = evaluate(at, gamma, power, band)
        best = min(best, float(found.value.sum() + 0.05 * found.cost.energy_j.sum()) + 0.03 * at.deadline_s)
    return best


def test_a_fleet_without_room_has_no_inside() -> None:
    fleet = random_fleet(0, 3)
    least = float(BandwidthCurve(fleet).bandwidth_hz(np.full(3, fleet.max_dropout_rate)).sum())
    assert inside(_program(replace(fleet, total_bandwidth_hz=least))) is None
    start = inside(_program(replace(fleet, max_dropout_rate=0.0, total_bandwidth_hz=1e8)))
    assert start is not None and (start[:, X] == 0).all() and (start[:, CLOCK] == 0).all()
