import numpy as np
import pytest

from wireless.channel import (
    Cell,
    fdma_gain,
    large_scale,
    line_of_sight_probability,
    ofdma_gain,
    outage_margin,
    path_loss_db,
    place_devices,
)


def test_placement_is_uniform_over_the_annulus() -> None:
    cell = Cell(radius_m=300.0)
    distance = place_devices(np.random.default_rng(0), 20000, cell)
    assert distance.min() >= cell.min_distance_m and distance.max() <= cell.radius_m
    # the share inside radius r grows with the area
    inside = (200.0**2 - cell.min_distance_m**2) / (300.0**2 - cell.min_distance_m**2)
    assert np.mean(distance < 200.0) == pytest.approx(inside, abs=0.01)


def test_path_loss_by_hand() -> None:
    """Reference: the rows of TR 38.901 table 7.4.1-1 evaluated by hand at 100 m, 3.5 GHz, heights 25 m and 1.5 m."""
    cell = Cell()
    slant = np.hypot(100.0, 23.5)
    los = 28.0 + 22.0 * np.log10(slant) + 20.0 * np.log10(3.5)
    nlos = 13.54 + 39.08 * np.log10(slant) + 20.0 * np.log10(3.5)
    assert path_loss_db(100.0, True, cell) == pytest.approx(los)
    assert path_loss_db(100.0, False, cell) == pytest.approx(nlos)


def test_path_loss_is_continuous_at_the_breakpoint_and_grows() -> None:
    cell = Cell()
    breakpoint_m = 4 * 24.0 * 0.5 * 3.5e9 / 299792458.0
    near, far = path_loss_db(breakpoint_m, True, cell), path_loss_db(breakpoint_m * (1 + 1e-9), True, cell)
    assert near == pytest.approx(far, abs=0.01)
    distance = np.linspace(35, 3000, 500)
    for sight in (True, False):
        assert (np.diff(path_loss_db(distance, sight, cell)) > -0.01).all()
    assert (path_loss_db(distance, False, cell) >= path_loss_db(distance, True, cell)).all()


def test_line_of_sight_probability() -> None:
    probability = line_of_sight_probability([5.0, 18.0, 100.0, 1000.0])
    assert probability[0] == probability[1] == 1.0
    assert probability[2] == pytest.approx(0.18 + np.exp(-100 / 63) * 0.82)
    assert (np.diff(probability) <= 0).all()


def test_shadowing_can_be_left_out_without_moving_anything_else() -> None:
    plain, shadowed = (large_scale(np.random.default_rng(3), 50, Cell(), shadowing=on) for on in (False, True))
    shadowing_db = 10 * np.log10(shadowed / plain)
    assert 2 < shadowing_db.std() < 8 and abs(shadowing_db.mean()) < 3
    again = np.random.default_rng(3)
    distance = place_devices(again, 50, Cell())
    sight = again.random(50) < line_of_sight_probability(distance)
    np.testing.assert_allclose(10 * np.log10(plain), 8.0 - path_loss_db(distance, sight, Cell()))


@pytest.mark.parametrize("rician_k", [0.0, 4.0])
def test_fading_has_unit_mean_and_the_right_spread(rician_k: float) -> None:
    gain = fdma_gain(np.random.default_rng(1), np.full(200000, 2.0), rician_k)
    assert gain.mean() == pytest.approx(2.0, rel=0.02)
    # variance of |h|^2 is (1 + 2 kappa)/(1 + kappa)^2
    assert gain.var() / 4.0 == pytest.approx((1 + 2 * rician_k) / (1 + rician_k) ** 2, rel=0.03)


def test_selective_fading_correlates_neighbours_only() -> None:
    gain = ofdma_gain(np.random.default_rng(2), np.ones(5000), 64, 90e3)
    assert gain.shape == (5000, 64) and gain.mean() == pytest.approx(1.0, rel=0.02)
    assert np.corrcoef(gain[:, 0], gain[:, 1])[0, 1] > 0.9 > 0.3 > np.corrcoef(gain[:, 0], gain[:, 63])[0, 1]
    flat = ofdma_gain(np.random.default_rng(2), np.ones(3), 8, 90e3, delay_spread_s=0.0)
    np.testing.assert_allclose(flat, flat[:, :1] * np.ones(8))


def test_a_round_has_the_same_channel_whatever_ran_before() -> None:
    mean = np.array([1e-10, 1e-11])
    first = fdma_gain(np.random.default_rng([7, 3]), mean)
    fdma_gain(np.random.default_rng([7, 4]), mean)
    np.testing.assert_array_equal(first, fdma_gain(np.random.default_rng([7, 3]), mean))


@pytest.mark.parametrize("wrong", [{"radius_m": 5.0}, {"carrier_hz": 1e6}])
def test_a_cell_outside_the_model_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Cell(**wrong)


@pytest.mark.parametrize("rician_k", [0.0, 0.5, 4.0, 30.0])
@pytest.mark.parametrize("probability", [0.01, 0.1, 0.5])
def test_drawn_gains_fall_short_as_often_as_asked(rician_k: float, probability: float) -> None:
    gain = fdma_gain(np.random.default_rng(0), np.full(200_000, 3e-10), rician_k)
    margin = float(outage_margin(probability, rician_k))
    assert np.mean(gain < 3e-10 * margin) == pytest.approx(probability, abs=4 * np.sqrt(probability / 200_000))


def test_rician_meets_rayleigh_and_margins_grow() -> None:
    assert outage_margin(0.1, [0.0, 1e-9]) == pytest.approx(-np.log(0.9), rel=1e-6)
    assert (np.diff(outage_margin(0.1, np.linspace(0, 20, 9))) > 0).all()
    assert (np.diff([float(outage_margin(q)) for q in (0.01, 0.1, 0.5)]) > 0).all()


@pytest.mark.parametrize("probability", [0.0, 1.0, -0.1, np.nan])
def test_a_probability_that_is_none_is_refused(probability: float) -> None:
    with pytest.raises(ValueError, match="outage_probability must lie in"):
        outage_margin(probability)
