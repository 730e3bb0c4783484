"""Scores on the server: test, validation and sampled training set, the gap; what a language model answers."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from adapter import AdapterState
from tasks.data.batches import Encoded, Tokenised
from tasks.data.calls import score_calls
from tasks.data.examples import PromptExamples
from tasks.data.load import TaskData
from tasks.models.lora import set_adapter
from tasks.models.placement import KeptStates
from tasks.models.tokenizer import HubTokenizer, TextTokenizer
from tasks.scoring.evaluation import compute_metrics, evaluate
from tasks.scoring.generation import generate

SHOWN = 10  # answers before and after the training
_MOST_CLASSES = 40  # of a confusion matrix
_SAMPLE_STREAM = 0x73637265  # names the random stream of the training sample


@dataclass
class Evaluator:
    """The server's own copy of the model and the sets it scores."""

    model: Any  # PEFT's; its adapter is overwritten by every call
    task: TaskData
    test: Encoded
    validation: Encoded
    train: Encoded  # the fixed sample that the gap is measured against
    batch_size: int  # examples per forward pass
    num_threads: int
    prefix: KeptStates | None = None  # what the frozen lower layers make of the three sets
    predicted: np.ndarray | None = None  # of the test set, by the last model scored

    def __call__(self, state: AdapterState) -> dict[str, dict[str, float]]:
        """Return the scores ``eval`` (test), ``validation`` and ``train_eval``, and ``gap``.

        A score is loss, metrics and num_examples; the gap is test - train of the loss, train - test of every metric.
        """
        threads = torch.get_num_threads()
        torch.set_num_threads(self.num_threads)
        try:
            set_adapter(self.model, state)
            sets = {"eval": self.test, "validation": self.validation, "train_eval": self.train}
            scores = {name: self._score(data) for name, data in sets.items()}
        finally:
            torch.set_num_threads(threads)
        test, train = scores["eval"], scores["train_eval"]
        gap = {"loss": test["loss"] - train["loss"], **{name: train[name] - test[name] for name in self.task.metrics}}
        return {**scores, "gap": gap}

    def _score(self, data: Encoded) -> dict[str, float]:
        examples = data if self.prefix is None else self.prefix.source(data)
        loss, predictions = evaluate(self.model, examples, self.batch_size)
        if data is self.test:
            self.predicted = predictions
        return {"loss": loss, **compute_metrics(self.task.metrics, predictions, data.labels), "num_examples": len(data)}


def confusion(evaluator: Evaluator) -> list[list[int]] | None:
    """Return how often each class of the test set (row) was taken for which (column) at the last scoring.

    None for a regression, a causal model, and more classes than a table holds.
    """
    classes = len(evaluator.task.label_names)
    if evaluator.predicted is None or evaluator.task.kind != "classification" or classes > _MOST_CLASSES:
        return None
    pairs = classes * np.asarray(evaluator.test.labels, dtype=np.int64) + evaluator.predicted.argmax(axis=1)
    counts: list[list[int]] = np.bincount(pairs, minlength=classes**2).reshape(classes, classes).tolist()
    return counts


def train_sample(num_examples: int, size: int, seed: int) -> np.ndarray:
    """Draw the fixed training sample, ascending indices."""
    rng = np.random.default_rng([_SAMPLE_STREAM, seed])
    return np.sort(rng.choice(num_examples, min(size, num_examples), replace=False))


def compare_answers(evaluator: Evaluator, tokenizer: TextTokenizer) -> dict[str, Any]:
    """Let the trained model answer the whole test set, and the base some of it.

    Returns ``scores`` and ``samples``, each with ``request``, ``expected``, ``before`` and ``after``; nothing where no
    answer can be read (hashed words, other kinds of tasks).
    """
    examples, data = evaluator.task.test, evaluator.test
    if not isinstance(tokenizer, HubTokenizer) or not isinstance(examples, PromptExamples):
        return {}
    assert isinstance(data, Tokenised)
    wanted = list(examples.responses)
    after = generate(evaluator.model, tokenizer, data)
    with evaluator.model.disable_adapter():
        before = generate(evaluator.model, tokenizer, data.subset(np.arange(min(SHOWN, len(wanted)))))
    if evaluator.task.name == "calls":
        scores = score_calls(after, wanted)
    else:
        scores = {"exact_answer": float(np.mean([a.strip() == w.strip() for a, w in zip(after, wanted, strict=True)]))}
    samples = [
        {"request": request, "expected": expected, "before": untrained, "after": trained}
        for request, expected, untrained, trained in zip(examples.texts, wanted, before, after, strict=False)
    ]  # of the first ones
    return {"num_examples": len(wanted), "scores": scores, "samples": samples}
