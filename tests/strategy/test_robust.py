"""Norms held to the median, and votes per entry, against literal references."""

from __future__ import annotations

import numpy as np
import pytest

from adapter import AdapterState, gather, sample_mask
from adapter.privacy import change_norm
from strategy.robust import NormGuard, RobustAverage, lower_median
from tests.support.adapters import random_state, small_spec

SPEC = small_spec()
STATE = random_state(SPEC)


def _scaled(state: AdapterState, factor: float) -> AdapterState:
    return AdapterState(*({n: v * factor for n, v in part.items()} for part in (state.lora_A, state.lora_B, state.head)))


def _answers(rate: float, count: int = 7) -> list[tuple[AdapterState, object]]:
    masks = [sample_mask(SPEC, seed, rate) for seed in range(count)]
    return [(gather(SPEC, random_state(SPEC, 10 + k), mask), mask) for k, mask in enumerate(masks)]


@pytest.mark.parametrize("aggregation", ["kept", "previous"])
@pytest.mark.parametrize("kind", ["median", "trimmed_mean"])
def test_votes_equal_numpy_entry_by_entry(kind: str, aggregation: str) -> None:
    average, answers = RobustAverage(SPEC, kind, trim=0.2), _answers(0.5)
    for changes, mask in answers:
        average.add(changes, mask, 1.0)
    new = average.apply(STATE, aggregation)
    module = SPEC.modules[0]
    for column in range(module.in_features):
        votes = [
            changes.lora_A["q"][:, int(np.flatnonzero(mask.modules[0].columns == column)[0])]
            if column in mask.modules[0].columns
            else np.zeros(module.r)
            for changes, mask in answers
            if aggregation == "previous" or column in mask.modules[0].columns
        ]
        if not votes:
            np.testing.assert_array_equal(new.lora_A["q"][:, column], STATE.lora_A["q"][:, column])
            continue
        ordered, cut = np.sort(np.array(votes), axis=0), int(0.2 * len(votes))
        expected = np.median(ordered, axis=0) if kind == "median" else ordered[cut : len(votes) - cut].mean(axis=0)
        np.testing.assert_allclose(new.lora_A["q"][:, column], STATE.lora_A["q"][:, column] + expected, rtol=1e-5, atol=1e-6)
    head = np.array([changes.head["head.bias"] for changes, _ in answers])
    ordered = np.sort(head, axis=0)
    expected = np.median(head, axis=0) if kind == "median" else ordered[1:6].mean(axis=0)
    np.testing.assert_allclose(new.head["head.bias"], STATE.head["head.bias"] + expected, rtol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("aggregation", ["kept", "previous"])
@pytest.mark.parametrize("kind", ["median", "trimmed_mean"])
def test_entries_nobody_kept_stay_what_they_were(kind: str, aggregation: str, count: int) -> None:
    average, answers = RobustAverage(SPEC, kind), _answers(0.7, count)
    for changes, mask in answers:
        average.add(changes, mask, 1.0)
    new = average.apply(STATE, aggregation)
    for index, module in enumerate(SPEC.modules):
        kept = np.unique(np.concatenate([mask.modules[index].columns for _, mask in answers]))
        alone = np.setdiff1d(np.arange(module.in_features), kept)
        np.testing.assert_array_equal(new.lora_A[module.name][:, alone], STATE.lora_A[module.name][:, alone])
    assert all(np.isfinite(value).all() for part in vars(new).values() for value in part.values())


@pytest.mark.parametrize("kind", ["median", "trimmed_mean"])
def test_a_few_liars_do_not_move_the_vote_out_of_the_honest_range(kind: str) -> None:
    honest = _answers(0.0, 7)
    average = RobustAverage(SPEC, kind, trim=0.3)
    for changes, mask in honest:
        average.add(changes, mask, 1.0)
    for _ in range(2):
        average.add(_scaled(honest[0][0], 1e6), honest[0][1], 1e9)
    step = average.apply(STATE, "kept").lora_B["v"] - STATE.lora_B["v"]
    values = np.array([changes.lora_B["v"] for changes, _ in honest])
    assert (step <= values.max(axis=0) + 1e-5).all() and (step >= values.min(axis=0) - 1e-5).all()


def test_a_factor_that_did_not_travel_stays() -> None:
    average = RobustAverage(SPEC, "median")
    for changes, mask in _answers(0.3):
        average.add(AdapterState({}, changes.lora_B, changes.head), mask, 1.0)
    new = average.apply(STATE, "kept")
    assert all(np.array_equal(new.lora_A[name], STATE.lora_A[name]) for name in STATE.lora_A)
    assert not np.array_equal(new.lora_B["q"], STATE.lora_B["q"])


def test_the_lower_median_cannot_be_raised_by_half() -> None:
    assert lower_median([1.0, 1e9]) == 1.0 and lower_median([3.0, 1.0, 2.0]) == 2.0


def test_the_first_round_uses_its_own_median_and_later_ones_the_last() -> None:
    one, guard = random_state(SPEC), NormGuard(2.0)
    first = list(guard.pass_on([("a", one), ("b", _scaled(one, 100.0)), ("c", _scaled(one, 1.5))]))
    assert [item for item, _ in first] == ["a", "b", "c"] and [item for item, _, _ in guard.clipped] == ["b"]
    usual = change_norm(one)
    assert guard.medians["AB"] == pytest.approx(1.5 * usual, rel=1e-6)  # of what was sent, before scaling
    assert change_norm(first[1][1]) == pytest.approx(2 * 1.5 * usual, rel=1e-5)
    # A stream: every answer leaves before the next is taken.
    taken: list[str] = []

    def stream() -> object:
        for name in "xy":
            taken.append(name)
            yield name, _scaled(one, 9.0)

    passed = guard.pass_on(stream())  # type: ignore[arg-type]
    next(passed)
    assert taken == ["x"] and change_norm(next(passed)[1]) == pytest.approx(3 * usual, rel=1e-5)
    list(passed)
    assert guard.medians["AB"] == pytest.approx(9 * usual, rel=1e-5) and len(guard.clipped) == 2


def test_without_a_factor_nothing_is_held_or_measured() -> None:
    guard = NormGuard(None)
    assert len(list(guard.pass_on([("a", STATE)]))) == 1 and not guard.medians


def test_a_round_of_zeros_or_of_nobody_leaves_the_median() -> None:
    guard = NormGuard(2.0, {"AB": 5.0})
    list(guard.pass_on([("a", _scaled(STATE, 0.0))]))
    assert guard.medians == {"AB": 5.0}
    list(guard.pass_on([]))
    assert guard.medians == {"AB": 5.0}
    fresh = NormGuard(2.0)
    assert len(list(fresh.pass_on([("a", _scaled(STATE, 0.0))]))) == 1 and not fresh.medians


@pytest.mark.parametrize(("kind", "trim"), [("mean", 0.1), ("median", 0.5), ("trimmed_mean", -0.1)])
def test_unknown_votes_are_refused(kind: str, trim: float) -> None:
    with pytest.raises(ValueError, match="trimmed_mean or median"):
        RobustAverage(SPEC, kind, trim)


def test_rounds_of_other_factors_have_a_median_of_their_own() -> None:
    guard = NormGuard(2.0, {"B": 1e-3})
    list(guard.pass_on([("a", STATE)], "A"))
    assert not guard.clipped and guard.medians["B"] == 1e-3
