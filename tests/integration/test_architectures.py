"""Every method trains every common build of language models, with query and value projections that are not square."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from adapter.state import AdapterSpec
from conf.compose import read_config
from conf.convert import lora_settings, model_settings
from server_app.checkpoint import load_checkpoint
from strategy import STRATEGIES
from tasks.models.build import describe_model
from tasks.settings import Kind
from tests.support.runs import rounds, run

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}
# Adapted by default, (out, in): separate projections of grouped queries, or fused ones.
SHAPES = {
    "llama": {(32, 32), (8, 32)},
    "qwen2": {(32, 32), (8, 32)},
    "gemma": {(32, 32), (8, 32)},
    "phi": {(32, 32), (8, 32), (48, 32), (32, 48)},
    "gpt2": {(96, 32)},
    "gpt_neox": {(96, 32)},
}
PAIRS = [(method, architecture) for method in STRATEGIES for architecture in SHAPES]
QUICK = {(method, list(SHAPES)[i % len(SHAPES)]) for i, method in enumerate(STRATEGIES)}
NO_SERVER_OPTIMIZER = {"fedex_lora", "flexlora", "flora", "hetlora", "local"}  # no average of lora_A and lora_B to move
WORDS = "yes no stop go left right".split()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Save one random model of every build, with a tokenizer of few words."""
    folder = tmp_path_factory.mktemp("saved")
    vocabulary = {token: i for i, token in enumerate(["<unk>", "<end>", *bytes_to_unicode().values()])}
    letters = Tokenizer(models.BPE(vocabulary, []))
    letters.pre_tokenizer, letters.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=letters, unk_token="<unk>", eos_token="<end>", pad_token="<end>"
    )
    (folder / "rows.tsv").write_text(
        "\n".join(["prompt\tresponse", *(f"{a} {b} {i}\t{b}" for a in WORDS for b in WORDS for i in range(3))]) + "\n"
    )
    for architecture in SHAPES:
        config = AutoConfig.for_model(architecture, **SIZES, vocab_size=len(tokenizer), eos_token_id=1, pad_token_id=1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            AutoModelForCausalLM.from_config(config).save_pretrained(folder / architecture)
        tokenizer.save_pretrained(folder / architecture)
    return {name: folder / name for name in (*SHAPES, "rows.tsv")}


def _train(folder: Path, method: str, *overrides: str) -> dict[str, Any]:
    """Run one round with two devices in a cell that serves both; check what was trained and return the record."""
    holdout = ("run.client_evaluation=0.2",) * STRATEGIES[method].personalised
    small = (
        "task.train_limit=24",
        "task.validation_limit=4",
        "task.holdout=8",
        "run.train_eval_size=8",
        "lora.r=4",
        "run.num_rounds=1",
        "network.num_devices=2",
        "network.total_bandwidth_hz=1e9",
        "budget.deadline_s=1e4",
        "budget.energy_j=1e6",
        "training.lr=0.01",
        "tracking=none",
    )
    assert run(folder, f"strategy={method}", *small, *overrides, *holdout) == 0
    (record,) = [row for row in rounds(folder) if row["round"] == 1]
    losses = [row["train_loss"] for row in record["devices"] if row["scheduled"]]
    assert losses and all(loss is not None and math.isfinite(loss) for loss in losses) and not record["failures"]
    return record


def _moved(folder: Path, method: str, spec: AdapterSpec) -> bool:
    """Whether a finished run changed its global model, to finite values; True where there is none."""
    if not (folder / "checkpoint").exists() or STRATEGIES[method].personalised:
        return True
    state = load_checkpoint(folder, spec).state
    moved = [*state.lora_B.values(), *state.base.values()]
    return any(value.any() for value in moved) and all(np.isfinite(value).all() for value in moved)


def _spec(folder: Path, kind: Kind, outputs: int) -> AdapterSpec:
    config = read_config(folder / "config.yaml")
    return describe_model(model_settings(config), lora_settings(config), outputs, kind).spec


def _causal(saved: dict[str, Path], architecture: str) -> tuple[str, ...]:
    model = ("model=hub", f"model.path='{saved[architecture]}'", "model.max_tokens=24")
    return ("task=instruct", f"task.train_file='{saved['rows.tsv']}'", *model)


@pytest.mark.parametrize(
    ("method", "architecture"), [pytest.param(*pair, marks=[] if pair in QUICK else pytest.mark.slow) for pair in PAIRS]
)
def test_a_round_trains_and_is_averaged(method: str, architecture: str, saved: dict[str, Path], tmp_path: Path) -> None:
    _train(tmp_path / "run", method, *_causal(saved, architecture))
    spec = _spec(tmp_path / "run", "causal", 1)
    assert {(module.out_features, module.in_features) for module in spec.modules} == SHAPES[architecture]
    assert _moved(tmp_path / "run", method, spec)


@pytest.mark.parametrize("model", ["minilm", "llama", "gpt2"])
@pytest.mark.parametrize("method", STRATEGIES)
@pytest.mark.slow
def test_options_of_server_and_training_combine(
    method: str, model: str, saved: dict[str, Path], tmp_path: Path
) -> None:
    options = ["training.proximal_mu=0.1", "training.loraplus_lr_ratio=4", "lora.use_rslora=true"]
    if method not in NO_SERVER_OPTIMIZER:
        options += ["strategy.server_optimizer=fedadam", "strategy.server_lr=0.01"]
    base = ("model=minilm", "task=intents", "lora.layers=1") if model == "minilm" else _causal(saved, model)
    _train(tmp_path / "run", method, *base, *options)
    kind: tuple[Kind, int] = ("classification", 12) if model == "minilm" else ("causal", 1)
    assert _moved(tmp_path / "run", method, _spec(tmp_path / "run", *kind))
