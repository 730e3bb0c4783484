"""Norms held to the median, and votes per entry, against literal references."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from adapter import AdapterMask, AdapterState, gather, sample_mask
from adapter.privacy import change_norm
from strategy.aggregation import Answer
from strategy.aggregation.robust import NormGuard, RobustAverage, hostile_devices, lower_median
from tests.support.adapters import random_state, small_spec

SPEC = small_spec()
STATE = random_state(SPEC)
FULL = AdapterMask.full(SPEC)


def _scaled(state: AdapterState, factor: float) -> AdapterState:
    return state.map(lambda value: value * factor)


def _answers(rate: float, count: int = 7) -> list[tuple[AdapterState, AdapterMask]]:
    masks = [sample_mask(SPEC, seed, rate) for seed in range(count)]
    return [(gather(SPEC, random_state(SPEC, 10 + k), mask), mask) for k, mask in enumerate(masks)]


@pytest.mark.parametrize("aggregation", ["kept", "previous"])
@pytest.mark.parametrize("kind", ["median", "trimmed_mean"])
def test_votes_equal_numpy_entry_by_entry(kind: str, aggregation: str) -> None:
    average, answers = RobustAverage(SPEC, kind, 1, aggregation), _answers(0.5)
    for changes, mask in answers:
        average.add(Answer(changes, mask, 1.0))
    new = average.finish(STATE).state
    module = SPEC.modules[0]
    for column in range(module.in_features):
        votes = [
            changes.lora_A["q"][:, int(np.flatnonzero(mask.modules[0].columns == column)[0])]
            if column in mask.modules[0].columns
            else np.zeros(module.r)
            for changes, mask in answers
            if aggregation == "previous" or column in mask.modules[0].columns
        ]
        if len(votes) < 3:  # two hostile devices, or one and nobody else, would decide
            np.testing.assert_array_equal(new.lora_A["q"][:, column], STATE.lora_A["q"][:, column])
            continue
        ordered, cut = np.sort(np.array(votes), axis=0), 1
        expected = np.median(ordered, axis=0) if kind == "median" else ordered[cut : len(votes) - cut].mean(axis=0)
        np.testing.assert_allclose(
            new.lora_A["q"][:, column], STATE.lora_A["q"][:, column] + expected, rtol=1e-5, atol=1e-6
        )
    head = np.array([changes.head["head.bias"] for changes, _ in answers])
    ordered = np.sort(head, axis=0)
    expected = np.median(head, axis=0) if kind == "median" else ordered[1:6].mean(axis=0)
    np.testing.assert_allclose(new.head["head.bias"], STATE.head["head.bias"] + expected, rtol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("aggregation", ["kept", "previous"])
@pytest.mark.parametrize("kind", ["median", "trimmed_mean"])
def test_entries_nobody_kept_stay_what_they_were(kind: str, aggregation: str, count: int) -> None:
    average, answers = RobustAverage(SPEC, kind, aggregation=aggregation), _answers(0.7, count)
    for changes, mask in answers:
        average.add(Answer(changes, mask, 1.0))
    new = average.finish(STATE).state
    for index, module in enumerate(SPEC.modules):
        kept = np.unique(np.concatenate([mask.modules[index].columns for _, mask in answers]))
        alone = np.setdiff1d(np.arange(module.in_features), kept)
        np.testing.assert_array_equal(new.lora_A[module.name][:, alone], STATE.lora_A[module.name][:, alone])
    assert all(np.isfinite(value).all() for part in vars(new).values() for value in part.values())


@pytest.mark.parametrize("kind", ["median", "trimmed_mean"])
def test_a_few_liars_do_not_move_the_vote_out_of_the_honest_range(kind: str) -> None:
    honest = _answers(0.0, 7)
    average = RobustAverage(SPEC, kind, stands=2)
    for changes, mask in honest:
        average.add(Answer(changes, mask, 1.0))
    for _ in range(2):
        average.add(Answer(_scaled(honest[0][0], 1e6), honest[0][1], 1e9))
    step = average.finish(STATE).state.lora_B["v"] - STATE.lora_B["v"]
    values = np.array([changes.lora_B["v"] for changes, _ in honest])
    assert (step <= values.max(axis=0) + 1e-5).all() and (step >= values.min(axis=0) - 1e-5).all()


def test_a_factor_that_did_not_travel_stays() -> None:
    average = RobustAverage(SPEC, "median")
    for changes, mask in _answers(0.3):
        average.add(Answer(AdapterState({}, changes.lora_B, changes.head), mask, 1.0))
    new = average.finish(STATE).state
    assert all(np.array_equal(new.lora_A[name], STATE.lora_A[name]) for name in STATE.lora_A)
    assert not np.array_equal(new.lora_B["q"], STATE.lora_B["q"])


def test_the_lower_median_cannot_be_raised_by_half() -> None:
    assert lower_median([1.0, 1e9]) == 1.0 and lower_median([3.0, 1.0, 2.0]) == 2.0


@pytest.mark.parametrize("kind", ["median", "trimmed_mean"])
def test_an_entry_with_fewer_votes_than_hostile_devices_could_win_does_not_move(kind: str) -> None:
    average, answers = RobustAverage(SPEC, kind, stands=2), _answers(0.6)
    for changes, mask in answers:
        average.add(Answer(changes, mask, 1.0))
    averaged = average.finish(STATE)
    new, account = averaged.state, averaged.account
    votes = np.zeros(SPEC.modules[0].in_features, dtype=int)
    for _, mask in answers:
        votes[mask.modules[0].columns] += 1
    moved = (new.lora_A["q"] != STATE.lora_A["q"]).any(axis=0)
    assert set(votes) & {3, 4} and set(votes) & {5, 6}, "both kinds of entries are there"
    np.testing.assert_array_equal(moved, votes >= 5)
    assert account is not None and account["stands"] == 2 and 0 < account["unmoved"] < 1


def test_the_share_of_hostile_devices_becomes_a_number() -> None:
    found = [
        hostile_devices(trim, asked)
        for trim, asked in ((0.1, 10), (0.1, 9), (0.29, 100), (0.3, 30), (0.49, 3), (0.0, 7))
    ]
    assert found == [1, 0, 29, 9, 1, 0]


def test_a_round_is_held_to_its_own_median_before_anything_is_passed_on() -> None:
    one, guard = random_state(SPEC), NormGuard(1.0, {"AB": 1e9})  # what an earlier round said does not matter
    taken: list[str] = []

    def stream() -> Iterator[tuple[str, AdapterState]]:
        for name, factor in zip("abcde", (1.0, -100.0, 1.5, 0.5, 1.2), strict=True):
            taken.append(name)
            yield name, _scaled(one, factor)

    passed = guard.pass_on(stream())
    first = next(passed)
    assert taken == list("abcde") and first[0] == "a"
    rest, usual = dict(passed), change_norm(one)
    assert [item for item, _, _ in guard.clipped] == ["b", "c"]
    assert guard.medians["AB"] == pytest.approx(1.2 * usual, rel=1e-6)  # of what was sent, before scaling
    assert [change_norm(rest[k]) for k in "bc"] == pytest.approx([1.2 * usual] * 2, rel=1e-5)
    np.testing.assert_array_equal(rest["d"].lora_B["q"], _scaled(one, 0.5).lora_B["q"])


def test_waiting_answers_come_back_bit_for_bit() -> None:
    given = [(k, changes) for k, (changes, _) in enumerate(_answers(0.4))]
    guard = NormGuard(1e3)
    for (k, changes), (name, theirs) in zip(given, guard.pass_on(given), strict=True):
        assert k == name and not guard.clipped
        assert all(np.array_equal(theirs.parts()[part][key], value) for part, key, value in changes.items())


def test_one_hostile_answer_is_not_its_own_measure() -> None:
    one, guard = random_state(SPEC), NormGuard(1.0, {"AB": change_norm(random_state(SPEC))})
    (only,) = guard.pass_on([("a", _scaled(one, 50.0))])
    assert change_norm(only[1]) == pytest.approx(change_norm(one), rel=1e-5) and guard.medians["AB"] == change_norm(one)


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


@pytest.mark.parametrize(("kind", "stands"), [("mean", 1), ("median", -1), ("trimmed_mean", -1)])
def test_unknown_votes_are_refused(kind: str, stands: int) -> None:
    with pytest.raises(ValueError, match="trimmed_mean or median"):
        RobustAverage(SPEC, kind, stands)


def test_rounds_of_other_factors_have_a_median_of_their_own() -> None:
    guard = NormGuard(2.0, {"B": 1e-3})
    list(guard.pass_on([(k, STATE) for k in "abc"], "A"))
    assert not guard.clipped and guard.medians["B"] == 1e-3 and guard.medians["A"] > 1


def _votes(answers: list[tuple[AdapterState, AdapterMask]]) -> np.ndarray:
    """Changes as a matrix (devices, entries), NaN where a device dropped an entry."""
    rows = []
    for changes, mask in answers:
        whole = AdapterState.zeros(SPEC, np.float64).map(lambda value: np.full_like(value, np.nan))
        for part, name, kept in mask.survivors(SPEC):
            whole.parts()[part][name][kept] = changes.parts()[part][name]
        whole.head = {name: value.astype(np.float64) for name, value in changes.head.items()}
        rows.append(np.concatenate([value.reshape(-1) for _, _, value in whole.items()]))
    return np.array(rows)


def test_multi_krum_keeps_whom_the_shared_entries_hold_close_and_takes_their_mean() -> None:
    b, answers = 1, _answers(0.3, 8)
    votes = _votes(answers)
    votes[3] += 5.0
    answers[3] = answers[3][0].map(lambda value: value + np.float32(5.0)), answers[3][1]
    n, entries = votes.shape
    scores = []
    for i in range(n):
        distances = []
        for j in range(n):
            shared = ~np.isnan(votes[i] + votes[j])
            distances.append(np.mean((votes[i] - votes[j])[shared] ** 2))
        scores.append(sum(sorted(distances[:i] + distances[i + 1 :])[: n - b - 2]))
    chosen = np.argsort(scores, kind="stable")[: n - b]
    assert 3 not in chosen
    enough = np.count_nonzero(~np.isnan(votes), axis=0) >= 2 * b + 3
    with np.errstate(invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = np.where(enough, np.nan_to_num(np.nanmean(votes[chosen], axis=0)), 0.0)
    average = RobustAverage(SPEC, "multi_krum", b)
    for changes, mask in answers:
        average.add(Answer(changes, mask, 1.0))
    new = average.finish(STATE).state
    moved = np.concatenate([(new.parts()[p][k] - v).reshape(-1) for p, k, v in STATE.items()])
    np.testing.assert_allclose(moved, expected, atol=1e-5)


def test_the_geometric_median_is_the_point_of_least_distance_on_what_devices_kept() -> None:
    answers = _answers(0.3, 8)
    votes, b = _votes(answers), 1
    average = RobustAverage(SPEC, "geometric_median", b)
    for changes, mask in answers:
        average.add(Answer(changes, mask, 1.0))
    new = average.finish(STATE).state
    point = np.concatenate([(new.parts()[p][k] - v).reshape(-1) for p, k, v in STATE.items()]).astype(np.float64)
    votes = votes[:, np.count_nonzero(~np.isnan(votes), axis=0) >= 2 * b + 1]  # the others do not move
    point = point[point != 0]
    assert point.size == votes.shape[1]

    def cost(z: np.ndarray) -> float:
        return float(np.sqrt(np.nansum((votes - z) ** 2, axis=1)).sum())

    rng = np.random.default_rng(0)
    for size in (1e-1, 1e-2):
        assert all(cost(point) < cost(point + size * rng.standard_normal(point.size)) for _ in range(30))
    gradient = np.nansum((point - votes) / np.sqrt(np.nansum((votes - point) ** 2, axis=1))[:, None], axis=0)
    assert np.abs(gradient).max() < 1e-3


@pytest.mark.parametrize("rate", [0.0, 0.5, 0.7])
@pytest.mark.parametrize("kind", ["median", "trimmed_mean", "multi_krum", "geometric_median"])
def test_the_breakdown_point_holds_whatever_the_hostile_devices_send(kind: str, rate: float) -> None:
    """Two of nine move no entry further the further they lie: on all, on some, on those that few or just enough kept."""
    b, n = 2, 9
    honest, needs = _answers(rate, n), 2 * b + (3 if kind == "multi_krum" else 1)
    counts = AdapterState.zeros(SPEC, np.int64).map(lambda value: value)
    for _, mask in honest:
        for part, name, kept in mask.survivors(SPEC):
            counts.parts()[part][name][kept] += 1
    counts.head = {name: np.full_like(value, n) for name, value in counts.head.items()}

    def lie(answer: tuple[AdapterState, AdapterMask], value: float, where: Any) -> AdapterState:
        changes, mask = answer[0].copy(), answer[1]
        views: list[Any] = [*mask.survivors(SPEC), *(("head", name, ...) for name in changes.head)]
        for part, name, kept in views:
            honestly = changes.parts()[part][name]
            chosen = where(counts.parts()[part][name][kept])
            changes.parts()[part][name] = np.where(chosen, np.float32(value), honestly)
        return changes

    def step(size: float, where: Any, apart: bool) -> np.ndarray:
        average = RobustAverage(SPEC, kind, b)
        for k, answer in enumerate(honest):
            value = -size if apart and k else size
            average.add(Answer(lie(answer, value, where) if k < b else answer[0], answer[1], 1.0))
        new = average.finish(STATE).state
        return np.concatenate([(new.parts()[p][name] - old).reshape(-1) for p, name, old in STATE.items()])

    rng = np.random.default_rng(0)
    places = {
        "all": lambda count: np.ones(count.shape, bool),
        "some": lambda count: rng.random(count.shape) < 0.05,
        "alone": lambda count: count == 1,
        "few kept it": lambda count: count < needs,
        "just enough kept it": lambda count: count == needs,
    }
    for name, where in places.items():
        for apart in (False, True):
            assert max(np.abs(step(size, where, apart)).max() for size in (1e2, 1e4, 1e6)) < 20, (name, apart)
