from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tasks.data.batches import grouped_by_length, sample_batches, tokenise
from tasks.data.examples import TextExamples
from tasks.models.tokenizer import HashTokenizer
from tasks.scoring.evaluation import evaluate, task_loss

EXAMPLES = TextExamples(
    ("one", "one two three four five", "one two", "one two three", ""),
    np.array([0, 1, 2, 1, 0]),
    ("a", "b c", "", "d", "e f g"),
)


class TestTokenised:
    def test_padded_to_own_longest(self):
        data = tokenise(HashTokenizer(), TextExamples(EXAMPLES.texts, EXAMPLES.labels))
        assert data.lengths.tolist() == [3, 7, 4, 5, 2]
        batch = data.batch([2, 0])
        assert batch.inputs["input_ids"].shape == (2, 4)
        assert batch.inputs["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
        assert batch.labels.tolist() == [2, 0]

    def test_pairs_carry_token_types(self):
        batch = tokenise(HashTokenizer(), EXAMPLES).batch([0, 1])
        assert batch.inputs["token_type_ids"].tolist() == [
            [0, 0, 0, 1, 1, 0, 0, 0, 0, 0],
            [0, 0, 0, 0, 0, 0, 0, 1, 1, 1],
        ]
        assert set(batch.inputs) == {"input_ids", "attention_mask", "token_type_ids"}

    def test_subset_equals_tokenising_the_subset(self):
        whole = tokenise(HashTokenizer(), EXAMPLES).subset([3, 1])
        part = tokenise(HashTokenizer(), EXAMPLES.subset([3, 1]))
        for ours, theirs in zip(whole.input_ids, part.input_ids, strict=True):
            np.testing.assert_array_equal(ours, theirs)
        np.testing.assert_array_equal(whole.labels, part.labels)

    def test_nothing_to_tokenise(self):
        assert len(tokenise(HashTokenizer(), EXAMPLES.subset([]))) == 0


class TestSampling:
    @given(st.integers(1, 40), st.integers(1, 20), st.integers(0, 30), st.integers(0, 2**32 - 1))
    def test_grouping_by_length_deals_the_same_examples(self, num_examples, batch_size, steps, seed):
        rng = np.random.default_rng(seed)
        lengths = rng.integers(1, 100, size=num_examples)
        batches = sample_batches(num_examples, batch_size, steps=steps, rng=rng)
        dealt = grouped_by_length(batches, lengths, rng)
        assert Counter(i for batch in batches for i in batch.tolist()) == Counter(
            i for batch in dealt for i in batch.tolist()
        )
        assert all(len(batch) == min(batch_size, num_examples) == len(set(batch.tolist())) for batch in dealt)
        padded, before = (sum(int(lengths[b].max()) * len(b) for b in some) for some in (dealt, batches))
        assert padded <= before

    @given(st.integers(1, 40), st.integers(1, 20), st.integers(0, 30), st.integers(0, 2**32 - 1))
    def test_steps_use_examples_evenly(self, num_examples, batch_size, steps, seed):
        batches = sample_batches(num_examples, batch_size, steps=steps, rng=np.random.default_rng(seed))
        assert len(batches) == steps
        assert all(len(batch) == min(batch_size, num_examples) == len(set(batch.tolist())) for batch in batches)
        seen = Counter(int(i) for batch in batches for i in batch)
        if steps:
            assert set(seen) <= set(range(num_examples))
            assert max(seen.values()) - min(seen[i] for i in range(num_examples)) <= 1

    @given(st.integers(1, 40), st.integers(1, 20), st.integers(1, 3), st.integers(0, 2**32 - 1))
    def test_epochs_use_each_example_once(self, num_examples, batch_size, epochs, seed):
        batches = sample_batches(num_examples, batch_size, epochs=epochs, rng=np.random.default_rng(seed))
        per_epoch = -(-num_examples // batch_size)
        assert len(batches) == epochs * per_epoch
        first = np.concatenate(batches[:per_epoch])
        assert np.array_equal(np.sort(first), np.arange(num_examples))

    def test_same_generator_same_batches(self):
        one, two = (sample_batches(50, 16, steps=9, rng=np.random.default_rng(3)) for _ in range(2))
        assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))

    def test_no_examples(self, rng):
        with pytest.raises(ValueError, match="found 0 examples"):
            sample_batches(0, 2, steps=1, rng=rng)


class TestEvaluate:
    def test_order_loss_and_mode(self, tiny_model):
        model = tiny_model().train()
        data = tokenise(HashTokenizer(32), EXAMPLES)
        loss, predictions = evaluate(model, data, batch_size=2)
        assert model.training
        assert predictions.shape == (5, 3)
        with torch.no_grad():
            rows = [model.eval()(**data.batch([i]).inputs)[0] for i in range(5)]
        np.testing.assert_allclose(predictions, torch.stack(rows).numpy(), atol=1e-5)
        expected = torch.nn.functional.cross_entropy(torch.stack(rows), torch.from_numpy(data.labels))
        assert loss == pytest.approx(float(expected), rel=1e-5)

    def test_regression(self, tiny_model):
        model = tiny_model(num_outputs=1, kind="regression")
        values = np.array([0.5, 1.0, 2.0, 3.0, 4.0], dtype=np.float32)
        data = tokenise(HashTokenizer(32), TextExamples(EXAMPLES.texts, values))
        loss, predictions = evaluate(model, data)
        assert loss == pytest.approx(float(np.mean((predictions[:, 0] - values) ** 2)), rel=1e-5)

    def test_nothing(self, tiny_model):
        with pytest.raises(ValueError, match="at least one example"):
            evaluate(tiny_model(), tokenise(HashTokenizer(), EXAMPLES.subset([])))

    def test_a_few_steps_learn(self, tiny_model):
        from tasks.models.lora import trainable_parameters

        model = tiny_model(num_outputs=2, r=8, target_modules=("query", "value", "dense"))
        texts = tuple(f"{a} {b}" for a in ("red", "blue") for b in "abcdefgh")
        data = tokenise(HashTokenizer(32), TextExamples(texts, np.repeat([0, 1], 8)))
        optimizer = torch.optim.AdamW(trainable_parameters(model).values(), lr=2e-2)
        before, _ = evaluate(model, data)
        for indices in sample_batches(16, 16, steps=30, rng=np.random.default_rng(0)):
            batch = data.batch(indices)
            optimizer.zero_grad()
            task_loss(model(**batch.inputs), batch.labels, "classification").backward()
            optimizer.step()
        after, predictions = evaluate(model, data)
        assert after < 0.3 * before
        assert (predictions.argmax(1) == data.labels).all()
