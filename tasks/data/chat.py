"""Prompts and responses for causal language models, generated from the intents."""

from __future__ import annotations

from tasks.data.examples import PromptExamples
from tasks.data.intents import INTENTS, generate_intents

METRICS = ("exact_match", "perplexity")


def generate_prompts(
    *, num_train: int = 1600, num_validation: int = 200, num_test: int = 400, seed: int
) -> tuple[PromptExamples, PromptExamples, PromptExamples]:
    """Generate the offline default: commands as prompts, the names of their intents in words as responses."""
    sets = generate_intents(num_train=num_train, num_validation=num_validation, num_test=num_test, seed=seed)
    words = [tuple(INTENTS[int(label)].replace("_", " ") for label in commands.labels) for commands in sets]
    train, validation, test = (
        PromptExamples(commands.texts, commands.labels, responses, commands.groups)
        for commands, responses in zip(sets, words, strict=True)
    )
    return train, validation, test
