import numpy as np
import pytest

from adapter import AdapterSpec, ModuleShape
from adapter.seeded import seeded_factors


def test_fresh_factors_have_the_starts_distribution_and_cut_ranks_agree() -> None:
    spec = AdapterSpec((ModuleShape("q", 30, 400, 8),))
    first, B = seeded_factors(spec, 0, 1)
    assert np.abs(first["q"]).max() <= 1 / np.sqrt(400) and not B["q"].any()
    assert first["q"].std() == pytest.approx(1 / np.sqrt(3 * 400), rel=0.05)
    assert not np.array_equal(first["q"], seeded_factors(spec, 0, 2)[0]["q"])
    np.testing.assert_array_equal(first["q"], seeded_factors(spec, 0, 1)[0]["q"])
