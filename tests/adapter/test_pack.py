import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapter import (
    HEADER_BYTES,
    AdapterSpec,
    ModuleShape,
    PayloadError,
    gather,
    pack,
    payload_coefficients,
    rounding_rng,
    sample_mask,
    unpack,
)
from adapter.pack import adapter_bytes
from tests.support.adapters import random_state, small_spec


@settings(deadline=None)
@given(st.floats(0, 0.95), st.integers(0, 2**31), st.sampled_from([("A", "B"), ("A",), ("B",)]))
def test_round_trip_is_exact_in_fp32(rate: float, seed: int, factors: tuple[str, ...]) -> None:
    spec, state = small_spec(), random_state(small_spec(), seed)
    mask = sample_mask(spec, seed, rate, factors=factors)
    sub = gather(spec, state, mask, factors)
    buffer = pack(spec, sub, mask, "fp32", factors).tobytes()
    back = unpack(spec, buffer, mask, "fp32", factors)
    for part in ("lora_A", "lora_B", "head"):
        assert getattr(back, part).keys() == getattr(sub, part).keys()
        for name, value in getattr(sub, part).items():
            np.testing.assert_array_equal(getattr(back, part)[name], value)


@settings(deadline=None)
@given(
    st.floats(0, 0.95), st.sampled_from(["fp32", "fp16", "int8", "int4"]), st.sampled_from([("A", "B"), ("A",), ("B",)])
)
def test_shipped_payload_never_exceeds_the_planned_one(rate: float, dtype: str, factors: tuple[str, ...]) -> None:
    spec = small_spec()
    mask = sample_mask(spec, 1, rate, factors=factors)
    sub = gather(spec, random_state(spec), mask, factors)
    buffer = pack(spec, sub, mask, dtype, factors, rounding_rng(1, 1))
    fixed, droppable = payload_coefficients(spec, dtype, factors)
    planned = fixed + droppable * (1 - rate)
    # at least one row and column stays, so a tiny matrix may keep more than asked; 24 * 0.05 is above one
    assert 8 * (buffer.nbytes + HEADER_BYTES) <= planned + 1e-6
    if dtype in ("fp32", "fp16"):
        assert adapter_bytes(spec, mask, dtype, factors) + 27 * buffer.itemsize == buffer.nbytes
    back = unpack(spec, buffer.tobytes(), mask, dtype, factors)
    levels = {"fp32": 2**24, "fp16": 2**10, "int8": 127, "int4": 7}[dtype]
    for part in ("lora_A", "lora_B", "head"):
        for name, value in getattr(sub, part).items():
            assert np.abs(getattr(back, part)[name] - value).max() <= 1.001 * np.abs(value).max() / levels


@pytest.mark.parametrize(("dtype", "share"), [("fp32", 0.51), ("fp16", 0.26), ("int8", 0.135), ("int4", 0.0675)])
def test_half_the_rows_in_fewer_bits_against_dense_fp32(dtype: str, share: float) -> None:
    spec = AdapterSpec(tuple(ModuleShape(f"layer.{i}.{n}", 384, 384, 8) for i in range(6) for n in ("query", "value")))
    dense = adapter_bytes(spec, sample_mask(spec, 1, 0.0), "fp32")
    mask = sample_mask(spec, 1, 0.5)
    sent = pack(spec, gather(spec, random_state(spec), mask), mask, dtype, rng=rounding_rng(1, 1)).nbytes
    assert dense == spec.droppable_parameters * 4 and sent == adapter_bytes(spec, mask, dtype)
    assert sent <= share * dense


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_a_broken_quantised_buffer_is_refused(dtype: str) -> None:
    spec = small_spec()
    mask = sample_mask(spec, 1, 0.5)
    flat = pack(spec, gather(spec, random_state(spec), mask), mask, dtype, rng=rounding_rng(1, 1))
    for wrong in (flat[:-1], np.append(flat, np.uint8(0)), flat[:0]):
        with pytest.raises(PayloadError, match="expected .* bytes"):
            unpack(spec, wrong.tobytes(), mask, dtype)
    for scale in (-1.0, np.nan, np.inf, 3e38):
        broken = flat.copy()
        broken[4:8] = np.array([scale], "<f4").view(np.uint8)
        with pytest.raises(PayloadError, match="scale"):
            unpack(spec, broken.tobytes(), mask, dtype)
    with pytest.raises(ValueError, match="needs a generator"):
        pack(spec, gather(spec, random_state(spec), mask), mask, dtype)
    state = gather(spec, random_state(spec), mask)
    state.head["head.bias"][0] = np.inf
    with pytest.raises(PayloadError, match="not finite"):
        pack(spec, state, mask, dtype, rng=rounding_rng(1, 1))


def test_payload_counts_only_travelling_factors() -> None:
    spec = small_spec()
    both, only_b = payload_coefficients(spec, "fp32")[1], payload_coefficients(spec, "fp32", ("B",))[1]
    assert both == 32 * 4 * 128 and only_b == 32 * 4 * 64


def test_wrong_length_and_non_finite_values_are_refused() -> None:
    spec = small_spec()
    mask = sample_mask(spec, 1, 0.5)
    flat = pack(spec, gather(spec, random_state(spec), mask), mask, "fp32")
    with pytest.raises(PayloadError, match="expected .* bytes"):
        unpack(spec, flat.tobytes()[:-4], mask, "fp32")
    flat[7] = np.nan
    with pytest.raises(PayloadError, match="not finite"):
        unpack(spec, flat.tobytes(), mask, "fp32")


def test_overflow_of_half_precision_is_said() -> None:
    spec = small_spec()
    mask, state = sample_mask(spec, 1, 0.0), random_state(spec)
    state.head["head.bias"][0] = 1e6
    with pytest.raises(PayloadError, match="fp16"):
        pack(spec, state, mask, "fp16")


def test_a_tensor_of_another_shape_is_refused() -> None:
    spec = small_spec()
    mask = sample_mask(spec, 1, 0.5)
    with pytest.raises(PayloadError, match="expected shape"):
        pack(spec, random_state(spec), mask, "fp32")
