import numpy as np
import pytest

from adapter import AdapterSpec, AdapterState, ModuleShape
from tests.support.adapters import random_state, small_spec


def _flat(state: AdapterState) -> dict[str, np.ndarray]:
    return {f"{part}/{name}": value for part, name, value in state.items()}


def test_map_reaches_every_trained_array_and_leaves_the_base() -> None:
    state = random_state(small_spec())
    state.base = {small_spec().modules[0].name: np.ones((2, 2), dtype=np.float32)}
    doubled = _flat(state.map(lambda value: 2 * value))
    for name, value in _flat(state).items():
        np.testing.assert_array_equal(doubled[name], value if name.startswith("base/") else 2 * value)


def test_zip_pairs_arrays_by_name_whatever_their_order() -> None:
    state, other = random_state(small_spec(), 1), random_state(small_spec(), 2)
    other.lora_A = dict(reversed(other.lora_A.items()))
    found, theirs = _flat(state.zip(other, np.subtract)), _flat(other)
    for name, value in _flat(state).items():
        np.testing.assert_array_equal(found[name], value - theirs[name])


def test_a_copy_shares_nothing() -> None:
    state = random_state(small_spec())
    for name, value in _flat(state.copy()).items():
        assert not np.shares_memory(value, _flat(state)[name])


def test_seeded_factors_have_the_starts_distribution_and_cut_ranks_agree() -> None:
    spec = AdapterSpec((ModuleShape("q", 30, 400, 8),))
    first = AdapterState.seeded(spec, 0, 1)
    assert np.abs(first.lora_A["q"]).max() <= 1 / np.sqrt(400) and not first.lora_B["q"].any()
    assert first.lora_A["q"].std() == pytest.approx(1 / np.sqrt(3 * 400), rel=0.05)
    assert not np.array_equal(first.lora_A["q"], AdapterState.seeded(spec, 0, 2).lora_A["q"])
    low = AdapterState.seeded(AdapterSpec((ModuleShape("q", 30, 400, 3),)), 0, 1)
    np.testing.assert_array_equal(first.cut_rank(3).lora_A["q"], low.lora_A["q"])


def test_a_checked_adapter_has_the_tensors_of_its_layout_and_no_others() -> None:
    state, spec = random_state(small_spec()), small_spec()
    state.base = {"q": np.ones((40, 24), dtype=np.float32)}
    state.check(spec)
    for part, name, value in (("lora_A", "q", None), ("head", "extra", np.ones(2)), ("base", "v", np.ones((2, 2)))):
        wrong = state.copy()
        if value is None:
            del wrong.parts()[part][name]
        else:
            wrong.parts()[part][name] = value
        with pytest.raises(ValueError, match=f"adapter tensor {part}/{name}: expected shape"):
            wrong.check(spec)
