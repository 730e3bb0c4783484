"""Training steps of a decoder: ours beside the loop that PEFT and TRL users write, on the same calls and batches.

Run as `python -m benchmarks.decoder`; prints CPU seconds per step of one thread, medians of interleaved repeats.

The loop of comparison is the one of every tutorial: texts padded on the right to the longest of the batch, labels -100
where nothing is learnt, ``model(**batch, labels=...)``, clipping, AdamW.
"""

import json
import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from benchmarks.watch import interleaved
from tasks.data.batches import Tokenised, grouped_by_length, sample_batches, tokenise
from tasks.data.calls import generate_calls
from tasks.models.build import build_model
from tasks.models.gguf_import import model_source
from tasks.models.placement import keep_states, multiplies_bfloat16
from tasks.models.tokenizer import load_tokenizer
from tasks.scoring.evaluation import batch_loss
from tasks.settings import ComputeSettings, LoraSettings, ModelSettings, PrefixSettings

MODEL, RANK, UPPER = ModelSettings(name="smollm2", max_tokens=256), 8, 10
BATCH, STEPS, REPEATS = 4, 2, 5
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def tutorial_step(model: Any, data: Tokenised, index: np.ndarray) -> Any:
    """Return the loss of a batch as every tutorial computes it: labels for all tokens, -100 where nothing is learnt."""
    batch = data.batch(index)
    ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"]
    answer = torch.roll(batch.inputs["predict"], 1, dims=1)
    return model(input_ids=ids, attention_mask=mask, labels=ids.masked_fill(~answer, -100)).loss


def our_step(model: Any, data: Any, index: np.ndarray) -> Any:
    """Return the loss of a batch as our devices compute it."""
    return batch_loss(model, data.batch(index))


def train_steps(loss_of: Callable[..., Any], model: Any, data: Any, batches: list[np.ndarray], optimizer: Any) -> None:
    """Take a step per batch with the loss that ``loss_of`` returns for it."""
    model.train()
    for index in batches:
        optimizer.zero_grad()
        loss_of(model, data, index).backward()
        torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
        optimizer.step()


def make_optimizer(model: Any, lr: float) -> torch.optim.Optimizer:
    """Return AdamW over what is trained."""
    return torch.optim.AdamW([value for value in model.parameters() if value.requires_grad], lr=lr, weight_decay=0.0)


def _ours(layers: Any, dtype: Any) -> Any:
    lora = LoraSettings(RANK, 16.0, False, ("all-linear",), layers)
    return build_model(MODEL, lora, num_outputs=1, kind="causal", compute=ComputeSettings(True, dtype, "cpu"))


def tutorial_model(settings: ModelSettings, layers: int, dtype: str, r: int = RANK, alpha: float = 16) -> Any:
    """Return PEFT's model with factors on all linear modules of the upper ``layers`` layers."""
    plain = AutoModelForCausalLM.from_pretrained(model_source(settings), dtype=getattr(torch, dtype))
    upper = list(range(plain.config.num_hidden_layers - layers, plain.config.num_hidden_layers))
    return get_peft_model(plain, LoraConfig(r=r, lora_alpha=alpha, target_modules=MODULES, layers_to_transform=upper))


def main() -> None:
    """Measure and print one line of JSON."""
    torch.set_num_threads(1)
    train, _, _ = generate_calls(num_train=40, num_validation=0, num_test=1, seed=0)
    data = tokenise(load_tokenizer(MODEL), train)
    batches = sample_batches(len(data), BATCH, steps=STEPS, rng=np.random.default_rng(0))
    grouped = grouped_by_length(batches, data.lengths, np.random.default_rng(1))
    cases: dict[str, Callable[[], None]] = {}

    def add(name: str, loss_of: Callable[..., Any], model: Any, data: Any, batches: list[np.ndarray]) -> None:
        cases[name] = partial(train_steps, loss_of, model, data, batches, make_optimizer(model, 1e-3))

    with tempfile.TemporaryDirectory() as folder:
        for dtype in ("float32", "bfloat16")[: 1 + multiplies_bfloat16()]:
            for layers in (30, UPPER):
                model = tutorial_model(MODEL, layers, dtype)
                add(f"PEFT, upper {layers} layers, {dtype}", tutorial_step, model, data, batches)
            whole, upper = _ours("all", dtype), _ours(UPPER, dtype)
            kept, _ = keep_states(upper, PrefixSettings(folder=folder))
            assert kept is not None
            states = kept.source(data)
            states.batch(np.unique(np.concatenate(batches)))
            add(f"all layers, {dtype}", our_step, whole, data, batches)
            add(f"upper {UPPER} with kept states, {dtype}", our_step, upper, states, batches)
            add(f"the same, like lengths together, {dtype}", our_step, upper, states, grouped)
        spent = interleaved(cases, REPEATS, STEPS)
    print(json.dumps({name: round(seconds, 3) for name, seconds in spent.items()}))


if __name__ == "__main__":
    main()
