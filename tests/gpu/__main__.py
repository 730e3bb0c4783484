"""What a machine with a GPU can say in eight minutes: steps beside PEFT, memory, 4-bit weights, a whole run.

    python -m tests.gpu                          # writes results/gpu.md
    python -m tests.gpu --device cpu --tiny      # seconds, small shapes: shows that the script runs

Weights are random, in the shapes of RoBERTa-large and of a Llama with a billion parameters; the whole run takes the
installed SmolLM2. PEFT's side is the loop of every tutorial: transformers' own model, factors by `get_peft_model`.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from conf.compose import compose_config, join_overrides
from server_app.engines.in_process import run_in_process
from tasks.data.batches import Batch
from tasks.models.build import build_model
from tasks.models.lora import trainable_parameters
from tasks.scoring.evaluation import batch_loss
from tasks.settings import ComputeSettings, LoraSettings, ModelError, ModelSettings
from tests.support.runs import FAST

LIMIT_S = 420.0  # nothing new is begun after that; the rest of the eight minutes is for what has begun
WARM_UP, REPEATS, RANK = 3, 11, 8


@dataclass(frozen=True)
class Case:
    """A shape: how it is made, how it is trained."""

    name: str
    kind: str  # causal or classification
    config: Any
    batch: int
    tokens: int
    targets: tuple[str, ...]


def cases(tiny: bool) -> list[Case]:
    """Return the shapes that are measured, small ones for a trial."""
    from transformers import LlamaConfig, RobertaConfig

    small: dict[str, Any] = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 64, "vocab_size": 99}
    large = {"num_hidden_layers": 24, "hidden_size": 1024, "intermediate_size": 4096, "vocab_size": 50265}
    billion = {"num_hidden_layers": 16, "hidden_size": 2048, "intermediate_size": 8192, "vocab_size": 128256}
    roberta = RobertaConfig(
        **(small if tiny else large),
        num_attention_heads=2 if tiny else 16,
        max_position_embeddings=514,
        type_vocab_size=1,
        pad_token_id=1,
    )
    llama = LlamaConfig(
        **(small if tiny else billion),
        num_attention_heads=4 if tiny else 32,
        num_key_value_heads=2 if tiny else 8,
        tie_word_embeddings=True,
        max_position_embeddings=2048,
    )
    batch, tokens = (2, 16) if tiny else (32, 128)
    return [
        Case(
            "RoBERTa-large" if not tiny else "RoBERTa, tiny",
            "classification",
            roberta,
            batch,
            tokens,
            ("query", "value"),
        ),
        Case(
            "Llama, 1B" if not tiny else "Llama, tiny",
            "causal",
            llama,
            max(batch // 4, 1),
            4 * tokens,
            ("q_proj", "v_proj"),
        ),
    ]


def saved(case: Case, folder: Path) -> Path:
    """Save random weights of a shape and return where."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    factory = AutoModelForCausalLM if case.kind == "causal" else AutoModelForSequenceClassification
    torch.manual_seed(0)
    factory.from_config(case.config, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


def a_batch(case: Case, device: str) -> Batch:
    """Return random texts without padding; a causal model learns the second half of each."""
    rng = np.random.default_rng(0)
    ids = torch.from_numpy(rng.integers(4, case.config.vocab_size, (case.batch, case.tokens)))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if case.kind != "causal":
        return Batch(inputs, torch.from_numpy(rng.integers(0, 2, case.batch))).to(device)
    predict = torch.zeros_like(ids, dtype=torch.bool)
    predict[:, case.tokens // 2 : -1] = True  # here the next token is to be named
    return Batch(inputs | {"predict": predict}, ids[torch.roll(predict, 1, dims=1)]).to(device)


def our_step(case: Case, folder: Path, device: str, **model: Any) -> Callable[[], float]:
    """Return a training step of ours."""
    settings = ModelSettings(name="hub", path=str(folder), max_tokens=case.tokens, **model)
    compute = ComputeSettings(fused_lora=True, dtype="bfloat16", device=device)
    lora = LoraSettings(r=RANK, target_modules=case.targets)
    built = build_model(settings, lora, num_outputs=2, kind=case.kind, compute=compute).train()
    batch = a_batch(case, device)
    return _step(list(trainable_parameters(built).values()), lambda: batch_loss(built, batch))


def peft_step(case: Case, folder: Path, device: str) -> Callable[[], float]:
    """Return a training step as PEFT's users write it."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    causal = case.kind == "causal"
    factory = AutoModelForCausalLM if causal else AutoModelForSequenceClassification
    plain = factory.from_pretrained(folder, dtype=torch.bfloat16).to(device)
    head = None if causal else ["classifier"]
    model = get_peft_model(plain, LoraConfig(r=RANK, target_modules=list(case.targets), modules_to_save=head)).train()
    batch = a_batch(case, device)
    ids, mask, labels = batch.inputs["input_ids"], batch.inputs["attention_mask"], batch.labels
    if causal:
        labels = ids.masked_fill(~torch.roll(batch.inputs["predict"], 1, dims=1), -100)
    parameters = [value for value in model.parameters() if value.requires_grad]
    return _step(parameters, lambda: model(input_ids=ids, attention_mask=mask, labels=labels).loss)


def _step(parameters: list[Any], loss_of: Callable[[], torch.Tensor]) -> Callable[[], float]:
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of()
        loss.backward()
        optimizer.step()
        return float(loss.detach())  # waits for the GPU

    return step


@dataclass
class Measured:
    """Milliseconds of every repeat, and the most memory beside what was taken before [GiB], None without a GPU."""

    times_ms: np.ndarray
    peak_gib: float | None


def measure(steps: dict[str, Callable[[], Callable[[], float]]], device: str, repeats: int) -> dict[str, Measured]:
    """Build the sides one after the other for their memory, then repeat their steps in turns."""
    built, peaks, times = {}, {}, {name: np.empty(0) for name in steps}
    for name, make in steps.items():
        before = torch.cuda.memory_allocated() if device != "cpu" else 0
        built[name] = make()
        if device != "cpu":
            torch.cuda.reset_peak_memory_stats()
        for _ in range(WARM_UP):
            assert np.isfinite(built[name]()), f"{name}: the loss is not finite"
        peaks[name] = (torch.cuda.max_memory_allocated() - before) / 2**30 if device != "cpu" else None
    for _ in range(repeats):
        for name, step in built.items():
            began = time.perf_counter()
            step()
            times[name] = np.append(times[name], 1e3 * (time.perf_counter() - began))
    return {name: Measured(times[name], peaks[name]) for name in steps}


def rows(case: Case, folder: Path, device: str, repeats: int) -> list[str]:
    """Measure one shape and return its rows of the table."""
    at = saved(case, folder)
    sides: dict[str, Callable[[], Callable[[], float]]] = {
        "PEFT": lambda: peft_step(case, at, device),
        "ours": lambda: our_step(case, at, device),
    }
    absent = ""
    try:
        if case.kind == "causal":
            from tasks.models.transformer import four_bit_options

            four_bit_options()
            sides["ours, 4-bit base"] = lambda: our_step(case, at, device, load_in_4bit=True)
    except ModelError as error:
        absent = f"| {case.name} | ours, 4-bit base | not run: {error} | | | |"
    found = measure(sides, device, repeats)
    peft = np.median(found["PEFT"].times_ms)
    lines = []
    for name, item in found.items():
        low, middle, high = np.percentile(item.times_ms, [10, 50, 90])
        peak = "–" if item.peak_gib is None else f"{item.peak_gib:.2f}"
        rate = case.batch * case.tokens / middle * 1e3
        lines.append(
            f"| {case.name} | {name} | {middle:.2f} ({low:.2f} to {high:.2f}) | {rate:.0f} | {peak} | {middle / peft:.2f} |"
        )
    return [*lines, absent] if absent else lines


def whole_run(folder: Path, device: str, tiny: bool) -> str:
    """Run a federation in this process and return one line about it."""
    own = [*FAST] if tiny else ["experiment=llm", "run.engine=local", "run.num_rounds=4", "run.eval_every=4"]
    overrides = join_overrides([*own, f"training.device={device}", "tracking=none", f"run.dir='{folder}'"])
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    code = run_in_process(overrides, compose_config(overrides).network.num_devices)
    if code:
        return f"The whole run ended with exit code {code}."
    import json

    records = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    peak = "" if device == "cpu" else f", peak {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB"
    trained = sum(row["train_s"] or 0 for record in records for row in record["devices"])
    return (
        f"A whole run, {'tiny model' if tiny else 'SmolLM2-135M (experiment=llm)'}, {len(records)} rounds: "
        f"{time.perf_counter() - began:.0f} s, of which devices trained {trained:.1f} s{peak}; "
        f"last test loss {records[-1]['eval']['loss']:.3f}."
    )


def report(device: str, tiny: bool) -> str:
    """Measure everything that there is time for and return the page."""
    began, lines = time.monotonic(), []
    hardware = "CPU" if device == "cpu" else torch.cuda.get_device_name()
    with tempfile.TemporaryDirectory() as folder:
        for number, case in enumerate(cases(tiny)):
            if time.monotonic() - began > LIMIT_S:
                lines.append(f"| {case.name} | | not run: out of time | | | |")
                continue
            lines += rows(case, Path(folder) / str(number), device, 3 if tiny else REPEATS)
            gc.collect()
            if device != "cpu":
                torch.cuda.empty_cache()
        late = time.monotonic() - began > LIMIT_S
        run = "The whole run was left out: out of time." if late else whole_run(Path(folder) / "run", device, tiny)
    shapes = ", ".join(f"{case.name} {case.batch} × {case.tokens} tokens" for case in cases(tiny))
    return "\n".join(
        [
            f"# {hardware}, PyTorch {torch.__version__}",
            "",
            f"Training steps in bfloat16, r = {RANK}, random weights; {shapes}. Medians (10th to 90th percentile) of "
            "interleaved repeats.",
            "",
            "| shape | side | ms per step | tokens/s | peak GiB | of PEFT's time |",
            "|---|---|---|---|---|---|",
            *lines,
            "",
            run,
            "",
        ]
    )


def main(arguments: list[str] | None = None) -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="small shapes: a trial of the script")
    parser.add_argument("--out", type=Path, default=Path("results/gpu.md"))
    given = parser.parse_args(arguments)
    if given.device == "cuda" and not torch.cuda.is_available():
        sys.exit("no GPU that PyTorch can use; a trial without one: python -m tests.gpu --device cpu --tiny")
    page = report(given.device, given.tiny)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(page)
    print(page)


if __name__ == "__main__":
    main()
