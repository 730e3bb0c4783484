import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapter import AdapterMask, AdapterState, gather, sample_mask
from adapter.mask import ModuleMask
from strategy.aggregation import Answer
from strategy.aggregation.kept import KeptAverage
from tests.support.adapters import random_state, small_spec

SPEC = small_spec()


def _literal(state, answers, aggregation):  # type: ignore[no-untyped-def]
    """Reference: entry by entry, straight from the formula."""
    new = state.copy()
    total = sum(weight for _, _, weight in answers)
    for position, module in enumerate(SPEC.modules):
        for column in range(module.in_features):
            step, keepers = np.zeros(module.r), 0.0
            for changes, mask, weight in answers:
                where = np.flatnonzero(mask.modules[position].columns == column)
                if where.size:
                    step += weight * changes.lora_A[module.name][:, where[0]]
                    keepers += weight
            if keepers:
                new.lora_A[module.name][:, column] += step / (keepers if aggregation == "kept" else total)
        for row in range(module.out_features):
            step, keepers = np.zeros(module.r), 0.0
            for changes, mask, weight in answers:
                where = np.flatnonzero(mask.modules[position].rows == row)
                if where.size:
                    step += weight * changes.lora_B[module.name][where[0]]
                    keepers += weight
            if keepers:
                new.lora_B[module.name][row] += step / (keepers if aggregation == "kept" else total)
    for name, _ in SPEC.head:
        new.head[name] += sum(weight * changes.head[name] for changes, _, weight in answers) / total
    return new


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.tuples(st.floats(0, 0.9), st.integers(1, 500)), min_size=1, max_size=5),
    st.sampled_from(["kept", "previous"]),
)
def test_average_equals_the_formula_entry_by_entry(devices, aggregation) -> None:  # type: ignore[no-untyped-def]
    state, answers, average = random_state(SPEC), [], KeptAverage(SPEC, aggregation)
    for seed, (rate, weight) in enumerate(devices, start=1):
        mask = sample_mask(SPEC, seed, rate)
        changes = gather(SPEC, random_state(SPEC, seed), mask)
        answers.append((changes, mask, float(weight)))
        average.add(Answer(changes, mask, float(weight)))
    ours, reference = average.finish(state).state, _literal(state, answers, aggregation)
    for part in ("lora_A", "lora_B", "head"):
        for name, value in getattr(ours, part).items():
            np.testing.assert_allclose(value, getattr(reference, part)[name], rtol=1e-5, atol=1e-6)


def test_entries_nobody_kept_do_not_move() -> None:
    state, average = random_state(SPEC), KeptAverage(SPEC)
    mask = sample_mask(SPEC, 1, 0.7)
    average.add(Answer(gather(SPEC, random_state(SPEC, 1), mask), mask, 10.0))
    new = average.finish(state).state
    for module, kept in zip(SPEC.modules, mask.modules, strict=True):
        untouched = np.setdiff1d(np.arange(module.in_features), kept.columns)
        np.testing.assert_array_equal(new.lora_A[module.name][:, untouched], state.lora_A[module.name][:, untouched])
        assert (new.lora_A[module.name][:, kept.columns] != state.lora_A[module.name][:, kept.columns]).any()


def test_sub_adapters_of_equal_shape_and_different_survivors_are_not_mixed_up() -> None:
    # Trap 4: shapes agree, indices do not; a framework that only looks at shapes averages column 0 with column 1.
    spec = SPEC
    whole = [ModuleMask(np.arange(m.in_features), np.arange(m.out_features)) for m in spec.modules]
    first = AdapterMask((ModuleMask(np.array([0]), whole[0].rows), whole[1]))
    second = AdapterMask((ModuleMask(np.array([1]), whole[0].rows), whole[1]))
    state, average = random_state(spec), KeptAverage(spec)
    for mask, value in ((first, 1.0), (second, 5.0)):
        changes = gather(spec, random_state(spec, 3), mask)
        changes.lora_A["q"][:] = value
        average.add(Answer(changes, mask, 1.0))
    step = average.finish(state).state.lora_A["q"] - state.lora_A["q"]
    np.testing.assert_allclose(step[:, 0], 1.0, rtol=1e-6)
    np.testing.assert_allclose(step[:, 1], 5.0, rtol=1e-6)
    assert not step[:, 2:].any()


