"""Causal language models: what is learned, what is scored, what travels."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel

from conf.compose import ConfigError, compose_config
from server_app.build import preflight
from tasks.data.batches import tokenise
from tasks.data.examples import PromptExamples
from tasks.data.load import TaskError, load_task
from tasks.export.huggingface import save_adapter
from tasks.models.build import build_base, build_model, describe_model
from tasks.models.lora import adapter_spec, trainable_parameters
from tasks.models.placement import place
from tasks.models.tokenizer import HashTokenizer, load_tokenizer
from tasks.scoring.evaluation import compute_metrics, evaluate, task_loss
from tasks.settings import ComputeSettings, LoraSettings, ModelError, ModelSettings
from tests.support.runs import rounds, run

PROMPTS = PromptExamples(
    ("wake me up at six", "stop", "play some jazz in the kitchen please"),
    np.array([0, 1, 0]),
    ("alarm set", "music stop", "music play"),
)
TINY = ModelSettings(name="tiny", max_tokens=24)
LORA = LoraSettings(r=4)
WHOLE = ComputeSettings(device="cpu", dtype="float32")  # by default bfloat16 on processors that multiply it
PLAIN = replace(WHOLE, fused_lora=False)


def model(seed: int = 0):
    return build_model(TINY, LORA, num_outputs=1, kind="causal", seed=seed)


def data():
    return tokenise(load_tokenizer(TINY), PROMPTS)


class TestBatches:
    def test_only_the_tokens_of_the_responses_are_asked_for(self):
        batch = data().batch([0, 1])
        ids, predict = batch.inputs["input_ids"], batch.inputs["predict"]
        words = HashTokenizer()
        expected = [words.encode([text]).input_ids[0][1:] for text in ("alarm set", "music stop")]  # words, end
        assert batch.labels.tolist() == expected[0] + expected[1]
        assert predict.sum(dim=1).tolist() == [3, 3]
        rows, columns = predict.nonzero(as_tuple=True)
        assert torch.equal(ids[rows, columns + 1], batch.labels)  # every position predicts the token after it

    def test_a_long_prompt_loses_its_beginning_and_keeps_its_response(self):
        cut, whole = (
            HashTokenizer(n).encode_responses(["one two three four five six seven"], ["yes"]) for n in (8, 50)
        )
        assert len(cut.input_ids[0]) == 8 and cut.input_ids[0] == whole.input_ids[0][-8:] and cut.response_start == [6]

    def test_a_response_longer_than_the_limit_is_cut_at_its_end(self):
        cut = HashTokenizer(max_tokens=6).encode_responses(["a prompt"], ["one two three four five six seven"])
        assert len(cut.input_ids[0]) == 6 and cut.response_start == [1]

    def test_subset(self):
        ours, theirs = data().subset([2, 0]), tokenise(load_tokenizer(TINY), PROMPTS.subset([2, 0]))
        assert ours.response_start.tolist() == theirs.response_start.tolist()
        assert torch.equal(ours.batch([0, 1]).labels, theirs.batch([0, 1]).labels)


class TestLoss:
    def test_against_the_library(self):
        """Ours equals the loss that transformers computes with everything but the responses masked out."""
        ours = build_model(TINY, LORA, num_outputs=1, kind="causal", seed=0, compute=WHOLE)
        batch = data().batch([0, 1, 2])
        with torch.no_grad():
            loss = task_loss(ours(**batch.inputs), batch.labels, "causal")
            ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"]
            labels = torch.full_like(ids, -100)
            rows, columns = batch.inputs["predict"].nonzero(as_tuple=True)
            labels[rows, columns + 1] = ids[rows, columns + 1]
            theirs = ours.base_model.model.encoder(input_ids=ids, attention_mask=mask, labels=labels).loss
        torch.testing.assert_close(loss, theirs)

    def test_the_prompt_is_not_learned(self):
        ours = model()
        batch = data().batch([0])
        logits = ours(**batch.inputs)
        assert logits.shape == (3, 4096)

    def test_padding_changes_nothing(self):
        loss, together = evaluate(model(), data(), batch_size=3)
        alone_loss, alone = evaluate(model(), data(), batch_size=1)
        np.testing.assert_allclose(together, alone, rtol=1e-5)
        assert loss == pytest.approx(alone_loss, rel=1e-6)


class TestScores:
    def test_teacher_forced_match_is_what_greedy_decoding_writes(self):
        """A model that has learned two of three responses: generating them says the same as one forward pass."""
        ours, known = model(), data().subset([0, 1])
        optimizer = torch.optim.Adam(trainable_parameters(ours).values(), lr=0.01)
        for _ in range(150):
            batch = known.batch([0, 1])
            optimizer.zero_grad()
            task_loss(ours(**batch.inputs), batch.labels, "causal").backward()
            optimizer.step()
        _, predictions = evaluate(ours, data())
        decoder = ours.base_model.model.encoder
        written = []
        for i in range(3):
            ids, start = data().input_ids[i].tolist(), int(data().response_start[i])
            prompt, response = ids[:start], ids[start:]
            for _ in response:
                with torch.no_grad():
                    prompt.append(int(decoder(torch.tensor([prompt])).logits[0, -1].argmax()))
            written.append(prompt[start:] == response)
        assert written == (predictions[:, 2] == 1).tolist()
        assert written[:2] == [True, True]

    def test_perplexity_is_the_exponential_of_the_loss(self):
        loss, predictions = evaluate(model(), data())
        scores = compute_metrics(("teacher_forced_match", "perplexity"), predictions, data().labels)
        assert scores["perplexity"] == pytest.approx(np.exp(loss), rel=1e-5)
        assert scores["teacher_forced_match"] == 0.0


class TestModel:
    def test_no_head_travels_and_the_description_agrees(self):
        built = model()
        spec = adapter_spec(built)
        assert spec.head == () and {m.name.rsplit(".", 1)[1] for m in spec.modules} == {"q_proj", "v_proj"}
        assert describe_model(TINY, LORA, 1, "causal").spec == spec
        assert set(trainable_parameters(built)) == {f"{m.name}.lora_{f}" for m in spec.modules for f in "AB"}

    def test_the_operation_count_is_that_of_pytorch(self):
        from torch.utils.flop_counter import FlopCounterMode

        built = build_model(TINY, LORA, num_outputs=1, kind="causal", compute=PLAIN)  # the counter knows no oneDNN
        built.base_model.model.encoder.set_attn_implementation("eager")
        batch = data().batch([0, 0, 0, 0])
        everywhere = batch.inputs | {"predict": torch.ones_like(batch.inputs["predict"])}
        with FlopCounterMode(display=False) as counter:
            built(**everywhere).sum().backward()
        tokens = batch.inputs["input_ids"].numel()
        ours = sum(describe_model(TINY, LORA, 1, "causal").flops.training(tokens=tokens, examples=4))
        assert counter.get_total_flops() <= ours <= 1.15 * counter.get_total_flops()

    def test_peft_loads_the_saved_adapter(self, tmp_path: Path):
        """With PEFT's own layers on both sides, to the last bit; the fused ones only round differently."""
        built = build_model(TINY, LORA, num_outputs=1, kind="causal", seed=3, compute=PLAIN)
        with torch.no_grad():
            for value in trainable_parameters(built).values():
                value.add_(0.05)
        save_adapter(built, tmp_path)
        loaded = PeftModel.from_pretrained(build_base(TINY, num_outputs=1, kind="causal"), tmp_path)
        np.testing.assert_array_equal(evaluate(loaded, data())[1], evaluate(built, data())[1])
        fused = place(loaded, WHOLE)
        np.testing.assert_allclose(evaluate(fused, data())[1], evaluate(built, data())[1], rtol=1e-4, atol=1e-5)
        assert 'kind="causal"' in (tmp_path / "README.md").read_text()

    def test_a_local_llama_with_its_own_tokenizer(self, tmp_path: Path):
        """What `model=hub model.path=folder` reads: any causal model, here one that was just written."""
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

        words = " ".join([*PROMPTS.texts, *PROMPTS.responses]).split()
        vocabulary = {word: i for i, word in enumerate(dict.fromkeys(["<unk>", "<end>", *words]))}
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<end>").save_pretrained(
            tmp_path
        )
        GPT2LMHeadModel(GPT2Config(vocab_size=len(vocabulary), n_embd=32, n_layer=2, n_head=2)).save_pretrained(
            tmp_path
        )
        settings = ModelSettings(name="hub", path=str(tmp_path), max_tokens=32)
        built = build_model(settings, LORA, num_outputs=1, kind="causal")
        assert describe_model(settings, LORA, 1, "causal").spec == adapter_spec(built)
        encoded = tokenise(load_tokenizer(settings), PROMPTS)
        assert [row[-1] for row in encoded.input_ids] == [vocabulary["<end>"]] * 3
        assert np.isfinite(evaluate(built, encoded)[0])

    def test_an_encoder_is_refused(self):
        with pytest.raises(ModelError, match="expected smollm2, tiny or hub for task=instruct.*found 'minilm'"):
            build_base(ModelSettings(), num_outputs=1, kind="causal")


