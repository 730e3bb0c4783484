"""An offline task: commands to an on-device assistant, each speaker with a style of their own.

A command is a phrasing of its intent with slot values filled in, spoken in a style: politeness, fillers, contractions,
word order, unrelated chatter before the command, abbreviations, typing errors. Styles and favourite intents differ
between speakers, so a partition by speaker is non-IID in both words and labels. Test commands use phrasings, slot
values and speakers that occur nowhere in training: the distance between training and test loss is a true one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from tasks.data.examples import TaskError, TextExamples, hold_out
from tasks.data.intent_phrases import CHATTER, PHRASES, SLOTS, Side

INTENTS = tuple(sorted(PHRASES))
NUM_SPEAKERS = 20
MOST_CHATTER = 0.5  # the most talkative speaker starts every second command with something unrelated
FAVOURITES = 0.5  # Dirichlet concentration of a speaker's intents: a few of the intents make up most of what they say

_OPENERS = ("hey", "ok", "listen", "hello", "assistant", "right", "so", "now then")
_POLITE = (
    "please",
    "could you",
    "would you",
    "can you please",
    "i would like you to",
    "do me a favour and",
    "be so kind and",
)
_FILLERS = ("um", "uh", "well", "you know", "like", "erm", "i mean", "hmm")
_CLOSERS = ("please", "thanks", "thank you", "if you can", "right now", "when you have a second", "ok", "cheers")
_CONTRACTIONS = (
    ("i am", "i'm"),
    ("it is", "it's"),
    ("what is", "what's"),
    ("i have to", "i gotta"),
    ("want to", "wanna"),
    ("do not", "don't"),
    ("i would", "i'd"),
    ("going to", "gonna"),
    ("when is", "when's"),
    ("there is", "there's"),
    ("let me", "lemme"),
    ("that is", "that's"),
)
_ABBREVIATIONS = (
    ("you", "u"),
    ("please", "pls"),
    ("tomorrow", "tmrw"),
    ("message", "msg"),
    ("to", "2"),
    ("for", "4"),
    ("minutes", "min"),
    ("are", "r"),
    ("thanks", "thx"),
    ("tonight", "2nite"),
    ("and", "n"),
    ("appointment", "appt"),
    ("weekend", "wkend"),
)

_HABITS = ("opener", "polite", "closer", "filler", "chatter", "contraction", "abbreviation", "reorder")
_QUESTIONS = (
    "what",
    "when",
    "which",
    "who",
    "how",
    "do",
    "did",
    "is",
    "it",
    "am",
    "are",
    "can",
    "has",
    "will",
    "should",
    "i",
    "any",
)


@dataclass(frozen=True)
class Style:
    """How often a speaker does what: probabilities per command (``typo``: per word)."""

    habit: dict[str, float]
    typo: float
    openers: tuple[str, ...]
    fillers: tuple[str, ...]


def generate_intents(
    *, num_train: int = 1600, num_validation: int = 200, num_test: int = 400, seed: int
) -> tuple[TextExamples, TextExamples, TextExamples]:
    """Generate the task; the classes are equally frequent.

    Parameters
    ----------
    num_train, num_validation, num_test : int
        Commands of each set. Validation is a random slice of the training speakers' commands; its texts are not trained
        on.
    seed : int
        Seed of everything.

    Returns
    -------
    tuple of TextExamples
        Training, validation and test commands; ``groups`` is the speaker, test speakers have numbers of their own.

    Raises
    ------
    TaskError
        If the training or the test set would be empty.
    """
    for name, size, least in (
        ("train_limit", num_train, 1),
        ("holdout", num_validation, 0),
        ("validation_limit", num_test, 1),
    ):
        if size < least:
            raise TaskError(f"task.{name}: expected at least {least} generated commands, found {size}")
    # A few more than needed: the held-out slice takes its duplicates with it.
    pool = _commands("train", (num_train + num_validation) * 11 // 10 + 50, np.random.default_rng([seed, 10]), 0)
    rest, validation = hold_out(pool, num_validation, np.random.default_rng([seed, 11]))
    train = rest.subset(_balanced(rest.labels.astype(np.int64), num_train))
    test = _commands("test", num_test, np.random.default_rng([seed, 12]), NUM_SPEAKERS)
    return train, validation, test


def _commands(side: Side, count: int, rng: np.random.Generator, first_speaker: int) -> TextExamples:
    """Draw ``count`` commands, labels in turn, each spoken by somebody who likes to ask for it."""
    styles = [_style(rng) for _ in range(NUM_SPEAKERS)]
    taste = rng.dirichlet(np.full(len(INTENTS), FAVOURITES), size=NUM_SPEAKERS) + 1e-3  # (speakers, intents)
    labels = rng.permutation(np.arange(count) % len(INTENTS))
    texts, speakers = [], np.empty(count, dtype=np.int64)
    for i, label in enumerate(labels):
        weight = taste[:, label] / taste[:, label].sum()
        speaker = int(rng.choice(NUM_SPEAKERS, p=weight))
        speakers[i] = first_speaker + speaker
        texts.append(
            _speak(_fill(_pick(getattr(PHRASES[INTENTS[label]], side), rng), side, rng), styles[speaker], side, rng)
        )
    return TextExamples(tuple(texts), labels.astype(np.int64), groups=speakers)


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
    openers = tuple(str(word) for word in rng.choice(_OPENERS, size=2, replace=False))
    fillers = tuple(str(word) for word in rng.choice(_FILLERS, size=3, replace=False))
    return Style(habit, float(rng.beta(1.0, 15.0)), openers, fillers)


def _pick(options: tuple[str, ...], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]


def _fill(phrase: str, side: Side, rng: np.random.Generator) -> str:
    return re.sub(r"\{(\w+)\}", lambda slot: _pick(getattr(SLOTS[slot.group(1)], side), rng), phrase)


def _speak(command: str, style: Style, side: Side, rng: np.random.Generator) -> str:
    """Say a command in a style."""
    does = {habit: bool(rng.random() < rate) for habit, rate in style.habit.items()}
    if does["polite"] and command.split()[0] not in _QUESTIONS:  # nobody says "please what is the weather"
        command = f"{_pick(_POLITE, rng)} {command}"
    for day in getattr(SLOTS["day"], side):
        if does["reorder"] and command.endswith(f" {day}"):
            command = f"{day} {command.removesuffix(f' {day}')}"
    if does["chatter"]:
        command = f"{_fill(_pick(getattr(CHATTER, side), rng), side, rng)}, {command}"
    if does["opener"]:
        command = f"{_pick(style.openers, rng)} {command}"
    if does["closer"]:
        command = f"{command} {_pick(_CLOSERS, rng)}"
    if does["contraction"]:
        command = _replace(command, _CONTRACTIONS)
    if does["abbreviation"]:
        command = _replace(command, _ABBREVIATIONS)
    words = command.split()
    if does["filler"]:
        words.insert(int(rng.integers(len(words))), _pick(style.fillers, rng))
    return " ".join(_mistype(word, rng) if rng.random() < style.typo else word for word in words)


def _replace(text: str, table: tuple[tuple[str, str], ...]) -> str:
    for long, short in table:
        text = re.sub(rf"\b{re.escape(long)}\b", short, text)
    return text


def _mistype(word: str, rng: np.random.Generator) -> str:
    """Swap, drop or double one letter; short words stay readable because they are left alone."""
    if len(word) < 4:
        return word
    at = int(rng.integers(1, len(word) - 1))
    kind = int(rng.integers(3))
    if kind == 0:
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    return word[:at] + (word[at + 1 :] if kind == 1 else word[at] + word[at:])
