"""Prompts and responses for causal language models: generated from the intents, and shown token by token."""

from typing import Any

from tasks.data.batches import tokenise
from tasks.data.examples import Examples, PromptExamples, TaskError
from tasks.data.intents import INTENTS, generate_intents
from tasks.models.tokenizer import HubTokenizer, TextTokenizer

METRICS = ("teacher_forced_match", "perplexity")


def generate_prompts(*, seed: int, **sizes: int) -> tuple[PromptExamples, PromptExamples, PromptExamples]:
    """Generate the offline default: commands as prompts, the names of their intents in words as responses."""
    train, validation, test = (
        PromptExamples(said.texts, said.labels, tuple(INTENTS[i].replace("_", " ") for i in said.labels), said.groups)
        for said in generate_intents(**sizes, seed=seed)
    )
    return train, validation, test


def explain_example(examples: Examples, tokenizer: TextTokenizer, index: int) -> list[tuple[str, int, bool]]:
    """Return text, id and "is learnt" of every token of one prompt or conversation, as training sees it.

    Hashed words cannot be read back: their text is ``#`` and the id. `TaskError` if there is no such prompt.
    """
    if not isinstance(examples, PromptExamples):
        raise TaskError("expected a task of prompts or conversations, found one without answers to write")
    if not 0 <= index < len(examples):
        raise TaskError(f"expected the number of an example from 0 to {len(examples) - 1}, found {index}")
    data: Any = tokenise(tokenizer, examples.subset([index]))
    hub = tokenizer.tokenizer if isinstance(tokenizer, HubTokenizer) else None
    texts = [f"#{token}" if hub is None else str(hub.decode([token])) for token in data.input_ids[0]]
    return list(zip(texts, data.input_ids[0].tolist(), data.targets[0].tolist(), strict=True))
