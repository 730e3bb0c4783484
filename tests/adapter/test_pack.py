import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapter import HEADER_BYTES, PayloadError, gather, pack, packed_parameters, payload_coefficients, sample_mask, unpack
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


@given(st.floats(0, 0.95), st.sampled_from(["fp32", "fp16"]))
def test_shipped_payload_never_exceeds_the_planned_one(rate: float, dtype: str) -> None:
    spec = small_spec()
    mask = sample_mask(spec, 1, rate)
    buffer = pack(spec, gather(spec, random_state(spec), mask), mask, dtype)
    fixed, droppable = payload_coefficients(spec, dtype)
    planned = fixed + droppable * (1 - rate)
    # at least one row and column stays, so a tiny matrix may keep more than asked; 24 * 0.05 is above one
    assert 8 * (buffer.nbytes + HEADER_BYTES) <= planned + 1e-6
    adapter, head = packed_parameters(spec, mask)
    assert adapter + head == buffer.size and head == 27


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
