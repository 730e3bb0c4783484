"""Function calls: spoken commands answered by a call in JSON, its name the intent and its arguments the slots.

    set an alarm for 8 am today  ->  {"name": "alarm_set", "day": " today", "time": " 8 am"}

A value begins with a blank: a model copies tokens, and behind a quotation mark a word has others (but, ter) than behind
the blank in the request (one). Whoever carries the call out strips it, as the scores do.

Commands are those of `tasks.data.intents` as they are spoken: without typing errors and abbreviations.
"""

import json
from functools import partial
from typing import Any

import numpy as np

from tasks.data.examples import PromptExamples
from tasks.data.intents import INTENTS, PHRASES, SLOTS, Command, Side, draw_commands, split_commands

SYSTEM = "JSON"


def generate_calls(
    *, seed: int, schema: bool = False, **sizes: int
) -> tuple[PromptExamples, PromptExamples, PromptExamples]:
    """Generate three sets of commands with their calls; with ``schema`` the system prompt lists the functions."""
    sizes = {"num_validation": 100, "num_test": 200} | sizes
    return split_commands(partial(_calls, system=schema_prompt() if schema else SYSTEM), **sizes, seed=seed)


def schema_prompt() -> str:
    """Return a system prompt with every function and its arguments, one JSON object a line."""
    lines = []
    for intent in INTENTS:
        phrases = " ".join(phrase for side in PHRASES[intent] for phrase in side)
        arguments = [slot for slot in SLOTS if f"{{{slot}}}" in phrases]
        lines.append(json.dumps({"name": intent, "arguments": arguments}))
    return "\n".join(["Reply in JSON with a call of one of these functions:", *lines])


def values(side: Side) -> dict[str, list[str]]:
    """Return every slot's values on one side."""
    return {name: [*sides.train, *sides.calls] if side == "train" else sides.test for name, sides in SLOTS.items()}


def call_of(command: Command) -> str:
    """Return the call that a command asks for, its arguments in the order in which they are spoken."""
    # A filler may stand within a value, chatter with the same words before the command.
    spoken = sorted(command.slots.items(), key=lambda item: command.text.rfind(item[1].split()[-1]))
    return json.dumps({"name": INTENTS[command.label], **{name: f" {value}" for name, value in spoken}})


def _calls(side: Side, count: int, rng: np.random.Generator, first_speaker: int, system: str) -> PromptExamples:
    found = draw_commands(side, count, rng, first_speaker, values(side), written=False)
    labels, speakers = np.array([[c.label, c.speaker] for c in found], dtype=np.int64).T
    return PromptExamples(tuple(c.text for c in found), labels, tuple(map(call_of, found)), speakers, system)


def score_calls(answers: list[str], wanted: list[str]) -> dict[str, float]:
    """Compare generated calls with the right ones: ``exact_call``, ``right_name``, ``valid_json``, ``argument_f1``.

    Exact is the same JSON object, whatever the order of its keys and the blanks around values; F1 is over all pairs of
    argument and value of all answers.
    """
    pairs = [(_parsed(answer), _parsed(call) or {}) for answer, call in zip(answers, wanted, strict=True)]
    hits = found = expected = 0
    for call, right in pairs:
        given, asked = _arguments(call or {}), _arguments(right)
        hits, found, expected = hits + len(given & asked), found + len(given), expected + len(asked)
    shares = {
        "exact_call": [call == right for call, right in pairs],
        "right_name": [call is not None and call.get("name") == right["name"] for call, right in pairs],
        "valid_json": [call is not None for call, _ in pairs],
    }
    f1 = 2 * hits / max(1, found + expected)
    return {name: float(np.mean(share)) for name, share in shares.items()} | {"argument_f1": f1}


def _arguments(call: dict[str, Any]) -> set[tuple[str, str]]:
    return {(key, json.dumps(value)) for key, value in call.items() if key != "name"}


def _parsed(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    if not isinstance(value, dict):
        return None
    return {key: part.strip() if isinstance(part, str) else part for key, part in value.items()}
