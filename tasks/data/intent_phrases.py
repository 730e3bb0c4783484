"""What people say to their assistant: the table `commands.yaml`, phrasings per intent and the values of their slots."""

from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

Side = Literal["train", "test"]
SPEECH: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("commands.yaml").read_text(encoding="utf-8"))


class Sides(NamedTuple):
    """The two disjoint lists of one intent or slot, and what only the function calls train on beside the first."""

    train: tuple[str, ...]
    test: tuple[str, ...]
    calls: tuple[str, ...] = ()


def _sides(lists: dict[str, list[str]]) -> Sides:
    return Sides(**{side: tuple(texts) for side, texts in lists.items()})


PHRASES = {intent: _sides(lists) for intent, lists in SPEECH["phrases"].items()}
SLOTS = {slot: _sides(lists) for slot, lists in SPEECH["slots"].items()}
CHATTER = _sides(SPEECH["chatter"])
