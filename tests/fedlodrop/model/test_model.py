"""A run as a model: the exported folders give the same outputs as the model that was trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from conf.compose import ConfigError
from conf.convert import model_settings
from fedlodrop.cli import cli
from fedlodrop.commands.results import export as export_command
from fedlodrop.commands.results import predict as predict_command
from fedlodrop.model.export import export
from fedlodrop.model.load import load_trained
from fedlodrop.model.predict import predict
from server_app.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from tasks.export.huggingface import UNKNOWN_LICENSE, base_license
from tasks.models.build import build_base, describe_model
from tasks.settings import LoraSettings, ModelSettings
from tests.support.encoders import random_decoder
from tests.support.gguf import tiny_llama, write_gguf
from tests.support.runs import run

TEXTS = ["turn the light off", "wake me up at seven tomorrow"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    assert run(folder, "run.num_rounds=2", "training.lr=0.01", "tracking=none") == 0
    return folder


@pytest.mark.parametrize("to", ["peft", "merged"])
def test_whoever_may_read_new_files_may_read_exported_weights(finished: Path, tmp_path: Path, to: str) -> None:
    (tmp_path / "plain").touch()
    usual = (tmp_path / "plain").stat().st_mode
    export(finished, to, tmp_path / "out")
    files = [
        path for folder in (tmp_path / "out", finished / "adapter") for path in folder.rglob("*") if path.is_file()
    ]
    assert len(files) > 4
    assert {path.name: path.stat().st_mode for path in files if path.stat().st_mode != usual} == {}


def _inputs(folder: Path) -> dict[str, torch.Tensor]:
    encoded = load_trained(folder).tokenizer.encode(TEXTS)
    assert encoded.token_types is not None
    width = max(len(row) for row in encoded.input_ids)

    def padded(rows: list[list[int]], value: int = 0) -> torch.Tensor:
        return torch.tensor([row + [value] * (width - len(row)) for row in rows])

    mask = padded([[1] * len(row) for row in encoded.input_ids])
    return {
        "input_ids": padded(encoded.input_ids),
        "attention_mask": mask,
        "token_type_ids": padded(encoded.token_types),
    }


def _trained_logits(folder: Path) -> torch.Tensor:
    with torch.inference_mode():
        return load_trained(folder).model(**_inputs(folder)).clone()


def _merged_logits(exported: Path, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Compute the outputs from the files alone, as the model card says."""
    encoder, head = AutoModel.from_pretrained(exported).eval(), load_file(exported / "head.safetensors")
    with torch.inference_mode():
        hidden = encoder(**inputs).last_hidden_state
        mask = inputs["attention_mask"].unsqueeze(-1)
        return (hidden * mask).sum(1) / mask.sum(1) @ head["weight"].T + head["bias"]


def test_a_peft_folder_gives_the_same_outputs(finished: Path, tmp_path: Path) -> None:
    export(finished, "peft", tmp_path / "out")
    trained = load_trained(finished)
    base = build_base(model_settings(trained.config), num_outputs=12)
    model = PeftModel.from_pretrained(base, str(tmp_path / "out")).eval()
    with torch.inference_mode():
        torch.testing.assert_close(model(**_inputs(finished)), _trained_logits(finished))
    card = (tmp_path / "out" / "README.md").read_text()
    assert "license: apache-2.0" in card and "base_model:" in card


def test_a_merged_folder_needs_no_adapter(finished: Path, tmp_path: Path) -> None:
    export(finished, "merged", tmp_path / "out")
    assert not [name for name in load_file(tmp_path / "out" / "model.safetensors") if "lora" in name]
    torch.testing.assert_close(
        _merged_logits(tmp_path / "out", _inputs(finished)), _trained_logits(finished), atol=1e-5, rtol=1e-5
    )
    head = json.loads((tmp_path / "out" / "head.json").read_text())
    assert head["labels"][0] == "alarm_set" and len(head["labels"]) == 12


