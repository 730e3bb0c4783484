"""What does not fit into `model.max_tokens` is counted, said and never scored; marks of a tokenizer stand where they belong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tasks.data.batches import Tokenised, data_notes, tokenise
from tasks.data.examples import PromptExamples, TextExamples
from tasks.data.load import load_task
from tasks.models.tokenizer import HashTokenizer, HubTokenizer, TextTokenizer, load_tokenizer
from tasks.scoring.evaluation import evaluate
from tasks.settings import ModelSettings
from tests.support.runs import run

WORDS = [f"w{i}" for i in range(60)]
BOS, EOS, UNK = 1, 2, 0


def _hub(template: str | None, max_tokens: int = 16, eos: str | None = "</s>") -> HubTokenizer:
    """Return a word tokenizer that puts marks round a text as ``template`` says."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["<unk>", "<s>", "</s>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if template:
        marks = [("<s>", BOS), ("</s>", EOS)]
        tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=marks)
    options = {
        "bos_token": "<s>",
        "pad_token": "<unk>",
        "additional_special_tokens": ["</s>"],
        **({"eos_token": eos} if eos else {}),
    }
    return HubTokenizer(PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", **options), max_tokens)


def _ids(*numbers: int) -> list[int]:
    return [number + 3 for number in numbers]  # words follow the three marks


def _prompts(*pairs: tuple[str, str]) -> PromptExamples:
    prompts, responses = zip(*pairs, strict=True)
    return PromptExamples(prompts, np.zeros(len(prompts), dtype=np.int64), responses)


def _words(start: int, stop: int) -> str:
    return " ".join(WORDS[start:stop])


class TestMarks:
    @pytest.mark.parametrize(
        ("template", "first"), [(None, []), ("<s> $A", [BOS]), ("$A </s>", []), ("<s> $A </s>", [BOS])]
    )
    @pytest.mark.parametrize("prompt", ["w1 w2", "<s> w1 w2"])
    @pytest.mark.parametrize("response", ["w5 w6", "w5 w6 </s>", "w5 w6</s>"])
    def test_each_stands_once_and_in_its_place(self, template: Any, first: Any, prompt: str, response: str) -> None:
        encoded = _hub(template).encode_responses([prompt], [response])
        start = [BOS] if prompt.startswith("<s>") else first
        assert encoded.input_ids == [[*start, *_ids(1, 2), *_ids(5, 6), EOS]]
        assert encoded.response_start == [len(start) + 2]

    def test_without_a_name_for_the_end_the_mark_that_the_tokenizer_adds_is_the_end(self) -> None:
        encoded = _hub("<s> $A </s>", eos=None).encode_responses(["w1"], ["w5"])
        assert encoded.input_ids == [[BOS, *_ids(1), *_ids(5), EOS]]

    def test_an_empty_prompt_is_its_mark(self) -> None:
        encoded = _hub("<s> $A </s>").encode_responses([""], ["w5"])
        assert encoded.input_ids == [[BOS, *_ids(5), EOS]] and encoded.response_start == [1]


class TestRoom:
    @pytest.mark.parametrize(("words", "answer"), [(30, 20), (30, 5), (3, 30), (60, 60), (1, 60), (12, 11)])
    @pytest.mark.parametrize("limit", [4, 8, 16, 31])
    def test_the_answer_comes_first_and_the_prompt_keeps_a_quarter(self, words: int, answer: int, limit: int) -> None:
        tokenizer = _hub("<s> $A </s>", limit)
        prompt, response = _words(0, words), _words(0, answer)
        encoded = tokenizer.encode_responses([prompt], [response])
        whole_prompt, whole_response = [BOS, *_ids(*range(words))], [*_ids(*range(answer)), EOS]
        (row,), (start,) = encoded.input_ids, encoded.response_start
        kept, written = row[:start], row[start:]
        assert len(row) <= limit and written == whole_response[: len(written)]
        assert start >= min(limit // 4, len(whole_prompt))
        if len(written) < len(whole_response):  # the prompt has no more than its due
            assert start == min(limit // 4, len(whole_prompt)) and len(row) == limit
        assert kept[-1] == whole_prompt[-1]  # the end of a prompt is nearest to the answer
        assert start == 1 or (kept[0] == BOS and kept[1:] == whole_prompt[1 - start :])
        assert encoded.response_cut == [len(written) < len(whole_response)]
        assert encoded.cut == [start < len(whole_prompt)]

    @pytest.mark.parametrize("tokenizer", [HashTokenizer(8), _hub("<s> $A </s>", 8)], ids=["words", "hub"])
    def test_cut_texts_are_counted_too(self, tokenizer: TextTokenizer) -> None:
        texts, pairs = ("w1 w2", _words(0, 9), "w1 w2 w3 w4 w5 w6"), ("w1", "w2", _words(0, 9))
        assert tokenise(tokenizer, TextExamples(texts, np.zeros(3))).cut.tolist() == [False, True, False]
        both = tokenise(tokenizer, TextExamples(texts, np.zeros(3), pairs))
        assert both.cut.tolist() == [False, True, True] and both.subset([2, 0]).cut.tolist() == [True, False]


class Oracle(torch.nn.Module):
    """Predicts every token rightly."""

    kind = "causal"

    def __init__(self) -> None:
        super().__init__()
        self.one = torch.nn.Parameter(torch.ones(1))

    def forward(self, input_ids: torch.Tensor, predict: torch.Tensor, **_: Any) -> torch.Tensor:
        answers = input_ids.roll(-1, dims=1)[predict]
        return torch.nn.functional.one_hot(answers, 4096).float() * 50 * self.one


def test_a_cut_answer_is_never_a_match() -> None:
    examples = _prompts((_words(0, 20), "w1"), ("w1", _words(0, 20)), ("w1", "w2"), ("w3", _words(0, 13)))
    for tokenizer in (HashTokenizer(12), _hub("<s> $A </s>", 12)):
        data = tokenise(tokenizer, examples)
        assert data.response_cut.tolist() == [False, True, False, True]
        _, scores = evaluate(Oracle(), data, batch_size=3)
        assert scores[:, 2].tolist() == [1, 0, 1, 0]
        _, scores = evaluate(Oracle(), data.subset([3, 2]), batch_size=1)
        assert scores[:, 2].tolist() == [0, 1]


class TestNotes:
    def _notes(self, train: Any, test: Any, max_tokens: int) -> list[str]:
        tokenizer = HashTokenizer(max_tokens)
        parts = {"training": tokenise(tokenizer, train), "test": tokenise(tokenizer, test)}
        return data_notes(train, test, parts, max_tokens)

    def test_nothing_is_said_where_all_fits(self) -> None:
        task = load_task("instruct", seed=0)
        assert self._notes(task.train, task.test, 128) == []

    def test_prompts_and_answers_are_counted_apart(self) -> None:
        train = _prompts(("a b c d e f g h i j", "k"), ("a", "b"), ("a", "c d e f g h i j k l m"))
        notes = self._notes(train, _prompts(("x", "y")), 12)
        assert len(notes) == 1 and "of 3 training examples 2 are longer than model.max_tokens=12" in notes[0]
        assert "1 lose a part of their prompt, 1 the end of their answer (never a match then)" in notes[0]

    def test_texts(self) -> None:
        short, long = (TextExamples((text,) * 4, np.arange(4)) for text in ("a", "a b c d e f g h"))
        assert self._notes(short, long, 8) == [
            "of 4 test examples 4 are longer than model.max_tokens=8 and lose their end; raise it if the model can"
        ]

    def test_a_test_set_that_was_trained_on(self) -> None:
        examples = TextExamples(tuple(f"text {i}" for i in range(40)), np.arange(40))
        (note,) = self._notes(examples.subset(range(36)), examples, 32)
        assert "36 of 40 test examples are also training examples" in note
        assert self._notes(examples.subset(range(39)), examples.subset([39]), 32) == []

    def test_a_test_file_of_one_label(self) -> None:
        train, test = (
            TextExamples(tuple(f"{name} {i}" for i in range(9)), labels)
            for name, labels in (("a", np.arange(9.0)), ("b", np.full(9, -1.0)))
        )
        (note,) = self._notes(train, test, 32)
        assert "all 9 test examples have the same label" in note


def test_a_run_says_it_first_and_keeps_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from conf.compose import compose_config
    from fedlodrop.report.page import build_report
    from server_app.build import preflight

    table = tmp_path / "chat.jsonl"
    rows = [{"prompt": f"say {i} " + "so " * 30, "response": "yes " * (5 + 20 * (i % 2))} for i in range(160)]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    overrides = [
        "task=instruct",
        f"task.train_file='{table}'",
        f"task.validation_file='{table}'",
        "model.max_tokens=16",
    ]
    said: list[str] = []
    preflight(compose_config(" ".join(["model=tiny", *overrides])), said.append)
    assert any("test examples are also training examples" in line for line in said)
    assert any("test examples" in line and "max_tokens=16" in line for line in said)
    assert run(tmp_path / "run", *overrides, "run.num_rounds=1") == 0
    notes = json.loads((tmp_path / "run" / "summary.json").read_text())["data_notes"]
    assert any("max_tokens=16" in note and "test" in note for note in notes)
    page = build_report([tmp_path / "run"])
    assert all(note[1:].split(":")[0] in page for note in notes)


def test_the_default_tokenizer_of_a_hub_model_is_counted(tmp_path: Path) -> None:
    _hub("<s> $A").tokenizer.save_pretrained(tmp_path)
    tokenizer = load_tokenizer(ModelSettings(name="hub", path=str(tmp_path), max_tokens=8))
    data = tokenise(tokenizer, _prompts((_words(0, 30), _words(0, 3)), ("w1", "w2")))
    assert (
        isinstance(data, Tokenised)
        and data.cut.tolist() == [True, False]
        and data.response_cut.tolist() == [False, False]
    )
