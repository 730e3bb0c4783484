import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from adapter import PayloadError, rounding_rng
from adapter.quantize import LEVELS, check_scales, decode, dequantise, encode, quantise

DTYPES = sorted(LEVELS)
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
MATRICES = arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(1, 7)), elements=FLOATS)


def _spread(scales: np.ndarray, axis: int | None) -> np.ndarray:
    return scales[:, None] if axis == 0 else scales[None, :] if axis == 1 else scales


@settings(deadline=None, max_examples=300)
@given(MATRICES, st.sampled_from(DTYPES), st.sampled_from([0, 1, None]), st.integers(0, 2**62))
def test_the_error_is_below_one_step_for_any_values(x: np.ndarray, dtype: str, axis: int | None, seed: int) -> None:
    codes, scales = quantise(x, dtype, axis, rounding_rng(seed, 1))
    again = quantise(x, dtype, axis, rounding_rng(seed, 1))
    np.testing.assert_array_equal(codes, again[0])
    np.testing.assert_array_equal(scales, again[1])
    assert codes.dtype == np.int8 and codes.shape == x.shape and np.abs(codes).max() <= LEVELS[dtype]
    assert scales.dtype == np.float32 and scales.size == (1 if axis is None else x.shape[axis])
    check_scales(scales, dtype)
    back = dequantise(codes, scales, axis)
    assert back.dtype == np.float32 and np.isfinite(back).all()
    # One step, and the rounding of the product to float32.
    step = np.broadcast_to(_spread(scales, axis), x.shape).astype(np.float64)
    assert (np.abs(back.astype(np.float64) - x) <= step * (1 + 1e-5 * LEVELS[dtype])).all()
    assert (back[x == 0] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_mean_over_seeds_is_the_value(dtype: str) -> None:
    x = np.random.default_rng(1).standard_normal((4, 16)).astype(np.float32) * np.array(
        [[1e-6], [1], [50], [1e20]], np.float32
    )
    n = 4000
    draws = np.stack([dequantise(*quantise(x, dtype, 0, rounding_rng(7, seed + 1)), 0) for seed in range(n)])
    step = np.abs(x).max(axis=1, keepdims=True) / LEVELS[dtype]
    # A draw's error has a standard deviation of at most half a step; five of the mean's standard deviations.
    assert (np.abs(draws.mean(axis=0, dtype=np.float64) - x) <= 5 * 0.5 * step / np.sqrt(n)).all()
    nearest = np.rint(x / step) * step
    assert np.abs(nearest - x).max() > 0.2 * step.max()  # rounding to the nearest would have failed this bound


def test_devices_and_rounds_round_independently() -> None:
    x = np.random.default_rng(1).standard_normal((8, 64)).astype(np.float32)
    draws = [quantise(x, "int4", 0, rounding_rng(*key))[0] for key in ((1, 1), (1, 2), (2, 1))]
    assert all((a != b).any() for a, b in [(draws[0], draws[1]), (draws[0], draws[2]), (draws[1], draws[2])])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(PayloadError, match="not finite"):
        quantise(np.array([[0.0, value]]), "int8", 0, rounding_rng(0, 1))


@given(st.integers(0, 33), st.sampled_from(DTYPES), st.integers(0, 2**32))
def test_codes_survive_the_bytes(count: int, dtype: str, seed: int) -> None:
    level = LEVELS[dtype]
    codes = np.random.default_rng(seed).integers(-level, level + 1, count).astype(np.int8)
    data = encode(codes, dtype)
    assert data.size == (count if dtype == "int8" else -(-count // 2))
    np.testing.assert_array_equal(decode(data, count, dtype), codes)


def test_codes_and_padding_that_no_quantiser_writes_are_refused() -> None:
    with pytest.raises(PayloadError, match="below -127"):
        decode(np.array([128], np.uint8), 1, "int8")
    with pytest.raises(PayloadError, match="below -7"):
        decode(np.array([0x08], np.uint8), 2, "int4")
    with pytest.raises(PayloadError, match="unused half"):
        decode(np.array([0x10], np.uint8), 1, "int4")


@pytest.mark.parametrize("scale", [-1e-9, np.nan, np.inf, 3e38])
def test_scales_that_no_quantiser_writes_are_refused(scale: float) -> None:
    with pytest.raises(PayloadError, match="scale"):
        check_scales(np.array([1.0, scale], np.float32), "int8")
