import numpy as np

from strategy.round.roster import draw_participants


def test_participants_depend_on_seed_and_round_alone() -> None:
    draw = lambda seed, r: draw_participants(np.arange(10), 0.3, None, seed, r)  # noqa: E731
    np.testing.assert_array_equal(draw(1, 5), draw(1, 5))
    assert draw(1, 5).size == 3 and (np.diff(draw(1, 5)) > 0).all()
    assert len({tuple(draw(1, r)) for r in range(1, 30)}) > 10
    assert set(np.concatenate([draw(1, r) for r in range(1, 60)])) == set(range(10))


def test_a_number_of_devices_wins_over_a_fraction_and_is_capped() -> None:
    assert draw_participants(np.arange(10), 1.0, 4, 0, 1).size == 4
    assert draw_participants(np.arange(3), 1.0, 7, 0, 1).size == 3
    assert draw_participants(np.arange(3), 0.01, None, 0, 1).size == 1
