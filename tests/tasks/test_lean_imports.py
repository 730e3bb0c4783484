"""A training process leaves out what it never uses, computes the same, and still gets it when somebody asks."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

TRAIN = """
import json, sys, torch
from tasks.models import LoraSettings, ModelSettings, build_model, trainable_parameters
from tasks.tokenizer import load_tokenizer

settings = ModelSettings(name="NAME")
model = build_model(settings, LoraSettings(r=2), num_outputs=2)
parameters = list(trainable_parameters(model).values())
optimizer = torch.optim.AdamW(parameters, lr=1e-2)
tokens = torch.arange(12).reshape(3, 4) + 5
losses = []
for _ in range(3):
    logits = model(input_ids=tokens, attention_mask=torch.ones_like(tokens))
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1, 0]))
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    losses.append(loss.item().hex())
"""
TRAIN_TINY, TRAIN_MINILM = TRAIN.replace("NAME", "tiny"), TRAIN.replace("NAME", "minilm")
REPORT = "\nprint(json.dumps({'losses': losses, 'modules': [*sys.modules]}))\n"
HEAVY = {"sympy", "scipy", "torch.distributed.tensor", "torch._dynamo.convert_frame", "torch._inductor"}


def _run(code: str) -> Any:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("train", [TRAIN_TINY, TRAIN_MINILM], ids=["tiny", "minilm"])
def test_training_needs_no_compiler_and_gives_the_same_losses(train: str) -> None:
    lean = _run(train + REPORT)
    whole = _run("import transformers.modeling_utils, peft\n" + train + REPORT)  # loaded before: nothing is left out
    assert not HEAVY & set(lean["modules"])
    assert HEAVY <= set(whole["modules"])
    assert lean["losses"] == whole["losses"]


def test_the_compiler_arrives_when_it_is_asked_for() -> None:
    code = """
compiled = torch.compile(lambda x: torch.sin(x) + 1, backend="eager")
x = torch.arange(3.0)
print(json.dumps({
    "equal": torch.equal(compiled(x), torch.sin(x) + 1),
    "real": "torch._dynamo.convert_frame" in sys.modules and torch._dynamo is sys.modules["torch._dynamo"],
    "distributed": torch.distributed.is_available(),
}))
"""
    assert _run(TRAIN_TINY + code) == {"equal": True, "real": True, "distributed": True}


def test_an_optimizer_that_was_made_before_goes_on_with_the_compiler_loaded() -> None:
    more = "\nimport torch._dynamo\ntorch._dynamo.reset()\noptimizer.step()\nprint(json.dumps('ok'))\n"
    assert _run(TRAIN_TINY + more) == "ok"


def test_a_missing_name_of_the_compiler_is_an_attribute_error() -> None:
    code = "\ntry:\n    torch._dynamo.no_such_name\nexcept AttributeError as error:\n    print(json.dumps(str(error)))\n"
    assert "no_such_name" in _run(TRAIN_TINY + code)


def test_a_part_of_the_compiler_can_be_imported_first() -> None:
    code = """
from torch._dynamo.utils import dynamo_timed
import torch._dynamo.utils as part
from torch._dynamo import config
same = part is torch._dynamo.utils is sys.modules["torch._dynamo.utils"] and part.dynamo_timed is dynamo_timed
print(json.dumps([same, part.__spec__.loader.__class__.__name__, type(torch._dynamo).__name__, config.__name__]))
"""
    assert _run(TRAIN_TINY + code) == [True, "SourceFileLoader", "module", "torch._dynamo.config"]
