"""The margin is the quantile of the gains that `wireless.channel` draws."""

import numpy as np
import pytest

from wireless.channel import fdma_gain, outage_margin


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
