import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wireless.units import db_to_lin, dbm_to_w, noise_psd_w_per_hz


@given(st.floats(-300, 300))
def test_decibels_invert(value_db: float) -> None:
    assert 10 * np.log10(db_to_lin(value_db)) == pytest.approx(value_db, abs=1e-9)
    assert 10 * np.log10(dbm_to_w(value_db)) + 30 == pytest.approx(value_db, abs=1e-9)


def test_known_values() -> None:
    assert dbm_to_w(30.0) == pytest.approx(1.0)
    assert dbm_to_w(23.0) == pytest.approx(0.19952623)
    noise_dbm = 10 * np.log10(noise_psd_w_per_hz()) + 30
    assert noise_dbm == pytest.approx(-173.975, abs=1e-3)  # the textbook's -174 dBm/Hz
    assert 10 * np.log10(noise_psd_w_per_hz(7.0) / noise_psd_w_per_hz()) == pytest.approx(7.0)
