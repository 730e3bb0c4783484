import numpy as np

from adapter import AdapterState
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
