"""Talking to the model of a run: its chat template, several turns, the base beside it, and what it may not do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from typer.testing import CliRunner

from conf.compose import ConfigError
from fedlodrop.cli import cli
from fedlodrop.model.load import load_trained
from fedlodrop.model.predict import Chat, is_generated, predict, system_prompt
from tests.support.encoders import random_decoder
from tests.support.runs import run

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} <end> {% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)
WORDS = ["system", "user", "assistant", "be", "brief", "red", "green", *(f"\x1b[3{k}mword{k}" for k in range(20))]


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("taught")
    base = random_decoder(folder / "base", WORDS)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(base)
    tokenizer.chat_template = TEMPLATE
    tokenizer.add_special_tokens({"pad_token": "<end>"})
    tokenizer.save_pretrained(base)
    overrides = ("task=instruct", "model=hub", f"model.path={base}", "run.num_rounds=2", "training.lr=0.5")
    assert run(folder / "run", *overrides, "allocator=none", "network.total_bandwidth_hz=1e9") == 0
    return folder


def _by_hand(model: object, tokenizer: object, messages: list[dict[str, str]]) -> str:
    ids = tokenizer(  # type: ignore[operator]
        tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True),  # type: ignore[attr-defined]
        add_special_tokens=False,
        return_tensors="pt",
    )["input_ids"]
    start = ids.shape[1]
    with torch.inference_mode():
        while ids.shape[1] < start + 64 and (ids.shape[1] == start or ids[0, -1] != tokenizer.eos_token_id):  # type: ignore[attr-defined]
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)  # type: ignore[operator]
    return str(tokenizer.decode(ids[0, start:], skip_special_tokens=True))  # type: ignore[attr-defined]


def test_turns_go_through_the_template_and_the_base_answers_as_the_base(taught: Path) -> None:
    trained, base = load_trained(taught / "run"), str(taught / "base")
    alone, tokenizer = AutoModelForCausalLM.from_pretrained(base).eval(), PreTrainedTokenizerFast.from_pretrained(base)
    pieces: list[str] = []
    chat, messages = Chat(trained, "be brief", base=True), [{"role": "system", "content": "be brief"}]
    for text in ("red green", "green"):
        messages.append({"role": "user", "content": text})
        answer = chat.ask(text, pieces.append)
        assert answer == _by_hand(alone, tokenizer, messages)
        messages.append({"role": "assistant", "content": answer})
    assert "".join(pieces).split() == " ".join(m["content"] for m in messages if m["role"] == "assistant").split()
    first = Chat(trained, "").ask("red")
    assert first != Chat(trained, "", base=True).ask("red")  # two rounds at this rate moved it
    assert predict(trained, ["red"])[0][0][0].split() == first.split()[:64]


def test_a_model_that_was_taught_single_requests_gets_each_alone(taught: Path) -> None:
    trained = load_trained(taught / "run")
    chat, fresh = Chat(trained, "be brief", alone=True), Chat(trained, "be brief")
    chat.ask("red green")
    assert chat.ask("green") == fresh.ask("green")
    done = CliRunner().invoke(cli, ["chat", str(taught / "run"), "--system", "be brief"], input="red green\ngreen")
    assert done.output.splitlines()[-1].split() == fresh.turns[-1][1].encode("unicode_escape").decode().split()
    assert "every request stands alone" in done.output
    trained.config.task.dataset = "conversations/of-a-hub"
    assert not is_generated(trained) and not system_prompt(trained)


def test_the_command_streams_escaped_words_until_it_is_told_to_stop(taught: Path) -> None:
    for typed in ("red\n\n/new\ngreen\n/quit\nred\n", "red\ngreen"):
        done = CliRunner().invoke(cli, ["chat", str(taught / "run"), "--base"], input=typed)
        assert done.exit_code == 0, (done.output, done.exception)
        assert done.output.count("base: ") == done.output.count("trained: ") == 2
        assert "\x1b" not in done.output


def test_the_mask_of_an_example_is_that_of_the_template(taught: Path) -> None:
    """By hand: user, words, end, assistant, then the answer and the mark that ends it are learnt."""
    done = CliRunner().invoke(cli, ["explain", str(taught / "run"), "--example", "3"])
    assert done.exit_code == 0, (done.output, done.exception)
    rows = [line.split() for line in done.output.splitlines() if line.strip()[:1].isdigit()]
    words = [row[1].strip("'") for row in rows]
    learnt = [row[-1] == "learnt" for row in rows]
    start = words.index("assistant") + 1
    assert words[0] == "user" and words[start - 2] == words[-1] == "<end>"
    assert learnt == [k >= start for k in range(len(rows))] and start < len(rows)
    given = ["task=instruct", "model=hub", f"model.path={taught / 'base'}"]
    again = CliRunner().invoke(cli, ["explain", "--example", "3", *given])
    assert again.exit_code == 0 and "tokens are learnt" in again.output and "assistant" in again.output
    beyond = CliRunner().invoke(cli, ["explain", str(taught / "run"), "--example", "99999"])
    assert beyond.exit_code and "99999" in str(beyond.exception)


def test_other_runs_have_nothing_to_say(finished: Path) -> None:
    with pytest.raises(ConfigError, match="language model"):
        Chat(load_trained(finished))
