"""Conversations of every format: read, checked row by row, learnt where the assistant speaks and nowhere else."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.data.batches import Tokenised, explain_example, tokenise
from tasks.data.examples import PromptExamples
from tasks.data.load import TaskError, load_task
from tasks.data.tables import read_table
from tasks.data.texts import conversations, format_of, table_conversations
from tasks.models.files import model_source
from tasks.models.tokenizer import load_tokenizer
from tasks.settings import ModelError, ModelSettings
from tests.support.gguf import tiny_llama, write_gguf

ALPACA = {"instruction": "Add.", "input": "1 and 2", "output": "3"}
SHAREGPT = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}
MESSAGES = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yo"},
        {"role": "user", "content": "12?"},
        {"role": "assistant", "content": "No"},
        {"role": "user", "content": "never answered"},
    ]
}
TURNS = (("system", "Be brief."), ("user", "Hi"), ("assistant", "Yo"), ("user", "12?"), ("assistant", "No"))


def file_of(tmp_path: Path, rows: list[dict[str, Any]]) -> str:
    path = tmp_path / "chat.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def distinct(row: dict[str, Any], count: int = 10) -> list[dict[str, Any]]:
    return [json.loads(json.dumps(row).replace("Hi", f"Hi {i}").replace("Add.", f"Add {i}.")) for i in range(count)]


@pytest.mark.parametrize(
    ("row", "name", "response"),
    [(MESSAGES, "messages", "No"), (ALPACA, "Alpaca", "3"), (SHAREGPT, "ShareGPT", "Hello")],
)
def test_the_format_follows_from_the_columns(row: dict[str, Any], name: str, response: str, tmp_path: Path) -> None:
    task: Any = load_task(
        "instruct", seed=0, train_file=file_of(tmp_path, distinct(row)), text_columns=("prompt", "response")
    )
    assert task.format == name and len(task.train) + len(task.validation) + len(task.test) == 10
    assert set(task.train.responses) == {response}
    assert task.train.turns[0][-1] == ("assistant", response)
    if name == "Alpaca":
        assert task.train.turns[0][0][1].endswith("\n\n1 and 2")


@pytest.mark.parametrize(
    ("bad", "line"),
    [
        ({"messages": [{"role": "robot", "content": "x"}]}, "row 2: expected the role to be one of .*found 'robot'"),
        ({"messages": [{"content": "x"}]}, "row 2: expected turns with the keys 'role' and 'content'"),
        ({"messages": [{"role": "user", "content": None}]}, "row 2: expected a text as 'content', found None"),
        ({"messages": [{"role": "user", "content": "x"}]}, "row 2: expected a turn of the assistant"),
        ({"messages": "hello"}, "row 2: expected a list of turns"),
        ({"messages": [MESSAGES["messages"][2], MESSAGES["messages"][0], MESSAGES["messages"][4]]}, "row 2: .*system"),
    ],
)
def test_a_row_that_does_not_fit_is_one_line(bad: dict[str, Any], line: str, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=line) as caught:
        load_task("instruct", seed=0, train_file=file_of(tmp_path, [MESSAGES, bad]))
    assert "\n" not in str(caught.value)


@pytest.fixture
def chat_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelSettings:
    pytest.importorskip("gguf")
    model_source.cache_clear()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return ModelSettings(name="hub", gguf_file=str(write_gguf(tmp_path / "tiny.gguf", tiny_llama())), max_tokens=200)


def test_the_assistant_is_learnt_with_the_mark_that_ends_its_turn(chat_model: ModelSettings) -> None:
    tokenizer: Any = load_tokenizer(chat_model)
    data: Any = tokenise(tokenizer, conversations([TURNS, TURNS[1:3]]))
    assert data.pad_token_id == tokenizer.tokenizer.eos_token_id  # the mark that ends a turn also pads
    decode = tokenizer.tokenizer.decode
    text = (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYo<|im_end|>\n"
        "<|im_start|>user\n12?<|im_end|>\n<|im_start|>assistant\nNo<|im_end|>"
    )
    assert decode(data.input_ids[0]) == text
    assert decode(data.input_ids[0][data.targets[0]]) == "Yo<|im_end|>No<|im_end|>"  # by hand: no line break, no prompt
    assert decode(data.input_ids[0][data.response_start[0] :]) == "No<|im_end|>"
    batch = data.batch([0, 1])  # the second one is padded
    assert decode(batch.labels) == "Yo<|im_end|>No<|im_end|>Yo<|im_end|>"
    shifted = np.roll(batch.inputs["predict"].numpy(), 1, axis=1)
    assert decode(batch.inputs["input_ids"].numpy()[shifted]) == decode(batch.labels)  # predicted one position before


def test_what_is_too_long_loses_its_beginning_and_is_counted(chat_model: ModelSettings) -> None:
    tokenizer: Any = load_tokenizer(replace(chat_model, max_tokens=40))
    data: Any = tokenise(tokenizer, conversations([TURNS, TURNS[1:3]]))
    assert data.cut.tolist() == [True, False] and not data.response_cut.any()
    assert len(data.input_ids[0]) == 40
    assert tokenizer.tokenizer.decode(data.input_ids[0]).endswith("<|im_start|>assistant\nNo<|im_end|>")


def test_hashed_words_take_conversations_too() -> None:
    data = tokenise(load_tokenizer(ModelSettings(name="tiny")), conversations([TURNS]))
    assert isinstance(data, Tokenised) and data.targets is not None
    assert data.targets[0].sum() == 4  # two answers of one word and their ends
    assert data.subset([0]).targets is not None


def test_the_loss_mask_token_by_token(chat_model: ModelSettings) -> None:
    tokenizer, examples = load_tokenizer(chat_model), conversations([TURNS[1:3], (*TURNS[1:3], *TURNS[3:])])
    found = explain_example(examples, tokenizer, 1)
    assert "".join(text for text, _, _ in found) == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYo<|im_end|>\n"
        "<|im_start|>user\n12?<|im_end|>\n<|im_start|>assistant\nNo<|im_end|>"
    )
    # By hand: what the assistant says and the mark that ends its turn, which is the padding token here, and no more.
    learnt = [text for text, _, learnt in found if learnt]
    assert "".join(learnt) == "Yo<|im_end|>No<|im_end|>" and learnt.count("<|im_end|>") == 2
    words: Any = tokenizer
    assert [token for _, token, _ in found] == words.tokenizer("".join(text for text, _, _ in found))["input_ids"]
    assert found[-1] == ("<|im_end|>", words.tokenizer.eos_token_id, True)
    with pytest.raises(TaskError, match="from 0 to 1, found 2"):
        explain_example(examples, tokenizer, 2)
    texts: Any = load_task("intents", seed=0).train
    with pytest.raises(TaskError, match="prompts or conversations"):
        explain_example(texts, tokenizer, 0)


def test_the_loss_mask_of_hashed_words() -> None:
    found = explain_example(conversations([TURNS[1:3]]), load_tokenizer(ModelSettings(name="tiny")), 0)
    assert [learnt for _, _, learnt in found] == [False, False, False, True, True]  # start, Hi, end | Yo, end
    assert found[-1] == ("#2", 2, True)


GIVEN = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}Answer: {{ m['content'] }}\n{% else %}"
    "{{ m['role'] }}: {{ m['content'] }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Answer: {% endif %}"
)


@pytest.mark.parametrize("where", ["text", "file"])
def test_a_given_template_stands_in_place_of_the_models_own(
    where: str, chat_model: ModelSettings, tmp_path: Path
) -> None:
    (tmp_path / "given.jinja").write_text(GIVEN)
    given = GIVEN if where == "text" else str(tmp_path / "given.jinja")
    tokenizer: Any = load_tokenizer(replace(chat_model, chat_template=given))
    data: Any = tokenise(tokenizer, conversations([TURNS[1:]]))
    decode = tokenizer.tokenizer.decode
    assert decode(data.input_ids[0]) == "user: Hi\nAnswer: Yo\nuser: 12?\nAnswer: No\n<|im_end|>"
    # The template writes no end mark: the end of the last turn is learnt all the same.
    assert decode(data.input_ids[0][data.targets[0]]) == "Yo\nNo\n<|im_end|>"
    asked = PromptExamples(("Hi",), np.zeros(1), ("Yo",), system="Be brief.")
    assert decode(tokenise(tokenizer, asked).input_ids[0]) == "system: Be brief.\nuser: Hi\nAnswer: Yo\n<|im_end|>"


@pytest.mark.parametrize(
    ("given", "settings", "line"),
    [
        (
            "no/such.jinja",
            {},
            "model.chat_template: expected a file, or a template with {{ and }}, found 'no/such.jinja'",
        ),
        ("{{ messages", {}, "the chat template refuses a conversation"),
        ("{{ messages }}", {"name": "tiny", "gguf_file": None}, "model.chat_template: expected null unless"),
    ],
)
def test_a_template_that_cannot_be_used_is_one_line(
    given: str, settings: dict[str, Any], line: str, chat_model: ModelSettings
) -> None:
    with pytest.raises(ModelError, match=line) as caught:
        tokenise(load_tokenizer(replace(chat_model, chat_template=given, **settings)), conversations([TURNS]))
    assert "\n" not in str(caught.value)


def test_a_template_that_asks_otherwise_than_it_answers(chat_model: ModelSettings) -> None:
    """As of models that think: the question ends with a mark that a given answer does not show."""
    given = GIVEN.replace("{% if add_generation_prompt %}Answer: ", "{% if add_generation_prompt %}Answer: <think>")
    tokenizer: Any = load_tokenizer(replace(chat_model, chat_template=given))
    data: Any = tokenise(tokenizer, conversations([TURNS[1:3]]))
    assert tokenizer.tokenizer.decode(data.input_ids[0]) == "user: Hi\nAnswer: <think>Yo<|im_end|>"
    with pytest.raises(ModelError, match="changes earlier turns: conversations of one answer only"):
        tokenise(tokenizer, conversations([TURNS[1:]]))


def test_a_long_last_answer_stays_and_loses_its_end(chat_model: ModelSettings) -> None:
    tokenizer: Any = load_tokenizer(replace(chat_model, max_tokens=40))
    data: Any = tokenise(tokenizer, conversations([(*TURNS[1:4], ("assistant", "abcdefghij" * 6))]))
    assert data.cut.tolist() == [True] and data.response_cut.tolist() == [True]
    assert len(data.input_ids[0]) == 40 and data.response_start[0] == 10
    assert tokenizer.tokenizer.decode(data.input_ids[0][10:]) == ("abcdefghij" * 6)[:30]


@pytest.mark.parametrize(
    ("row", "turns"),
    [
        (SHAREGPT | {"system": "Be brief."}, (("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"))),
        (ALPACA | {"system": "Add."}, (("system", "Add."), ("user", "Add.\n\n1 and 2"), ("assistant", "3"))),
        ({"conversations": MESSAGES["messages"][1:3]}, (("user", "Hi"), ("assistant", "Yo"))),
    ],
)
def test_system_columns_and_keys_of_the_other_format(row: dict[str, Any], turns: Any, tmp_path: Path) -> None:
    """ShareGPT files with OpenAI's keys exist as well."""
    file = tmp_path / "chat.json"  # an array, as both formats are published
    file.write_text(json.dumps([row] * 10))
    (found,) = {
        chat for chat in table_conversations(read_table(file), name=format_of(read_table(file)), source="f").turns
    }
    assert found == turns


def test_prompt_and_completion_are_two_columns_too(tmp_path: Path) -> None:
    rows = [{"prompt": f"Hi {i}", "completion": "Yo"} for i in range(10)]
    task: Any = load_task("instruct", seed=0, train_file=file_of(tmp_path, rows), text_columns=("prompt", "response"))
    assert set(task.train.responses) == {"Yo"} and task.format == "prompt and response"