class TestFourBits:
    def test_refused_without_gpu_or_library(self, tmp_path: Path):
        if torch.cuda.is_available():
            pytest.skip("this machine has a GPU")
        with pytest.raises(
            ModelError, match="^model.load_in_4bit: expected bitsandbytes and a CUDA GPU, found .*no CUDA GPU$"
        ):
            preflight(
                compose_config(f"task=instruct model=hub model.path='{_llama(tmp_path)}' model.load_in_4bit=true")
            )

    def test_refused_for_other_models(self):
        with pytest.raises(ModelError, match="expected false unless model=hub"):
            ModelSettings(name="minilm", load_in_4bit=True)

    def test_4bit_base_trains_on_a_gpu(self, tmp_path: Path):
        pytest.importorskip("bitsandbytes")
        if not torch.cuda.is_available():
            pytest.skip("needs a GPU")
        settings = ModelSettings(name="hub", path=_llama(tmp_path), max_tokens=24, load_in_4bit=True)
        built = build_model(settings, LORA, num_outputs=1, kind="causal")
        batch = data().batch([0, 1, 2]).to("cuda")
        task_loss(built(**batch.inputs).float(), batch.labels, "causal").backward()
        assert all(torch.isfinite(value.grad).all() for value in trainable_parameters(built).values())


