"""Conversations in the formats that people have: which one a table is in follows from its columns."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tasks.data.examples import ChatExamples, TaskError, Turn
from tasks.data.tables import Table, codes, num_rows

# What turns call their speakers: OpenAI's names and ShareGPT's.
_MESSAGE = ("role", "content", {role: role for role in ("system", "user", "assistant")})
_SHAREGPT = ("from", "value", {"human": "user", "user": "user", "gpt": "assistant", **_MESSAGE[2]})
_Row = Mapping[str, Any]


def _messages(row: _Row) -> list[Turn]:
    return [_turn(item, *_MESSAGE) for item in _listed(row["messages"])]


def _sharegpt(row: _Row) -> list[Turn]:
    turns = _listed(row["conversations"])
    keys = _MESSAGE if isinstance(turns[0], Mapping) and "role" in turns[0] else _SHAREGPT
    return _system(row) + [_turn(item, *keys) for item in turns]


def _alpaca(row: _Row) -> list[Turn]:
    asked = [_text(row["instruction"], "instruction"), _text(row.get("input") or "", "input")]
    turns = [("user", "\n\n".join(part for part in asked if part)), ("assistant", _text(row["output"], "output"))]
    return _system(row) + turns


def _system(row: _Row) -> list[Turn]:
    return [("system", _text(row["system"], "system"))] if row.get("system") else []


_FORMATS: dict[str, tuple[tuple[str, ...], Callable[[_Row], list[Turn]]]] = {
    "messages": (("messages",), _messages),
    "ShareGPT": (("conversations",), _sharegpt),
    "Alpaca": (("instruction", "output"), _alpaca),
}


def format_of(table: Table) -> str | None:
    """Return the format whose columns a table has: ``messages``, ``ShareGPT`` or ``Alpaca``; None for any other."""
    return next((name for name, (columns, _) in _FORMATS.items() if all(column in table for column in columns)), None)


def table_conversations(table: Table, *, name: str, source: str, group_column: str | None = None) -> ChatExamples:
    """Turn a table of the format ``name`` into conversations; `TaskError` names the first row that does not fit."""
    if group_column is not None and group_column not in table:
        raise TaskError(
            f"task.group_column: expected one of the columns {list(table)} of {source}, found {group_column!r}"
        )
    if not num_rows(table):
        raise TaskError(f"{source}: expected at least one conversation, found an empty table")
    read, found = _FORMATS[name][1], []
    for number in range(num_rows(table)):
        try:
            found.append(_checked(read({column: values[number] for column, values in table.items()})))
        except ValueError as error:
            raise TaskError(f"{source}, row {number + 1}: {error}") from error
    groups = None if group_column is None else codes(table[group_column])
    return conversations(found, groups=groups)


def conversations(turns: Sequence[Sequence[Turn]], groups: Any = None) -> ChatExamples:
    """Return conversations as examples; ``texts`` are what users say, ``responses`` the last answers."""
    said = tuple("\n".join(text for role, text in chat if role != "assistant") for chat in turns)
    answers = tuple(chat[-1][1] for chat in turns)
    return ChatExamples(said, np.zeros(len(said), dtype=np.int64), answers, groups, turns=tuple(map(tuple, turns)))


def _checked(turns: list[Turn]) -> list[Turn]:
    """Drop what follows the last answer, and refuse what no template can show."""
    while turns and turns[-1][0] != "assistant":
        turns = turns[:-1]
    if not turns:
        raise ValueError("expected a turn of the assistant to learn, found none")
    if any(role == "system" for role, _ in turns[1:]):
        raise ValueError("expected a system prompt at the beginning only, found one later")
    return turns


def _listed(value: Any) -> list[Any]:
    if not isinstance(value, list | tuple | np.ndarray) or not len(value):
        raise ValueError(f"expected a list of turns, found {value!r}")
    return list(value)


def _turn(item: Any, role: str, content: str, roles: Mapping[str, str]) -> Turn:
    if not isinstance(item, Mapping) or role not in item or content not in item:
        raise ValueError(f"expected turns with the keys {role!r} and {content!r}, found {item!r:.100}")
    if item[role] not in roles:
        raise ValueError(f"expected the {role} to be one of {', '.join(roles)}, found {item[role]!r}")
    return roles[item[role]], _text(item[content], content)


def _text(value: Any, key: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected a text as {key!r}, found {value!r:.100}")
    return value
