"""Prompts and responses for causal language models, generated from the intents."""

from __future__ import annotations

from tasks.data.examples import PromptExamples
from tasks.data.intents import INTENTS, generate_intents

METRICS = ("exact_match", "perplexity")


def generate_prompts(*, seed: int, **sizes: int) -> tuple[PromptExamples, PromptExamples, PromptExamples]:
    """Generate the offline default: commands as prompts, the names of their intents in words as responses."""
    train, validation, test = (
        PromptExamples(said.texts, said.labels, tuple(INTENTS[i].replace("_", " ") for i in said.labels), said.groups)
        for said in generate_intents(**sizes, seed=seed)
    )
    return train, validation, test
