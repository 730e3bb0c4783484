"""Updates of the base on the wire: who follows and who catches up hold equal bits."""

from __future__ import annotations

import numpy as np
import pytest

from adapter import AdapterSpec, ModuleShape
from adapter.base_update import apply_update, base_entries, is_dense, pack_base, unpack_base
from strategy.round.device_book import BaseLog
from tests.support.adapters import small_spec

SPEC = AdapterSpec((ModuleShape("q", 20, 12, 4),))


def _updates(ranks: tuple[int, ...], spec: AdapterSpec = SPEC) -> list[dict[str, tuple[np.ndarray, np.ndarray]]]:
    rng = np.random.default_rng(3)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    return [{m.name: (draw(m.out_features, rank), draw(rank, m.in_features)) for m in spec.modules} for rank in ranks]


@pytest.mark.parametrize("start", [0, 1, 2, 3, 5])
def test_whoever_follows_and_whoever_catches_up_hold_equal_bits(start: int) -> None:
    spec, ranks, log, base, history = small_spec(), (2, 3, 2, 2, 3, 2), BaseLog(), {}, [{}]
    for update in _updates(ranks, spec):
        base = apply_update(base, update)
        log.push(update, spec)
        history.append(base)
    updates, wire_ranks = log.since(start)
    flat = pack_base(spec, base, updates, wire_ranks)
    assert flat.size == base_entries(spec, wire_ranks)
    held = history[start] if wire_ranks else {}
    caught_up = unpack_base(spec, flat.tobytes(), held, wire_ranks)
    for name, value in base.items():
        np.testing.assert_array_equal(caught_up[name], value)
    if wire_ranks and len(wire_ranks) > 1:  # a device that got one of them already, unconfirmed
        ahead = unpack_base(spec, flat.tobytes(), history[start + 1], wire_ranks, skip=1)
        assert all(np.array_equal(ahead[name], base[name]) for name in base)


def test_the_smaller_form_travels_and_the_log_stays_bounded() -> None:
    (module,) = SPEC.modules  # 20 x 12: factors of rank 7 are 224 numbers, the matrix 240
    assert not is_dense(module, (7,)) and is_dense(module, (8,)) and is_dense(module, (4, 4)) and is_dense(module, ())
    assert base_entries(SPEC, (7,)) == 7 * 32 and base_entries(SPEC, (8,)) == base_entries(SPEC, ()) == 240
    log = BaseLog()
    for update in _updates((2,) * 50):
        log.push(update, SPEC)
    assert log.version == 50 and len(log.updates) == 3 and log.since(46) == ([], ()) and len(log.since(48)[0]) == 2


def test_a_broken_update_is_refused() -> None:
    flat = pack_base(SPEC, {}, _updates((2,)), (2,))
    for broken in (flat[:-1], np.append(flat, np.float32(0)), np.where(np.arange(flat.size) == 3, np.nan, flat)):
        with pytest.raises(ValueError, match="base update"):
            unpack_base(SPEC, broken.astype("<f4").tobytes(), {}, (2,))
