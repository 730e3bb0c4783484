"""Whole runs of a language model: `experiment=llm` beside the federation that PEFT and TRL users write on one page.

Run as `python -m benchmarks.decoder_runs ROUNDS REPEATS DTYPE LAYERS`; prints, a line a run and in turns, CPU seconds
of all processes and the scores of the written answers. DTYPE auto is the product's own choice: on a processor without
products of bfloat16 these take up to twenty times as long, on both sides. LAYERS are those that the loop of comparison
adapts: 30, all of them, as PEFT's `all-linear` does, or 10 as the preset.

The loop of comparison has the preset's own data, partition, devices per round, steps, batch size, rates, LoRA modules
and number type, and is scored as often. It computes every layer in every step, averages plainly, and has no cell:
no dropout, nothing rounded.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from torch.nn.utils.rnn import pad_sequence

from benchmarks.decoder import make_optimizer, train_steps, tutorial_model, tutorial_step
from benchmarks.watch import watch
from conf.compose import ROOT, compose_config
from conf.convert import model_settings, partition_settings, task_settings
from tasks.data.batches import Tokenised, sample_batches, tokenise
from tasks.data.calls import score_calls
from tasks.data.load import load_task
from tasks.data.partition import partition_examples
from tasks.models.placement import pick_dtype
from tasks.models.tokenizer import load_tokenizer
from tasks.settings import ComputeSettings


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


def main(rounds: str = "16", repeats: str = "5", asked: str = "auto", layers: str = "30") -> None:
    """Measure both in turns; print one line of JSON a run."""
    dtype = str(pick_dtype(ComputeSettings(dtype=asked), torch.device("cpu"), "causal")).removeprefix("torch.")
    ours = f"run.num_rounds={rounds} training.dtype={dtype}".split()
    for _ in range(int(repeats)):
        with tempfile.TemporaryDirectory() as name:
            folder, program = Path(name), Path(sys.executable)
            kept = [f"run.dir={folder}/run", f"training.prefix_cache_dir={folder}/states"]
            commands = {
                "tutorial": [str(program), "-m", "benchmarks.decoder_runs", "tutorial", rounds, dtype, layers],
                "fedlodrop": [str(program.with_name("fedlodrop")), "run", "experiment=llm", *ours, *kept],
            }
            for side, command in commands.items():
                log = folder / f"{side}.log"
                usage = watch(command, env=dict(os.environ), cwd=ROOT, log=log, timeout_s=7200)
                if usage.code:
                    raise SystemExit(f"{side} ended with code {usage.code} (-1: too late):\n{log.read_text()[-2000:]}")
                if side == "tutorial":
                    scores = json.loads(log.read_text().splitlines()[-1])
                else:
                    scores = json.loads((folder / "run" / "summary.json").read_text())["answers"]["scores"]
                cost = {"cpu_s": round(usage.cpu_s, 1), "wall_s": round(usage.wall_s, 1)}
                print(json.dumps({"run": side, "dtype": dtype, "layers": layers, **cost, **scores}), flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["tutorial"]:
        print(json.dumps(tutorial(int(sys.argv[2]), sys.argv[3], int(sys.argv[4]))))
    else:
        main(*sys.argv[1:])
