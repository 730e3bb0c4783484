"""A decoder beside the loop that PEFT and TRL users write, on the same calls: single training steps, and whole runs.

    python -m benchmarks.decoder                               CPU seconds per step, medians of interleaved repeats
    python -m benchmarks.decoder ROUNDS REPEATS DTYPE LAYERS   `experiment=llm` and the loop in turns, a line a run

The loop is that of every tutorial: texts padded on the right to the longest of the batch, labels -100 where nothing is
learnt, ``model(**batch, labels=...)``, clipping, AdamW. In whole runs it has the preset's own data, partition, devices
per round, steps, batch size, rates, LoRA modules and number type, and is scored as often. It computes every layer in
every step, averages plainly, and has no cell: no dropout, nothing rounded.

DTYPE auto is the product's own choice: on a processor without products of bfloat16 these take up to twenty times as
long, on both sides. LAYERS are those that the loop adapts: 30, all of them, as PEFT's `all-linear` does, or 10 as the
preset.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM

from benchmarks.watch import interleaved, measured
from conf.compose import compose_config
from conf.convert import model_settings, partition_settings, task_settings
from tasks.data.batches import Tokenised, grouped_by_length, sample_batches, tokenise
from tasks.data.calls import generate_calls, score_calls
from tasks.data.load import load_task
from tasks.data.partition import partition_examples
from tasks.models.build import build_model
from tasks.models.files import model_source
from tasks.models.placement import keep_states, multiplies_bfloat16, pick_dtype
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


def compare_steps() -> None:
    """Measure single steps and print one line of JSON."""
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


def tutorial(rounds: int, dtype: str, layers: int) -> dict[str, float]:
    """Train for some rounds; return test loss, CPU time of a round and of a scoring, scores of the written answers."""
    config = compose_config("experiment=llm")
    settings, run, training = model_settings(config), config.run, config.training
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    task, tokenizer = load_task(**task_settings(config)), load_tokenizer(settings)
    train, validation, test = (tokenise(tokenizer, part) for part in (task.train, task.validation, task.test))
    parts = [train.subset(chosen) for chosen in partition_examples(task.train, **partition_settings(config))]
    model = tutorial_model(settings, layers, dtype, config.lora.r, config.lora.alpha)
    whole, began = _adapter(model), time.process_time()
    loss, _ = _loss(model, test), _loss(model, validation)
    scored_s, trained_s = time.process_time() - began, 0.0
    for number in range(1, rounds + 1):
        answers, began = [], time.process_time()
        for k in rng.choice(len(parts), config.strategy.devices_per_round, replace=False):
            set_peft_model_state_dict(model, whole)
            optimizer = make_optimizer(model, training.lr * training.lr_decay ** (number - 1))
            batches = sample_batches(len(parts[k]), training.batch_size, steps=training.local_steps, rng=rng)
            train_steps(tutorial_step, model, parts[k], batches, optimizer)
            answers.append(_adapter(model))
        whole = {name: torch.stack([answer[name] for answer in answers]).mean(dim=0) for name in whole}
        set_peft_model_state_dict(model, whole)
        trained_s += time.process_time() - began
        if number % run.eval_every == 0 or number == rounds:
            loss, _ = _loss(model, test), _loss(model, validation)
    costs = {"round_cpu_s": round(trained_s / rounds, 2), "scoring_cpu_s": round(scored_s, 2)}
    return {"loss": loss, **costs, **score_calls(_written(model, tokenizer.tokenizer, test), list(task.test.responses))}


def _adapter(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in get_peft_model_state_dict(model).items()}


@torch.inference_mode()
def _loss(model: Any, data: Tokenised) -> float:
    model.eval()
    batches = np.array_split(np.argsort(data.lengths), max(1, len(data) // 32))
    return float(np.mean([float(tutorial_step(model, data, index)) for index in batches]))


@torch.inference_mode()
def _written(model: Any, tokenizer: Any, data: Tokenised) -> list[str]:
    """Let the model answer in batches of 64, padded on the left, until the last answer of a batch has ended."""
    assert data.response_start is not None
    both = zip(data.input_ids, data.response_start, strict=True)
    backwards = [torch.from_numpy(ids[:start][::-1].astype(np.int64)) for ids, start in both]
    texts: list[str] = []
    for first in range(0, len(backwards), 64):
        ids = pad_sequence(backwards[first : first + 64], batch_first=True, padding_value=-1).flip(1)
        known = {"input_ids": ids.where(ids >= 0, data.pad_token_id), "attention_mask": (ids >= 0).long()}
        written = model.generate(**known, do_sample=False, max_new_tokens=64, pad_token_id=data.pad_token_id)
        texts += tokenizer.batch_decode(written[:, ids.shape[1] :], skip_special_tokens=True)
    return texts


def compare_runs(rounds: str = "26", repeats: str = "5", asked: str = "auto", layers: str = "30") -> None:
    """Measure whole runs in turns; print one line of JSON a run."""
    dtype = str(pick_dtype(ComputeSettings(dtype=asked), torch.device("cpu"), "causal")).removeprefix("torch.")
    ours = f"run.num_rounds={rounds} training.dtype={dtype}".split()
    for _ in range(int(repeats)):
        with tempfile.TemporaryDirectory() as name:
            folder, program = Path(name), Path(sys.executable)
            kept = [f"run.dir={folder}/run", f"training.prefix_cache_dir={folder}/states"]
            commands = {
                "tutorial": [str(program), "-m", "benchmarks.decoder", "tutorial", rounds, dtype, layers],
                "fedlodrop": [str(program.with_name("fedlodrop")), "run", "experiment=llm", *ours, *kept],
            }
            for side, command in commands.items():
                usage = measured(command, folder / f"{side}.log")
                if side == "tutorial":
                    scores = json.loads((folder / "tutorial.log").read_text().splitlines()[-1])
                else:
                    scores = json.loads((folder / "run" / "summary.json").read_text())["answers"]["scores"]
                cost = {"cpu_s": round(usage.cpu_s, 1), "wall_s": round(usage.wall_s, 1)}
                print(json.dumps({"run": side, "dtype": dtype, "layers": layers, **cost, **scores}), flush=True)


if __name__ == "__main__":
    given = sys.argv[1:]
    if given[:1] == ["tutorial"]:
        print(json.dumps(tutorial(int(given[1]), given[2], int(given[3]))))
    elif given:
        compare_runs(*given)
    else:
        compare_steps()