def _llama(folder: Path) -> str:
    build_base(TINY, num_outputs=1, kind="causal").encoder.save_pretrained(folder)
    return str(folder)


class TestFiles:
    def write(self, folder: Path, rows: list[dict]) -> str:
        path = folder / "chat.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    def test_json_lines(self, tmp_path: Path):
        rows = [{"prompt": f"say {i}", "response": f"{i}", "who": i % 3} for i in range(40)]
        task = load_task("instruct", seed=0, train_file=self.write(tmp_path, rows), group_column="who")
        assert (len(task.train), len(task.validation), len(task.test)) == (29, 3, 8)
        assert task.kind == "causal" and task.primary_metric == "teacher_forced_match" and task.num_outputs == 1
        for part in (task.train, task.validation, task.test):
            assert all(text == f"say {answer}" for text, answer in zip(part.texts, part.responses, strict=True))
        assert set(task.train.groups) == {0, 1, 2}

    @pytest.mark.parametrize(
        ("rows", "options", "message"),
        [
            ([{"prompt": "a", "answer": "b"}] * 3, {}, "expected one of the columns .*'answer'.* found 'response'"),
            ([{"prompt": "a", "response": " "}] * 3, {}, "expected a response in every row, found none in rows 1, 2"),
            ([{"prompt": "a", "response": 5}] * 3, {}, "row 1: expected a text, found 5"),
            (
                [{"prompt": "a", "response": "b"}] * 3,
                {"text_columns": ["prompt"]},
                "the columns of prompt and response",
            ),
            ([{"prompt": "a", "response": "b"}] * 3, {"kind": "classification"}, "task.kind: expected causal or null"),
            (
                [{"prompt": str(i), "response": "b"} for i in range(9)],
                {"label_noise": 0.1},
                "expected 0 for a causal task",
            ),
        ],
    )
    def test_errors_are_one_clear_line(self, tmp_path: Path, rows, options, message):
        with pytest.raises(TaskError, match=message) as caught:
            load_task("instruct", seed=0, train_file=self.write(tmp_path, rows), **options)
        assert "\n" not in str(caught.value)

    def test_generated_examples_answer_with_the_intent(self):
        task = load_task("instruct", seed=0, train_limit=50, validation_limit=20, holdout=10)
        assert (len(task.train), len(task.validation), len(task.test)) == (50, 10, 20)
        assert len(set(task.train.responses)) == 12


@pytest.mark.parametrize("method", [["strategy=fedit"], ["allocator=fixed", "allocator.dropout_rate=0.25"]])
def test_a_federation_learns_to_answer(tmp_path: Path, method: list[str]) -> None:
    overrides = [
        "task=instruct",
        *method,
        "training.lr=2e-2",
        "training.local_steps=6",
        "network.total_bandwidth_hz=1e7",
    ]
    assert run(tmp_path, *overrides) == 0
    records = rounds(tmp_path)
    start = json.loads((tmp_path / "summary.json").read_text())["initial"]["eval"]
    assert records[-1]["eval"]["loss"] < 0.9 * start["loss"]
    assert records[-1]["eval"]["perplexity"] == pytest.approx(np.exp(records[-1]["eval"]["loss"]), rel=1e-4)
    assert not any(r["failures"] for r in records)


@pytest.mark.parametrize("method", ["strategy.name=fedex_lora", "strategy.name=flora"])
def test_methods_that_change_the_base_refuse_4_bits(tmp_path: Path, method: str) -> None:
    config = f"task=instruct model=hub model.path='{_llama(tmp_path)}' model.load_in_4bit=true {method}"
    with pytest.raises(ConfigError, match="model.load_in_4bit must be false with (fedex_lora|flora)"):
        preflight(compose_config(config))
