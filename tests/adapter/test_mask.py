import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapter import AdapterMask, AdapterSpec, ModuleShape, mask_seed, sample_mask
from adapter.mask import kept_count
from tests.support.adapters import small_spec


@given(st.integers(1, 5000), st.floats(0, 0.999))
def test_kept_count_never_ships_more_than_planned(size: int, rate: float) -> None:
    kept = kept_count(size, rate)
    assert 1 <= kept <= size
    assert kept <= max(1.0, (1 - rate) * size + 1e-9)
    assert kept >= (1 - rate) * size - 1


def test_kept_count_forgives_the_last_bit() -> None:
    # 1 - 0.9 is 0.09999999999999998 in binary; 10 % of 50 is still 5
    assert kept_count(50, 0.9) == 5


@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
def test_kept_count_refuses_impossible_rates(rate: float) -> None:
    with pytest.raises(ValueError, match="dropout_rate must lie in"):
        kept_count(10, rate)


@given(st.integers(0, 2**63 - 1), st.floats(0, 0.95), st.sampled_from(["fixed", "bernoulli"]))
def test_same_seed_same_survivors_and_valid_indices(seed: int, rate: float, kind: str) -> None:
    spec = small_spec()
    ours, theirs = sample_mask(spec, seed, rate, kind), sample_mask(spec, seed, rate, kind)
    for module, a, b in zip(spec.modules, ours.modules, theirs.modules, strict=True):
        for index, size in ((a.columns, module.in_features), (a.rows, module.out_features)):
            assert index.size >= 1 and index.min() >= 0 and index.max() < size
            assert (np.diff(index) > 0).all()
            if kind == "fixed":
                assert index.size == kept_count(size, rate)
        np.testing.assert_array_equal(a.columns, b.columns)
        np.testing.assert_array_equal(a.rows, b.rows)


def test_every_entry_survives_equally_often() -> None:
    spec = AdapterSpec((ModuleShape("q", 20, 30, 2),))
    for kind in ("fixed", "bernoulli"):
        counts = np.zeros(30)
        for seed in range(4000):
            counts[sample_mask(spec, seed, 0.5, kind).modules[0].columns] += 1
        # standard deviation of a frequency is 0.5/sqrt(4000) = 0.008; five of them
        assert np.abs(counts / 4000 - 0.5).max() < 0.04, kind


def test_a_factor_that_is_not_dropped_stays_whole() -> None:
    kept = sample_mask(small_spec(), 3, 0.5, factors=("B",)).modules[0]
    assert kept.columns.size == 24 and kept.rows.size == 20


def test_mask_seeds_differ_between_devices_and_rounds() -> None:
    seeds = {mask_seed(0, r, d) for r in range(1, 50) for d in range(50)}
    assert len(seeds) == 49 * 50 and all(0 <= s < 2**63 for s in seeds)


def test_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="fixed, bernoulli"):
        sample_mask(small_spec(), 0, 0.5, "dense")


def test_the_full_mask_is_the_one_that_drops_nothing() -> None:
    drawn, full = sample_mask(small_spec(), 7, 0.0), AdapterMask.full(small_spec())
    for ours, theirs in zip(full.modules, drawn.modules, strict=True):
        np.testing.assert_array_equal(ours.columns, theirs.columns)
        np.testing.assert_array_equal(ours.rows, theirs.rows)
