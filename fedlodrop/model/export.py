"""The model of a run for other tools: a PEFT adapter, merged weights, files for llama.cpp."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from conf.compose import ConfigError
from fedlodrop.model.load import TrainedModel, load_trained
from server_app.results import make_readable
from tasks.export.gguf_export import save_gguf
from tasks.export.huggingface import save_adapter, save_merged, save_tokenizer
from tasks.export.transformers_names import transformers_layout
from tasks.settings import one_line

FORMATS = ("peft", "merged", "gguf")


def export(folder: Path, to: str, target: Path) -> str:
    """Write the model of a run into a new folder, completely or not at all.

    Returns what to know about loading it where transformers and PEFT alone do not take all of it, else "".

    ConfigError if the format is none of `FORMATS`, the target exists, or the format cannot express the model.
    """
    if to not in FORMATS:
        raise ConfigError(f"--to must be one of {', '.join(FORMATS)}, found {to!r}")
    if target.exists():
        raise ConfigError(f"{target} already exists; choose another --out")
    trained = load_trained(folder)
    if to == "peft" and trained.base_changed:
        method = trained.config.strategy.name
        raise ConfigError(f"{method} also changed the base, which an adapter cannot express; use --to merged")
    target.parent.mkdir(parents=True, exist_ok=True)
    work = target.parent / f".export.{os.getpid()}.tmp"
    temporary = work / target.name  # the card names the folder as it will be called
    temporary.mkdir(parents=True)
    try:
        note = _write(trained, to, temporary, _facts(folder, trained))
        make_readable(temporary.rglob("*"), like=temporary / "README.md")
        temporary.replace(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return note


def _write(trained: TrainedModel, to: str, folder: Path, facts: list[str]) -> str:
    model, tokenizer, labels = trained.model, trained.tokenizer, trained.label_names
    if to == "merged":
        save_merged(model, tokenizer, folder, label_names=labels, facts=facts)
        return ""
    if to == "gguf":
        save_gguf(model, tokenizer, folder, base_changed=trained.base_changed, facts=facts)
        return ""
    found = transformers_layout(model)
    layout = None if isinstance(found, str) else found
    save_adapter(model, folder, label_names=labels, facts=facts, online=True, layout=layout)
    save_tokenizer(tokenizer, folder)
    if layout is None:
        return f"only this project loads it: {found}; --to merged writes a model that needs neither"
    return f"the head is in head.safetensors, its lines are in README.md: {layout.apart}" if layout.apart else ""


def _facts(folder: Path, trained: TrainedModel) -> list[str]:
    config, summary = trained.config, _summary(folder)
    data = f"Data: task `{config.task.name}`"
    if config.task.train_file:
        data += f", file `{Path(config.task.train_file).name}`"
    method = f"Method: `{config.strategy.name}` with LoRA of rank {config.lora.r}, allocator `{config.allocator.name}`"
    facts = [f"{data}, spread over {config.network.num_devices} devices.", f"{method}, seed {config.run.seed}."]
    if summary:
        found = (summary["final"].get("eval") or {}) | (summary.get("answers") or {}).get("scores", {})
        scores = ", ".join(f"{name} {value:.4g}" for name, value in found.items())
        facts.append(f"Rounds: {summary['rounds_done']}; on the test set: {scores or 'not scored'}.")
    return facts


def _summary(folder: Path) -> dict[str, Any]:
    path = folder / "summary.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def push(folder: Path, run: Path, repo: str, *, private: bool = False) -> str:
    """Upload an exported model to a hub and return its address; its card tells the scores of the run as data.

    ``repo`` is ``USER/NAME``; the hub's address (HF_ENDPOINT) and the token are those of `huggingface_hub`. ConfigError
    if the hub cannot be reached or refuses: no token, another's repository, a card it does not take.
    """
    from huggingface_hub import EvalResult, HfApi, ModelCard

    card, summary = ModelCard.load(folder / "README.md"), _summary(run)
    kind, task = "generation" if summary.get("task_kind") == "causal" else "classification", str(summary.get("task"))
    card.data.model_name = repo.rpartition("/")[2]
    card.data.eval_results = [
        EvalResult(f"text-{kind}", dataset_type=task, dataset_name=task, metric_type=name, metric_value=value)
        for name, value in ((summary.get("final") or {}).get("eval") or {}).items()
    ]
    card.save(folder / "README.md")
    api = HfApi()
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Trained with fedlodrop"))
    except Exception as error:  # the client's libraries each have their own types; the user needs one line
        raise ConfigError(
            f"--push {repo}: {one_line(error)}; the export lies in {folder}; log in with: hf auth login"
        ) from error