def test_nobody_answered_keeps_the_model_and_bad_weights_are_refused() -> None:
    state, average = random_state(SPEC), KeptAverage(SPEC)
    np.testing.assert_array_equal(average.finish(state).state.lora_A["q"], state.lora_A["q"])
    mask = sample_mask(SPEC, 1, 0.0)
    with pytest.raises(ValueError, match="weight must be positive"):
        average.add(Answer(state, mask, 0.0))
    with pytest.raises(ValueError, match="kept, previous"):
        KeptAverage(SPEC, "mean")


def _answers(count: int) -> list[tuple[AdapterState, AdapterMask, float]]:
    """Answers whose changes differ in size by orders of magnitude, as they do between the head and a fresh lora_B."""
    answers = []
    for seed in range(1, count + 1):
        mask = sample_mask(SPEC, seed, 0.1 * (seed % 9))
        changes = gather(SPEC, random_state(SPEC, 50 + seed), mask)
        for part in vars(changes).values():
            for name in part:
                part[name] = part[name] * np.float32(4.7 ** -(seed % 12))
        answers.append((changes, mask, float(10 + 7 * seed)))
    return answers


@settings(deadline=None, max_examples=20)
@given(st.permutations(range(12)), st.sampled_from(["kept", "previous"]))
def test_the_order_of_the_answers_does_not_matter_to_the_last_bit(order: list[int], aggregation: str) -> None:
    answers, state = _answers(12), random_state(SPEC)
    averages = []
    for sequence in (range(12), order):
        average = KeptAverage(SPEC, aggregation, sum(weight for _, _, weight in answers))
        for k in sequence:
            average.add(Answer(*answers[k]))
        averages.append(average.finish(state).state)
    for part in ("lora_A", "lora_B", "head"):
        for name, value in getattr(averages[0], part).items():
            assert value.tobytes() == getattr(averages[1], part)[name].tobytes()


def test_plain_float64_sums_would_depend_on_the_order() -> None:
    # The reason for the integers: without them the test above fails for this very case.
    values = [weight * changes.head["head.weight"].astype(np.float64) for changes, _, weight in _answers(12)]
    assert sum(values[1:], values[0]).tobytes() != sum(values[-2::-1], values[-1]).tobytes()


def test_a_mean_is_finer_than_float32() -> None:
    answers = _answers(12)
    average = KeptAverage(SPEC, max_total_weight=sum(weight for _, _, weight in answers))
    for answer in answers:
        average.add(Answer(*answer))
    zero = AdapterState.zeros(SPEC)
    total = sum(weight for _, _, weight in answers)
    exact = sum(weight * changes.head["head.bias"].astype(np.float64) for changes, _, weight in answers) / total
    np.testing.assert_allclose(average.finish(zero).state.head["head.bias"], exact, rtol=1.2e-7, atol=1e-12)


def test_an_absurd_change_is_refused_and_leaves_no_trace() -> None:
    average = KeptAverage(SPEC, max_total_weight=100.0)
    changes, mask, _ = _answers(1)[0]
    changes.head["head.bias"][1] = 1e6  # the last tensor: those before it must not have been added
    with pytest.raises(ValueError, match="expected changes of at most 1024, found 1e.06"):
        average.add(Answer(changes, mask, 1.0))
    state = random_state(SPEC)
    np.testing.assert_array_equal(average.finish(state).state.lora_A["q"], state.lora_A["q"])
    changes.head["head.bias"][1] = 0.0
    with pytest.raises(ValueError, match="sum to at most 100"):
        average.add(Answer(changes, mask, 101.0))
