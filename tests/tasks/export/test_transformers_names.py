"""Adapters under transformers' own names: other programs load them without this project."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from tasks.export.huggingface import save_adapter
from tasks.export.transformers_names import Layout, transformers_layout
from tasks.models.build import build_model
from tasks.settings import ComputeSettings, LoraSettings, ModelSettings
from tests.support.cases import first
from tests.support.causal import tiny_causal
from tests.support.encoders import random_encoder, randomise

PLAIN = ComputeSettings(device="cpu", fused_lora=False, dtype="float32")
IDS = torch.tensor([[5, 9, 7, 11, 6, 8], [4, 13, 10, 15, 1, 1]])
MASK = (IDS != 1).long()
CAUSAL = ("llama", "gpt2", "gpt_neox", "phi3", "gemma2", "opt", "qwen3_moe")
FITTING = ("bert", "roberta", "xlm-roberta")  # dense, tanh, linear on the first token
LOAD = """
import json, sys, torch
import transformers
from peft import PeftModel
for line in sys.stdin:
    case = json.loads(line)
    options = {} if case["outputs"] is None else {"num_labels": case["outputs"]}
    base = getattr(transformers, case["loader"]).from_pretrained(case["base"], **options)
    model = PeftModel.from_pretrained(base, case["folder"]).eval()
    with torch.no_grad():
        logits = model(input_ids=torch.tensor(case["ids"]), attention_mask=torch.tensor(case["mask"])).logits
    print(json.dumps({"logits": logits.tolist(), "ours": sorted({"tasks", "adapter", "server_app"} & sys.modules.keys())}))
"""


def trained(settings: ModelSettings, kind: Any, outputs: int = 1) -> Any:
    model = build_model(settings, LoraSettings(r=2), num_outputs=outputs, kind=kind, compute=PLAIN)
    randomise(model)
    return model


def load_elsewhere(cases: list[dict[str, Any]], folder: Path) -> list[np.ndarray]:
    """Load every case in one process that does not know this project, and return its logits."""
    lines = "\n".join(json.dumps(case | {"ids": IDS.tolist(), "mask": MASK.tolist()}) for case in cases)
    found = subprocess.run(
        [sys.executable, "-P", "-c", LOAD], input=lines, cwd=folder, capture_output=True, text=True, check=True
    )
    answers = [json.loads(line) for line in found.stdout.splitlines()]
    assert not any(answer["ours"] for answer in answers)
    return [np.array(answer["logits"]) for answer in answers]


def saved_causal(name: str, tmp_path: Path) -> tuple[dict[str, Any], np.ndarray]:
    model = trained(tiny_causal(name, tmp_path / name), "causal")
    layout, folder = transformers_layout(model), tmp_path / f"{name}-adapter"
    assert isinstance(layout, Layout)
    save_adapter(model, folder, layout=layout)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["task_type"] == "CAUSAL_LM" and not config["modules_to_save"]
    assert not [key for key in load_file(folder / "adapter_model.safetensors") if ".encoder." in key]
    with torch.no_grad():
        logits = model.base_model.model.encoder(input_ids=IDS, attention_mask=MASK).logits.numpy()
    return dict(base=str(tmp_path / name), folder=str(folder), loader="AutoModelForCausalLM", outputs=None), logits


def saved_classifier(name: str, tmp_path: Path) -> tuple[dict[str, Any], np.ndarray]:
    settings = replace(random_encoder(name, tmp_path / name, layers=2), pooling="cls", head="mlp")
    model = trained(settings, "classification", 3)
    layout, folder = transformers_layout(model), tmp_path / f"{name}-adapter"
    assert isinstance(layout, Layout)
    save_adapter(model, folder, layout=layout, label_names=("a", "b", "c"))
    assert json.loads((folder / "adapter_config.json").read_text())["task_type"] == "SEQ_CLS"
    card, loader = (folder / "README.md").read_text(), "AutoModelForSequenceClassification"
    assert loader in card and "num_labels=3" in card and "from tasks" not in card
    with torch.no_grad():
        logits = model(input_ids=IDS, attention_mask=MASK).numpy()
    return dict(base=str(tmp_path / name), folder=str(folder), loader=loader, outputs=3), logits


def test_adapters_load_in_a_process_without_this_project(tmp_path: Path) -> None:
    saved = [
        *(saved_causal(name, tmp_path) for name in CAUSAL),
        *(saved_classifier(name, tmp_path) for name in FITTING),
    ]
    for found, (case, logits) in zip(load_elsewhere([case for case, _ in saved], tmp_path), saved, strict=True):
        real = MASK == 1 if case["outputs"] is None else ...
        np.testing.assert_allclose(found[real], logits[real], rtol=1e-4, atol=1e-4, err_msg=case["folder"])


@pytest.mark.parametrize(
    ("architecture", "pooling", "head"),
    first(
        2,
        [
            ("bert", "mean", "linear"),
            ("gpt2", "cls", "mlp"),
            ("bert", "mean", "mlp"),
            ("roberta", "cls", "linear"),
            ("electra", "cls", "mlp"),
            ("distilbert", "cls", "mlp"),
            ("modernbert", "cls", "mlp"),
        ],
    ),
)
def test_a_head_that_does_not_fit_lies_apart_and_the_lines_of_the_card_compute_it(
    architecture: str, pooling: Any, head: Any, tmp_path: Path
) -> None:
    settings = replace(random_encoder(architecture, tmp_path / "base", layers=2), pooling=pooling, head=head)
    model = trained(settings, "classification", 3)
    layout = transformers_layout(model)
    assert isinstance(layout, Layout) and "ForSequenceClassification" in layout.apart
    save_adapter(model, tmp_path / "adapter", layout=layout)
    code = (tmp_path / "adapter/README.md").read_text().split("```python\n")[1].split("```")[0]
    assert "tasks" not in code
    # The texts are ids here, as the random models of these tests have no tokenizer.
    given = f"dict(input_ids=torch.tensor({IDS.tolist()}), attention_mask=torch.tensor({MASK.tolist()}))"
    code = re.sub(r"^tokenizer = .*$", "model.eval()", code, flags=re.M)
    code = "import torch\n" + re.sub(r"^batch = .*$", f"batch = {given}", code, flags=re.M) + "\nprint(logits.tolist())"
    found = subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    with torch.no_grad():
        logits = model(input_ids=IDS, attention_mask=MASK).numpy()
    np.testing.assert_allclose(np.array(json.loads(found.stdout.splitlines()[-1])), logits, rtol=1e-4, atol=1e-4)


def test_a_mixture_whose_names_peft_translates_keeps_ours(tmp_path: Path) -> None:
    reason = transformers_layout(trained(tiny_causal("glm4_moe", tmp_path), "causal"))
    assert reason == "PEFT takes some names of glm4_moe's modules for those of its experts"


def test_a_base_of_this_project_keeps_its_names() -> None:
    reason = transformers_layout(trained(ModelSettings(name="tiny", max_tokens=16), "causal"))
    assert reason == "the base is made by this project"