def test_a_changed_base_is_merged_and_refused_as_an_adapter(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    trained = load_trained(folder)
    spec = describe_model(model_settings(trained.config), LoraSettings(), 12).spec
    saved = load_checkpoint(folder, spec)
    module = next(module for module in spec.modules if "value" in module.name)
    shape = (saved.state.lora_B[module.name].shape[0], saved.state.lora_A[module.name].shape[1])
    saved.state.base[module.name] = np.random.default_rng(0).normal(0, 0.5, shape).astype(np.float32)
    save_checkpoint(folder, Checkpoint(saved.server_round, saved.sim_time_s, saved.state, saved.initial))
    export(folder, "merged", tmp_path / "out")
    changed = _trained_logits(folder)
    assert (changed - _trained_logits(finished)).abs().max() > 1e-3
    torch.testing.assert_close(_merged_logits(tmp_path / "out", _inputs(folder)), changed, atol=1e-5, rtol=1e-5)
    with pytest.raises(ConfigError, match="--to merged"):
        export(folder, "peft", tmp_path / "adapter")


@pytest.mark.parametrize("method", ["fedex_lora", "flora"])
def test_methods_that_change_the_base_are_merged_as_trained(method: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    wide = ("network.total_bandwidth_hz=1e9", "budget.deadline_s=1e4", "budget.energy_j=1e6")
    assert run(folder, f"strategy={method}", "run.num_rounds=2", "training.lr=0.05", "tracking=none", *wide) == 0
    assert (folder / "base_delta.safetensors").exists()
    export(folder, "merged", tmp_path / "out")
    trained, inputs = _trained_logits(folder), _inputs(folder)
    torch.testing.assert_close(_merged_logits(tmp_path / "out", inputs), trained, atol=1e-5, rtol=1e-5)
    with pytest.raises(ConfigError, match=f"{method} also changed the base"):
        export(folder, "peft", tmp_path / "adapter")


WIDE = (
    "network.total_bandwidth_hz=1e9",
    "budget.deadline_s=1e4",
    "budget.energy_j=1e6",
    "run.num_rounds=1",
    "tracking=none",
)


@pytest.mark.parametrize("client_evaluation", ["0.5", "0.0"])
def test_a_method_with_a_model_per_device_has_none_to_export(client_evaluation: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert run(folder, "strategy=fedsa_lora", f"run.client_evaluation={client_evaluation}", *WIDE) == 0
    for to in ("peft", "merged"):
        with pytest.raises(ConfigError, match="fedsa_lora ends with one model per device"):
            export(folder, to, tmp_path / "out")
    with pytest.raises(ConfigError, match="fedsa_lora ends with one model per device"):
        load_trained(folder)
    assert not (tmp_path / "out").exists()
    card = (folder / "adapter" / "README.md").read_text()
    assert "no trained model" in card and "PeftModel" not in card and "every device keeps" in card


@pytest.mark.parametrize("method", ["flora", "fedex_lora"])
def test_the_card_beside_a_changed_base_names_what_is_missing(method: str, tmp_path: Path) -> None:
    assert run(tmp_path / "run", f"strategy={method}", *WIDE) == 0
    card = (tmp_path / "run" / "adapter" / "README.md").read_text()
    assert "no trained model" in card and "PeftModel" not in card
    assert "base_delta.safetensors" in card and "fedlodrop export" in card and "--to merged" in card


@pytest.mark.parametrize(
    ("to", "expected"),
    [("onnx", "peft, merged, gguf"), ("peft", "already exists"), ("gguf", "expected a language model")],
)
def test_what_cannot_be_exported_is_said_and_leaves_nothing(
    finished: Path, tmp_path: Path, to: str, expected: str
) -> None:
    target = tmp_path if to == "peft" else tmp_path / "out"
    with pytest.raises(ValueError, match=expected):
        export(finished, to, target)
    assert not list(tmp_path.iterdir())


def test_predictions_are_those_of_the_model(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained = load_trained(finished)
    answers = predict(trained, TEXTS)
    likeliest = [trained.label_names[k] for k in _trained_logits(finished).argmax(-1)]
    assert [answer[0][0] for answer in answers] == likeliest
    assert all(sum(value for _, value in answer) == pytest.approx(1) for answer in answers)
    predict_command(finished, TEXTS, top=2)
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith("'turn the light off': " + likeliest[0]) and first.count(",") == 1
    with pytest.raises(ValueError, match="--pair"):
        predict_command(finished, TEXTS, pair=["one"])


def test_the_licence_comes_from_the_card_of_the_base(tmp_path: Path) -> None:
    local = ModelSettings(name="hub", path=str(tmp_path))
    assert base_license(local) == UNKNOWN_LICENSE
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    assert base_license(local) == "mit" and base_license(ModelSettings()) == "apache-2.0"


def test_a_causal_run_is_exported_for_other_programs_with_its_tokenizer(tmp_path: Path, capsys) -> None:
    base = random_decoder(
        tmp_path / "base", "turn the light off wake me at seven in a kitchen please and play some jazz".split()
    )
    hub = ("task=instruct", "model=hub", f"model.path='{base}'", "model.max_tokens=64", "training.lr=0.05")
    assert run(tmp_path / "run", *hub, "run.num_rounds=1", "tracking=none") == 0
    export_command(tmp_path / "run", "peft", tmp_path / "out")
    trained = load_trained(tmp_path / "run")
    ids = torch.tensor([[2, 3, 4, 5]])
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(tmp_path / "out")).eval()
    with torch.inference_mode():
        expected = trained.model.base_model.model.encoder(input_ids=ids).logits
        torch.testing.assert_close(loaded(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-5)
        assert (
            loaded.get_base_model()(input_ids=ids).logits - AutoModelForCausalLM.from_pretrained(base)(ids).logits
        ).any()
    assert AutoTokenizer.from_pretrained(tmp_path / "out").tokenize("wake me") == ["wake", "me"]
    assert "AutoModelForCausalLM" in (tmp_path / "out" / "README.md").read_text()
    assert "this project" not in capsys.readouterr().out


def test_an_export_that_only_this_project_loads_says_why(finished: Path, tmp_path: Path, capsys) -> None:
    export_command(finished, "peft", tmp_path / "out")
    assert "only this project loads it: the base is made by this project" in " ".join(capsys.readouterr().out.split())


def test_a_causal_run_becomes_files_for_llama_cpp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gguf = pytest.importorskip("gguf")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    base = write_gguf(tmp_path / "tiny.gguf", tiny_llama())
    rows = [{"instruction": f"Say he {i}.", "input": "", "output": "he he"} for i in range(12)]
    (tmp_path / "chat.json").write_text(json.dumps(rows))
    data = ("task=instruct", f"task.train_file='{tmp_path}/chat.json'", "task.holdout=1", "task.train_limit=null")
    hub = ("model=hub", f"model.gguf_file='{base}'", "model.max_tokens=64", "network.num_devices=2")
    assert run(tmp_path / "run", *data, *hub, "run.num_rounds=1", "training.lr=0.05", "tracking=none", *WIDE) == 0
    export_command(tmp_path / "run", "gguf", tmp_path / "out")
    factors = {tensor.name for tensor in gguf.GGUFReader(tmp_path / "out" / "adapter.gguf").tensors}
    assert factors == {f"blk.{i}.attn_{p}.weight.lora_{f}" for i in (0, 1) for p in "qv" for f in "ab"}
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out", gguf_file="model.gguf", dtype=torch.float32)
    trained, ids = load_trained(tmp_path / "run"), torch.tensor([[5, 9, 7, 11]])
    with torch.inference_mode():
        expected = trained.model.base_model.model.encoder(input_ids=ids).logits
        torch.testing.assert_close(loaded(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-5)
    card = (tmp_path / "out" / "README.md").read_text()
    for part in (
        "task `instruct`, file `chat.json`, spread over 2 devices",
        "`fedlodrop` with LoRA of rank 8",
        "Rounds: 1",
    ):
        assert part in card
    assert "Base weights: those of tiny.gguf" in card and "licence of the base model could not be determined" in card


def test_a_file_and_standard_input_are_predicted_as_texts_are(finished: Path, tmp_path: Path) -> None:
    texts = ["wake me at seven", "turn the light off", "play it again"]
    (tmp_path / "in.tsv").write_text("id\tsentence\n" + "".join(f"{k}\t{text}\n" for k, text in enumerate(texts)))
    words = ["predict", str(finished), "--file", str(tmp_path / "in.tsv")]
    done = CliRunner().invoke(cli, [*words, "--out", str(tmp_path / "out.tsv")])
    assert done.exit_code == 0, (done.output, done.exception)
    rows = [line.split("\t") for line in (tmp_path / "out.tsv").read_text().splitlines()]
    expected = [outputs[0] for outputs in predict(load_trained(finished), texts)]
    assert rows[0] == ["id", "sentence", "prediction", "probability"]
    assert [row[:3] for row in rows[1:]] == [
        [str(k), t, name] for k, (t, (name, _)) in enumerate(zip(texts, expected, strict=True))
    ]
    assert [float(row[3]) for row in rows[1:]] == pytest.approx([value for _, value in expected], rel=1e-4)
    piped = CliRunner().invoke(cli, ["predict", str(finished), "--top", "1"], input="\n".join([*texts, ""]))
    assert [line.split(": ")[1].split()[0] for line in piped.output.splitlines()] == [name for name, _ in expected]
    (tmp_path / "in.tsv").write_text("id\tother\n1\tx\n")
    assert "expected the column" in str(CliRunner().invoke(cli, words).exception)
