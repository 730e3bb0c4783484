from __future__ import annotations

import re

import numpy as np
import pytest

from tasks.data.intents import CHATTER, INTENTS, NUM_SPEAKERS, PHRASES, SLOTS, generate_intents
from tasks.data.load import TaskError, load_task


@pytest.fixture(scope="module")
def generated():
    return generate_intents(seed=0)


def test_sizes_and_balance(generated):
    train, validation, test = generated
    assert (len(train), len(validation), len(test)) == (1600, 200, 400)
    assert len(INTENTS) >= 10
    for side in (train, test):
        counts = np.bincount(side.labels, minlength=len(INTENTS))
        assert counts.max() - counts.min() <= 1


def test_deterministic(generated):
    again, other = generate_intents(seed=0), generate_intents(seed=1)
    for ours, theirs, foreign in zip(generated, again, other, strict=True):
        assert ours.texts == theirs.texts != foreign.texts
        np.testing.assert_array_equal(ours.labels, theirs.labels)
        np.testing.assert_array_equal(ours.groups, theirs.groups)


def test_validation_is_not_trained_on(generated):
    assert not set(generated[0].keys()) & set(generated[1].keys())


@pytest.mark.parametrize("name", [*PHRASES, "chatter"])
def test_test_phrasings_are_new(name):
    """Not even the words around the slots are the same."""
    sides = CHATTER if name == "chatter" else PHRASES[name]
    train, test = ({re.sub(r"\{\w+\}|[,:]", "", phrase) for phrase in side} for side in sides[:2])
    train, test = ({" ".join(phrase.split()) for phrase in side} for side in (train, test))
    assert not train & test
    assert len(sides.train) >= 8
    assert len(sides.test) >= 5


@pytest.mark.parametrize("slot", SLOTS)
def test_test_slot_values_are_new(slot):
    train, test = (set(side) for side in SLOTS[slot][:2])
    assert not train & test
    everything = {value for sides in SLOTS.values() for value in sides.train}
    assert not test & everything, "nor may another slot have taught the value"


def test_no_test_command_occurs_in_training(generated):
    train, _, test = generated
    assert not set(train.keys()) & set(test.keys())
    values = {value for sides in SLOTS.values() for value in sides.test if len(value) > 5}
    assert not [text for text in train.texts if any(re.search(rf"\b{re.escape(value)}\b", text) for value in values)]


def test_every_slot_has_values():
    phrases = [phrase for sides in (*PHRASES.values(), CHATTER) for side in sides for phrase in side]
    assert {slot for phrase in phrases for slot in re.findall(r"\{(\w+)\}", phrase)} == set(SLOTS)


def test_speakers_differ_in_words_and_wishes(generated):
    train, _, test = generated
    assert set(train.groups) == set(range(NUM_SPEAKERS))
    assert not set(train.groups) & set(test.groups)
    shares, thanks = [], []
    for speaker in range(NUM_SPEAKERS):
        mine = np.flatnonzero(train.groups == speaker)
        shares.append(np.bincount(train.labels[mine], minlength=len(INTENTS)) / len(mine))
        thanks.append(np.mean([len(train.texts[i].split()) for i in mine]))
    assert np.abs(np.array(shares) - 1 / len(INTENTS)).sum(axis=1).mean() > 0.5
    assert np.std(thanks) > 1.0


def test_through_the_entry_point():
    task = load_task("intents", seed=4, train_limit=320, validation_limit=64, holdout=32, label_noise=0.25)
    assert (len(task.train), len(task.validation), len(task.test)) == (320, 32, 64)
    assert (task.label_names, task.num_outputs, task.primary_metric) == (INTENTS, len(INTENTS), "accuracy")
    clean = load_task("intents", seed=4, train_limit=320, validation_limit=64, holdout=32)
    assert clean.train.texts == task.train.texts
    assert 0.15 < np.mean(clean.train.labels != task.train.labels) < 0.35


@pytest.mark.parametrize("wrong", [{"train_file": "x.tsv"}, {"kind": "regression"}, {"holdout": -1}])
def test_errors(wrong):
    with pytest.raises(TaskError):
        load_task("intents", seed=0, **wrong)


@pytest.mark.slow
def test_learning_curve(minilm_settings):
    """Plain federated averaging over 3 of 10 devices: from chance, still far from done in round 2, good in round 10.

    The full federation (10 devices, seed 0, AdamW 2e-3, 10 rounds × 4 steps × 16) measured .34 / .58 / .71 / .75 / .83
    at rounds 1 / 2 / 4 / 6 / 10.
    """
    accuracies = _federated_curve(minilm_settings, rounds=10, devices=3)
    assert accuracies[0] < 0.2
    assert accuracies[2] < 0.7
    assert 0.72 < accuracies[10] < 0.97


@pytest.fixture
def minilm_settings():
    from tasks.models.files import find_minilm
    from tasks.settings import ModelError, ModelSettings

    try:
        find_minilm()
    except ModelError as error:
        pytest.skip(str(error))
    return ModelSettings()


def _federated_curve(settings, *, rounds: int, devices: int) -> list[float]:
    import torch

    from adapter.state import AdapterState
    from tasks.data.batches import sample_batches, tokenise
    from tasks.data.partition import partition
    from tasks.models.build import build_model
    from tasks.models.lora import get_adapter, set_adapter, trainable_parameters
    from tasks.models.tokenizer import load_tokenizer
    from tasks.scoring.evaluation import evaluate, task_loss
    from tasks.settings import LoraSettings

    task, tokenizer = load_task("intents", seed=0), load_tokenizer(settings)
    train, test = tokenise(tokenizer, task.train), tokenise(tokenizer, task.test)
    parts = partition(task.train.labels, num_devices=10, rng=np.random.default_rng(0))[:devices]
    model = build_model(settings, LoraSettings(), num_outputs=task.num_outputs, seed=0)
    state, accuracies = get_adapter(model), []
    for number in range(rounds + 1):
        set_adapter(model, state)
        accuracies.append(float(np.mean(evaluate(model, test)[1].argmax(1) == test.labels)))
        trained = []
        for device, part in enumerate(parts):
            set_adapter(model, state)
            model.train()
            optimizer = torch.optim.AdamW(trainable_parameters(model).values(), lr=2e-3, weight_decay=0.0)
            for indices in sample_batches(len(part), 16, steps=4, rng=np.random.default_rng([number, device])):
                batch = train.batch(part[indices])
                optimizer.zero_grad()
                task_loss(model(**batch.inputs), batch.labels, "classification").backward()
                optimizer.step()
            trained.append(get_adapter(model))
        fields = ("lora_A", "lora_B", "head")
        state = AdapterState(
            *(
                {name: np.mean([getattr(one, f)[name] for one in trained], axis=0) for name in getattr(state, f)}
                for f in fields
            )
        )
    return accuracies
