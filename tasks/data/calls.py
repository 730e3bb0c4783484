"""Function calls: spoken commands answered by a call in JSON, its name the intent and its arguments the slots.

    set an alarm for 8 am today  ->  {"name": "alarm_set", "day": " today", "time": " 8 am"}

A value begins with a blank: behind a quotation mark alone a word has other tokens than in the request (c, airo; there
cairo is one with the blank before it), and a model copies tokens. Whoever carries the call out strips it, as the scores
do.

Commands are those of `tasks.data.intents` as they are spoken: with fillers, chatter and contractions, without the
typing errors and abbreviations of written ones. Test commands use phrasings, slot values and speakers that occur
nowhere in training.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from tasks.data.call_values import MORE_VALUES
from tasks.data.examples import PromptExamples
from tasks.data.intent_phrases import SLOTS, Side
from tasks.data.intents import INTENTS, Command, draw_commands, split_commands

SYSTEM = "Reply in JSON."


def generate_calls(
    *, num_train: int = 1600, num_validation: int = 100, num_test: int = 200, seed: int
) -> tuple[PromptExamples, PromptExamples, PromptExamples]:
    """Generate training, validation and test commands with their calls; the functions are equally frequent."""
    sizes = {"num_train": num_train, "num_validation": num_validation, "num_test": num_test}
    return split_commands(_calls, **sizes, seed=seed)


def values(side: Side) -> dict[str, tuple[str, ...]]:
    """Return every slot's values on one side."""
    more = MORE_VALUES if side == "train" else {}
    return {name: getattr(sides, side) + more.get(name, ()) for name, sides in SLOTS.items()}


def call_of(command: Command) -> str:
    """Return the call that a command asks for; arguments in the order of the slots, whatever the order spoken."""
    arguments = {name: f" {command.slots[name]}" for name in SLOTS if name in command.slots}
    return json.dumps({"name": INTENTS[command.label], **arguments})


def _calls(side: Side, count: int, rng: np.random.Generator, first_speaker: int) -> PromptExamples:
    found = draw_commands(side, count, rng, first_speaker, values(side), written=False)
    labels, speakers = np.array([[c.label, c.speaker] for c in found], dtype=np.int64).T
    return PromptExamples(tuple(c.text for c in found), labels, tuple(map(call_of, found)), speakers, SYSTEM)


def score_calls(answers: list[str], wanted: list[str]) -> dict[str, float]:
    """Compare generated calls with the right ones.

    Returns ------- dict ``exact_call`` (same JSON object, whatever the order of its keys and the
    blanks around its values), ``right_name``,
    ``valid_json`` (an object), each a share of the answers, and ``argument_f1``: over all pairs of argument and value
    of all answers together.
    """
    pairs = [(_parsed(answer), _parsed(call)) for answer, call in zip(answers, wanted, strict=True)]
    hits = found = expected = 0
    for call, right in pairs:
        given, asked = (
            {(key, json.dumps(value)) for key, value in one.items() if key != "name"}
            for one in (call or {}, right or {})
        )
        hits, found, expected = hits + len(given & asked), found + len(given), expected + len(asked)
    return {
        "exact_call": float(np.mean([call == right for call, right in pairs])),
        "right_name": float(
            np.mean([call and right and call.get("name") == right["name"] or False for call, right in pairs])
        ),
        "valid_json": float(np.mean([call is not None for call, _ in pairs])),
        "argument_f1": 2 * hits / max(1, found + expected),
    }


def _parsed(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    if not isinstance(value, dict):
        return None
    return {key: part.strip() if isinstance(part, str) else part for key, part in value.items()}
