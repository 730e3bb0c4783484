"""The function-call task: calls say what was meant, nothing of the test set occurs in training, scores count what they say."""

from __future__ import annotations

import json

import pytest

from tasks.data.calls import SYSTEM, call_of, generate_calls, score_calls, values
from tasks.data.examples import PromptExamples, TaskError
from tasks.data.intents import INTENTS, Command
from tasks.data.load import load_task


def test_calls_are_json_with_the_slots_that_were_spoken() -> None:
    train, validation, test = generate_calls(num_train=200, num_validation=20, num_test=100, seed=3)
    assert (len(train), len(validation), len(test)) == (200, 20, 100)
    whole = 0
    for side, part in (("train", train), ("test", test)):
        for text, answer, label in zip(part.texts, part.responses, part.labels, strict=True):
            call = json.loads(answer)
            assert all(value[0] == " " != value[1] for slot, value in call.items() if slot != "name")
            call = {slot: value.strip() for slot, value in call.items()}
            assert call.pop("name") == INTENTS[int(label)]
            assert all(value in values(side)[slot] for slot, value in call.items())  # type: ignore[arg-type]
            whole += all(value in text for value in call.values())
    assert whole > 0.85 * 300  # a filler may stand within a value, a contraction change it


def test_arguments_come_in_the_order_in_which_they_are_spoken() -> None:
    slots = {"event": "lunch", "person": "my wife", "day": "on friday"}
    for text, order in (
        ("my wife called, on friday plan lunch with my um wife", ["day", "event", "person"]),
        ("plan lunch with my wife on friday please", ["event", "person", "day"]),
    ):
        call = json.loads(call_of(Command(text, INTENTS.index("event_create"), slots, 0)))
        assert list(call) == ["name", *order]


def test_test_values_and_speakers_are_never_seen_in_training() -> None:
    known = {value for options in values("train").values() for value in options}
    unseen = {value for options in values("test").values() for value in options}
    assert not known & unseen
    train, validation, test = generate_calls(num_train=300, num_validation=20, num_test=100, seed=0)
    assert train.groups is not None and test.groups is not None
    assert not set(train.groups) & set(test.groups)
    assert not {*train.texts, *validation.texts} & set(test.texts)


def test_spoken_commands_have_no_abbreviations() -> None:
    train, _, _ = generate_calls(num_train=400, num_validation=20, num_test=20, seed=0)
    assert not any({"u", "pls", "tmrw", "2nite", "thx"} & set(text.split()) for text in train.texts)


def test_the_task_loads_and_takes_no_files() -> None:
    task = load_task("calls", seed=0, train_limit=50, validation_limit=20, holdout=10)
    assert (task.kind, task.primary_metric) == ("causal", "teacher_forced_match")
    assert (len(task.train), len(task.test)) == (50, 20)
    with pytest.raises(ValueError, match="task calls is generated"):
        load_task("calls", seed=0, train_file="x.tsv")


def test_scores_of_generated_calls() -> None:
    wanted = ['{"name": "a", "x": "1", "y": "2"}'] * 5
    answers = [
        '{"y": "2 ", "x": " 1", "name": "a"}',  # the order of keys is free, and blanks around values
        '{"name": "a", "x": "1"}',
        '{"name": "b", "x": "1", "y": "2"}',
        '{"name": "a", "x": "1", "y": "2"',
        '["name"]',
    ]
    found = score_calls(answers, wanted)
    assert found["exact_call"] == 0.2 and found["right_name"] == 0.4 and found["valid_json"] == 0.6
    assert found["argument_f1"] == pytest.approx(2 * 5 / (5 + 10))


def test_the_schema_names_every_function_and_argument() -> None:
    plain, told = (load_task("calls", seed=3, train_limit=200, validation_limit=60, schema=s) for s in (False, True))
    assert isinstance(told.train, PromptExamples) and plain.train.texts == told.train.texts
    assert plain.train.system == SYSTEM
    first, *lines = told.train.system.splitlines()
    functions = {call["name"]: call["arguments"] for call in map(json.loads, lines)}
    assert first.startswith("Reply in JSON with a call") and tuple(functions) == INTENTS
    for part in (told.train, told.validation, told.test):
        assert part.system == told.train.system
        for call in map(json.loads, part.responses):
            assert set(call) - {"name"} <= set(functions[call["name"]])
    assert functions["alarm_set"] == ["day", "time"]
    with pytest.raises(TaskError, match="task.schema: expected false for task intents, found True"):
        load_task("intents", seed=0, schema=True)
