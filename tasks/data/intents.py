"""An offline task: commands to an on-device assistant, each speaker with a style of their own.

A command is a phrasing of its intent with slot values filled in, spoken in a style: politeness, fillers, contractions,
word order, unrelated chatter before the command, abbreviations, typing errors. Styles and favourite intents differ
between speakers, so a partition by speaker is non-IID in both words and labels. Test commands use phrasings, slot
values and speakers that occur nowhere in training: the distance between training and test loss is a true one.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import yaml

from tasks.data.examples import PromptExamples, SomeExamples, TextExamples, hold_out

Side = Literal["train", "test"]
_Make = Callable[[Side, int, np.random.Generator, int], SomeExamples]
_Values = Mapping[str, Sequence[str]]  # the values of every slot


class Sides(NamedTuple):
    """The two disjoint lists of one intent or slot, and what only the function calls train on beside the first."""

    train: list[str]
    test: list[str]
    calls: Sequence[str] = ()


SPEECH: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("commands.yaml").read_text(encoding="utf-8"))
PHRASES = {intent: Sides(**lists) for intent, lists in SPEECH["phrases"].items()}
SLOTS = {slot: Sides(**lists) for slot, lists in SPEECH["slots"].items()}
CHATTER = Sides(**SPEECH["chatter"])
INTENTS = tuple(sorted(PHRASES))
NUM_SPEAKERS = 20
MOST_CHATTER = 0.5  # the most talkative speaker starts every second command with something unrelated
FAVOURITES = 0.5  # Dirichlet concentration of a speaker's intents: a few of the intents make up most of what they say
_HABITS = ("opener", "polite", "closer", "filler", "chatter", "contraction", "abbreviation", "reorder")


@dataclass(frozen=True)
class Style:
    """How often a speaker does what: probabilities per command (``typo``: per word)."""

    habit: dict[str, float]
    typo: float
    openers: tuple[str, ...]
    fillers: tuple[str, ...]


def generate_intents(*, seed: int, **sizes: int) -> tuple[TextExamples, TextExamples, TextExamples]:
    """Generate the task: classes are equally frequent, ``groups`` is the speaker, test speakers are others."""
    return split_commands(_texts, seed=seed, **sizes)


def generate_prompts(*, seed: int, **sizes: int) -> tuple[PromptExamples, PromptExamples, PromptExamples]:
    """Generate commands as prompts, the names of their intents in words as responses."""
    train, validation, test = (
        PromptExamples(said.texts, said.labels, tuple(INTENTS[i].replace("_", " ") for i in said.labels), said.groups)
        for said in generate_intents(**sizes, seed=seed)
    )
    return train, validation, test


def split_commands(
    make: _Make[SomeExamples], *, seed: int, num_train: int = 1600, num_validation: int = 200, num_test: int = 400
) -> tuple[SomeExamples, SomeExamples, SomeExamples]:
    """Return training, validation and test examples, made of commands by ``make(side, count, rng, first_speaker)``."""
    # A few more than needed: the held-out slice takes its duplicates with it.
    pool = make("train", (num_train + num_validation) * 11 // 10 + 50, np.random.default_rng([seed, 10]), 0)
    rest, validation = hold_out(pool, num_validation, np.random.default_rng([seed, 11]))
    train = rest.subset(_balanced(rest.labels.astype(np.int64), num_train))
    test = make("test", num_test, np.random.default_rng([seed, 12]), NUM_SPEAKERS)
    return train, validation, test


@dataclass(frozen=True)
class Command:
    """A spoken command, what is meant, and who says it."""

    text: str
    label: int
    slots: dict[str, str]
    speaker: int


def _texts(side: Side, count: int, rng: np.random.Generator, first_speaker: int) -> TextExamples:
    found = draw_commands(side, count, rng, first_speaker, {name: getattr(SLOTS[name], side) for name in SLOTS})
    labels, speakers = np.array([[c.label, c.speaker] for c in found], dtype=np.int64).T
    return TextExamples(tuple(c.text for c in found), labels, groups=speakers)


def draw_commands(
    side: Side, count: int, rng: np.random.Generator, first_speaker: int, values: _Values, *, written: bool = True
) -> list[Command]:
    """Draw commands, labels in turn, said by who likes to; not ``written``: without typing errors and abbreviations."""
    styles = [_style(rng) for _ in range(NUM_SPEAKERS)]
    if not written:
        styles = [replace(style, typo=0.0, habit=style.habit | {"abbreviation": 0.0}) for style in styles]
    taste = rng.dirichlet(np.full(len(INTENTS), FAVOURITES), size=NUM_SPEAKERS) + 1e-3  # (speakers, intents)
    labels = rng.permutation(np.arange(count) % len(INTENTS))
    found = []
    for label in labels:
        weight = taste[:, label] / taste[:, label].sum()
        speaker = int(rng.choice(NUM_SPEAKERS, p=weight))
        command, slots = _fill(_pick(getattr(PHRASES[INTENTS[label]], side), rng), values, rng)
        text = _speak(command, styles[speaker], getattr(CHATTER, side), values, rng)
        found.append(Command(text, int(label), slots, first_speaker + speaker))
    return found


def _balanced(labels: np.ndarray, count: int) -> np.ndarray:
    """Indices of ``count`` examples, taking the classes in turn, in random order as given."""
    rank = np.empty(len(labels), dtype=np.int64)  # how many of the same class came before
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        rank[members] = np.arange(len(members))
    return np.sort(np.argsort(rank, kind="stable")[:count])


def _style(rng: np.random.Generator) -> Style:
    """Most habits are rare for most speakers and frequent for some: Beta(0.5, 1)."""
    habit = dict(zip(_HABITS, rng.beta(0.5, 1.0, size=len(_HABITS)).tolist(), strict=True))
    habit["chatter"] *= MOST_CHATTER
    openers = tuple(str(word) for word in rng.choice(SPEECH["openers"], size=2, replace=False))
    fillers = tuple(str(word) for word in rng.choice(SPEECH["fillers"], size=3, replace=False))
    return Style(habit, float(rng.beta(1.0, 15.0)), openers, fillers)


def _pick(options: Sequence[str], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]


def _fill(phrase: str, values: _Values, rng: np.random.Generator) -> tuple[str, dict[str, str]]:
    slots: dict[str, str] = {}

    def drawn(slot: re.Match[str]) -> str:
        slots[slot[1]] = _pick(values[slot[1]], rng)
        return slots[slot[1]]

    return re.sub(r"\{(\w+)\}", drawn, phrase), slots


def _speak(command: str, style: Style, chatter: Sequence[str], values: _Values, rng: np.random.Generator) -> str:
    does = {habit: bool(rng.random() < rate) for habit, rate in style.habit.items()}
    if does["polite"] and command.split()[0] not in SPEECH["questions"]:
        command = f"{_pick(SPEECH['polite'], rng)} {command}"
    for day in values["day"]:
        if does["reorder"] and command.endswith(f" {day}"):
            command = f"{day} {command.removesuffix(f' {day}')}"
    if does["chatter"]:
        command = f"{_fill(_pick(chatter, rng), values, rng)[0]}, {command}"
    if does["opener"]:
        command = f"{_pick(style.openers, rng)} {command}"
    if does["closer"]:
        command = f"{command} {_pick(SPEECH['closers'], rng)}"
    for habit in ("contraction", "abbreviation"):
        for long, short in SPEECH[f"{habit}s"].items() if does[habit] else ():
            command = re.sub(rf"\b{re.escape(long)}\b", short, command)
    words = command.split()
    if does["filler"]:
        words.insert(int(rng.integers(len(words))), _pick(style.fillers, rng))
    return " ".join(_mistype(word, rng) if rng.random() < style.typo else word for word in words)


def _mistype(word: str, rng: np.random.Generator) -> str:
    """Swap, drop or double one letter; short words stay readable because they are left alone."""
    if len(word) < 4:
        return word
    at = int(rng.integers(1, len(word) - 1))
    kind = int(rng.integers(3))
    if kind == 0:
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    return word[:at] + (word[at + 1 :] if kind == 1 else word[at] + word[at:])
