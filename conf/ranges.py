"""The admitted values of configuration keys, in words and as predicates."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from typing import Any

from omegaconf import MISSING

from adapter.protocol import DTYPES


@dataclass(frozen=True)
class Range:
    """The admitted values of a key, in words and as a predicate."""

    words: str
    admits: Callable[[Any], bool]

    def check(self, key: str, value: object) -> None:
        """Raise ValueError with the key, what was expected and what was found."""
        if not self.admits(value):
            raise ValueError(f"{key} must be {self.words}, found {value!r}")

    def or_null(self, words: str = "{} or null") -> Range:
        """Return the same range with null in it."""
        return Range(words.format(self.words), lambda value: value is None or self.admits(value))


POSITIVE = Range("positive", lambda value: value > 0)
NOT_NEGATIVE = Range(">= 0", lambda value: value >= 0)
AT_LEAST_1 = Range("at least 1", lambda value: value >= 1)
BELOW_1 = Range("in [0, 1)", lambda value: 0 <= value < 1)
INSIDE_0_1 = Range("in (0, 1)", lambda value: 0 < value < 1)
SEED = Range("from 0 to 2**63 - 1", lambda value: 0 <= value < 2**63)  # PyTorch's and the wire's integers have 64 bits
LAYERS = Range(
    "'all' or a positive number of upper layers", lambda value: value == "all" or (type(value) is int and value > 0)
)
DEVICE = Range("auto, cpu, cuda or cuda:N", lambda name: bool(re.fullmatch(r"auto|cpu|cuda(:\d+)?", name)))
PHASES = Range(
    "a list of A and B that holds both and begins with B: while B = 0, A has no gradient",
    lambda phases: set(phases) == {"A", "B"} and phases[0] == "B",
)
CLOCK_RANGE = Range(
    "[low, high] with 0 < low <= 1 <= high, shares of the class's clock",
    lambda pair: len(pair) == 2 and 0 < pair[0] <= 1 <= pair[1],
)
WAYS = Range(
    f"a list of different ones of {', '.join(DTYPES)}",
    lambda found: bool(found) and set(found) <= set(DTYPES) and len(set(found)) == len(found),
)
NOISE = Range(
    f"a number >= 0 for each of {', '.join(DTYPES)}",
    lambda found: set(found) == set(DTYPES) and min(found.values()) >= 0,
)
FOLDER_NAME = Range("a plain folder name", lambda name: name not in ("", ".", "..") and not set(name) & set("/\\\0"))


def one_of(*choices: str) -> Range:
    """Return the range of a key with a fixed set of words."""
    return Range("one of " + ", ".join(choices), lambda value: value in choices)


def ranged(admitted: Range) -> Any:
    """Declare a key with its range."""
    return field(default=MISSING, metadata={"range": admitted})


class Section:
    """A group of keys, named by its class: `LoraConfig` is ``lora``."""

    def __post_init__(self) -> None:
        """Check every key against its range."""
        section = type(self).__name__.removesuffix("Config").lower()
        for key in fields(self):  # type: ignore[arg-type]
            if "range" in key.metadata:
                key.metadata["range"].check(f"{section}.{key.name}", getattr(self, key.name))


def numbers(value: Any, key: str = "") -> Iterator[tuple[str, float]]:
    """Yield every float below a configuration object with its dotted key."""
    if isinstance(value, float):
        yield key, value
    elif isinstance(value, list):
        for item in value:
            yield from numbers(item, key)
    elif isinstance(value, dict) or hasattr(value, "__dataclass_fields__"):
        for name, item in (value if isinstance(value, dict) else vars(value)).items():
            yield from numbers(item, f"{key}.{name}" if key else str(name))
