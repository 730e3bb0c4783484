"""What a causal model writes to the requests of the test set, before and after the training."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from server_app.evaluate import Evaluator
from tasks.data.batches import Tokenised
from tasks.data.calls import score_calls
from tasks.data.examples import PromptExamples
from tasks.models.tokenizer import HubTokenizer, TextTokenizer
from tasks.scoring.generation import generate

SHOWN = 10
_WIDTH = 110  # of an answer on the terminal


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


def answer_lines(found: dict[str, Any]) -> Iterator[str]:
    """Yield scores and samples, one line each."""
    if not found:
        return
    told = ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in found["scores"].items())
    yield f"written answers to {found['num_examples']} test requests: {told}"
    for sample in found["samples"]:
        right = "  = as expected" if sample["after"] == sample["expected"] else f"  expected {sample['expected']}"
        yield f"  request: {_line(sample['request'])}"
        yield f"    before: {_line(sample['before'])}"
        yield f"    after:  {_line(sample['after'])}{right}"


def _line(text: str) -> str:
    # A model may write control characters.
    flat = "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))
    return flat if len(flat) <= _WIDTH else flat[: _WIDTH - 3] + "..."
