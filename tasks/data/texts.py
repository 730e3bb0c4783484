"""Examples from the rows of a table: labelled texts, prompts with responses, or conversations in people's formats."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.data.examples import ChatExamples, PromptExamples, TaskError, TextExamples, Turn
from tasks.data.labels import class_labels, in_rows, number_labels
from tasks.data.tables import Table, codes, num_rows
from tasks.settings import Kind

_PAIR = ("prompt", "response")  # or prompt and completion, TRL's names
# What turns call their speakers: OpenAI's names and ShareGPT's.
_MESSAGE = ("role", "content", {role: role for role in ("system", "user", "assistant")})
_SHAREGPT = ("from", "value", {"human": "user", "user": "user", "gpt": "assistant", **_MESSAGE[2]})
_Row = Mapping[str, Any]


def table_examples(
    table: Table,
    source: str,
    *,
    text_columns: Sequence[str],
    label_column: str,
    kind: Kind,
    labels: Sequence[Any] | None = None,
    group_column: str | None = None,
    hint: str = "",
) -> tuple[TextExamples, tuple[Any, ...]]:
    """Turn a table, called ``source`` in errors, into labelled texts and their label values (none of a regression).

    One or two ``text_columns`` hold text, ``label_column`` whole numbers or names, or any number for a regression, and
    ``group_column`` who wrote an example. ``labels`` and ``hint`` are those of `class_labels`.
    """
    if not 1 <= len(text_columns) <= 2:
        wanted = f"one or two of {list(table)} in {source}"
        raise TaskError(f"task.text_columns: expected {wanted}, found {list(text_columns)}")
    _require_columns(table, source, text_columns, label_column=label_column, group_column=group_column)
    for column in text_columns:
        if missing := [row for row, value in enumerate(table[column]) if value is None]:
            found = f"found {len(missing)} missing ({in_rows(missing)})"
            raise TaskError(f"{source}, column {column!r}: expected a text in every row, {found}")
    texts = [tuple(str(value) for value in table[column]) for column in text_columns]
    where = f"{source}, column {label_column!r}"
    indices: npt.NDArray[np.generic]
    values: tuple[Any, ...]
    if kind == "regression":
        indices, values = number_labels(table[label_column], where), ()
    else:
        indices, values = class_labels(table[label_column], where, labels, hint)
    groups = None if group_column is None else codes(table[group_column])
    return TextExamples(texts[0], indices, texts[1] if len(texts) > 1 else None, groups), values


def table_prompts(
    table: Table,
    source: str,
    *,
    columns: Sequence[str] | None = None,
    label_column: str | None = None,
    group_column: str | None = None,
) -> PromptExamples:
    """Turn the rows of a table, called ``source`` in errors, into prompts and responses, from these ``columns``.

    A Dirichlet partition skews by ``label_column``; None puts every example into one class.
    """
    wanted = tuple(columns or _PAIR)
    if wanted == _PAIR and "response" not in table and "completion" in table:
        wanted = ("prompt", "completion")
    if len(wanted) != 2:
        raise TaskError(f"task.text_columns: expected the columns of prompt and response, found {list(wanted)}")
    _require_columns(table, source, wanted, label_column=label_column, group_column=group_column)
    for column in wanted:
        for row, value in enumerate(table[column]):
            if not isinstance(value, str):
                raise TaskError(f"{source}, column {column!r}, row {row + 1}: expected a text, found {value!r}")
    prompts, responses = (tuple(table[column]) for column in wanted)
    if empty := [row for row, text in enumerate(responses) if not text.strip()]:
        found = f"found none in {in_rows(empty)}"
        raise TaskError(f"{source}, column {wanted[1]!r}: expected a response in every row, {found}")
    labels = np.zeros(len(prompts), dtype=np.int64) if label_column is None else codes(table[label_column])
    return PromptExamples(prompts, labels, responses, None if group_column is None else codes(table[group_column]))


def _require_columns(table: Table, source: str, texts: Sequence[str] = (), **others: str | None) -> None:
    """Refuse a table without rows, or without one of the columns that the keys of the configuration name."""
    named = [*(("text_columns", column) for column in texts), *others.items()]
    missing = [(key, wanted) for key, wanted in named if wanted is not None and wanted not in table]
    if missing:
        said = [f"task.{key}: found {wanted!r}" for key, wanted in missing]
        said[0] = said[0].replace("found", f"expected one of the columns {list(table)} of {source}, found", 1)
        raise TaskError("; ".join(said))
    if not num_rows(table):
        raise TaskError(f"{source}: expected at least one example, found an empty table")


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


def table_conversations(table: Table, source: str, *, name: str, group_column: str | None = None) -> ChatExamples:
    """Turn a table of the format ``name`` into conversations; `TaskError` names the first row that does not fit."""
    _require_columns(table, source, group_column=group_column)
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
