"""The door to what is faster: without that folder a model learns the same."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[3]
TRAIN = """
import importlib.util, json
import numpy as np, torch
from tasks.data.batches import sample_batches, tokenise
from tasks.data.intents import generate_intents
from tasks.models.build import LoraSettings, ModelSettings, build_model, load_tokenizer, trainable_parameters
from tasks.models.placement import keep_states
from tasks.scoring.evaluation import evaluate, task_loss
from tasks.settings import PrefixSettings

torch.set_num_threads(1)
settings = ModelSettings(name="tiny", max_tokens=32)
train, _, test = generate_intents(num_train=40, num_validation=0, num_test=20, seed=1)
data, test = (tokenise(load_tokenizer(settings), examples) for examples in (train, test))
model = build_model(settings, LoraSettings(r=4, layers=1), num_outputs=16)
kept, _ = keep_states(model, PrefixSettings(disk_mib=0))
data = data if kept is None else kept.source(data)
optimizer, losses = torch.optim.AdamW(trainable_parameters(model).values(), lr=1e-2), []
for index in sample_batches(len(data), 8, rng=np.random.default_rng(0), steps=12):
    optimizer.zero_grad()
    batch = data.batch(index)
    loss = task_loss(model(**batch.inputs), batch.labels, model.kind)
    loss.backward()
    optimizer.step()
    losses.append(float(loss.detach()))
speed = importlib.util.find_spec("tasks.speed") is not None
layers = sorted({type(part).__name__ for part in model.modules() if "Lora" in type(part).__name__})
print(json.dumps([speed, kept is not None, layers, [*losses, evaluate(model, test)[0]]]))
"""


def _train(folder: Path) -> tuple[bool, bool, list[str], list[float]]:
    environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-c", TRAIN]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: tuple[bool, bool, list[str], list[float]] = tuple(json.loads(done.stdout.splitlines()[-1]))
    return found


def test_without_the_folder_of_what_is_faster_a_model_learns_the_same(tmp_path: Path) -> None:
    for room in ("adapter", "tasks"):
        shutil.copytree(ROOT / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__", "speed"))
    assert not (tmp_path / "tasks" / "speed").exists()
    speed, kept, layers, losses = _train(ROOT)
    assert speed and kept and "FusedLoraLinear" in layers
    without, none_kept, _, expected = _train(tmp_path)
    assert not without and not none_kept
    np.testing.assert_allclose(losses, expected, atol=1e-5)
    assert np.ptp(losses) > 0.01


@pytest.mark.parametrize("room", ["adapter", "client_app", "server_app", "strategy", "fedlodrop", "tasks"])
def test_nothing_but_the_door_knows_that_folder(room: str) -> None:
    for file in (ROOT / room).rglob("*.py"):
        inside = file.is_relative_to(ROOT / "tasks" / "speed") or file == ROOT / "tasks/models/placement.py"
        assert inside or "import" not in "".join(
            line for line in file.read_text().splitlines() if "tasks.speed" in line
        ), file
