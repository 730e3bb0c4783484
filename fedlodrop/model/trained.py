"""A finished run as a model: exported to other tools, or asked for a prediction by hand."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from conf.compose import ConfigError, read_config
from conf.schema import Config
from conf.settings import lora_settings, model_settings
from fedlodrop.model.load import check_single
from server_app.build import load_data
from server_app.checkpoint import load_checkpoint
from server_app.results import make_readable
from tasks.data.batches import Tokenised
from tasks.data.examples import TextExamples
from tasks.export.merged_model import base_license, save_merged, save_tokenizer
from tasks.export.peft_adapter import save_adapter
from tasks.export.transformers_names import Layout, transformers_layout
from tasks.models.build import build_model, describe_model, load_tokenizer, set_adapter
from tasks.models.tokenizer import TextTokenizer
from tasks.settings import ComputeSettings, Kind

FORMATS = ("peft", "merged", "gguf-ready")
_MAX_ANSWER_TOKENS = 32


@dataclass
class TrainedModel:
    """The model of a run after its last finished round."""

    config: Config
    model: Any
    tokenizer: TextTokenizer
    kind: Kind
    label_names: tuple[str, ...]
    base_changed: bool


def load_trained(folder: Path) -> TrainedModel:
    """Rebuild the model of a run from its configuration and its last checkpoint.

    Raises
    ------
    ConfigError, CheckpointError
        If the folder holds no run, none with a finished round, or one of a personalised method.
    """
    config = read_config(folder / "config.yaml")
    check_single(config, folder)
    kind, labels = _outputs(folder, config)
    outputs = len(labels) or 1
    model = build_model(
        model_settings(config),
        lora_settings(config),
        num_outputs=outputs,
        kind=kind,
        seed=config.run.seed,
        compute=ComputeSettings(dtype="float32"),  # merging into bfloat16 would round small changes away
    )
    spec = describe_model(model_settings(config), lora_settings(config), outputs, kind=kind).spec
    state = load_checkpoint(folder, spec).state
    set_adapter(model, state)
    return TrainedModel(config, model.eval(), load_tokenizer(model_settings(config)), kind, labels, bool(state.base))


def export(folder: Path, to: str, target: Path) -> str:
    """Write the model of a run in another tool's format, completely or not at all.

    Parameters
    ----------
    folder : Path
        The run.
    to : str
        ``peft``, ``merged`` or ``gguf-ready``.
    target : Path
        A folder that does not exist yet.

    Returns
    -------
    str
        Why only this project loads the adapter; "" where transformers and PEFT do.

    Raises
    ------
    ConfigError
        If the format is unknown, the target exists, or the format cannot express the model.
    """
    if to not in FORMATS:
        raise ConfigError(f"--to must be one of {', '.join(FORMATS)}, found {to!r}")
    if target.exists():
        raise ConfigError(f"{target} already exists; choose another --out")
    trained = load_trained(folder)
    if to == "peft" and trained.base_changed:
        raise ConfigError(
            f"{trained.config.strategy.name} also changed the base, which an adapter alone cannot express; use --to merged"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    work = target.parent / f".export.{os.getpid()}.tmp"
    temporary = work / target.name  # the card names the folder as it will be called
    temporary.mkdir(parents=True)
    layout: Layout | str = ""
    try:
        if to == "peft":
            license_name = base_license(model_settings(trained.config), online=True)
            layout = transformers_layout(trained.model)
            save_adapter(
                trained.model,
                temporary,
                label_names=trained.label_names,
                license_name=license_name,
                layout=None if isinstance(layout, str) else layout,
            )
            save_tokenizer(trained.tokenizer, temporary)
        else:
            save_merged(
                trained.model, trained.tokenizer, temporary, label_names=trained.label_names, gguf=to == "gguf-ready"
            )
        make_readable(temporary.rglob("*"), like=temporary / "README.md")
        temporary.replace(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return layout if isinstance(layout, str) else ""


def predict(trained: TrainedModel, texts: list[str], pairs: list[str] | None = None) -> list[list[tuple[str, float]]]:
    """Ask a trained model about texts.

    Parameters
    ----------
    trained : TrainedModel
        From `load_trained`.
    texts : list of str
        What to ask.
    pairs : list of str or None
        The second text of each, for tasks that compare two.

    Returns
    -------
    list
        Per text the outputs from the likeliest down: (label, probability); of a regression ("value", value); of a
        causal model (its answer, the probability of all its tokens).

    Raises
    ------
    ConfigError
        If the model reads images, or its tokens cannot be read back.
    """
    if trained.config.model.name == "mlp":
        raise ConfigError("predict takes texts, and this run's model reads images")
    if trained.kind == "causal":
        return [[_answer(trained, text)] for text in texts]
    examples = TextExamples(tuple(texts), np.zeros(len(texts), dtype=np.int64), None if pairs is None else tuple(pairs))
    encoded = trained.tokenizer.encode(examples.texts, examples.text_pairs)
    types = (
        None if encoded.token_types is None else tuple(np.asarray(row, dtype=np.int32) for row in encoded.token_types)
    )
    ids = tuple(np.asarray(row, dtype=np.int32) for row in encoded.input_ids)
    batch = Tokenised(ids, types, examples.labels, trained.tokenizer.pad_token_id).batch(np.arange(len(texts)))
    with torch.inference_mode():
        logits = trained.model(**batch.inputs)
    if trained.kind == "regression":
        return [[("value", float(row[0]))] for row in logits]
    order = torch.softmax(logits, dim=-1).numpy()
    return [[(trained.label_names[k], float(row[k])) for k in np.argsort(-row, kind="stable")] for row in order]


def _answer(trained: TrainedModel, prompt: str) -> tuple[str, float]:
    """Continue a prompt greedily until the end mark."""
    from tasks.models.tokenizer import HubTokenizer

    tokenizer = trained.tokenizer
    if not isinstance(tokenizer, HubTokenizer):
        raise ConfigError(
            "the tiny model's hashed words cannot be read back as an answer; expected a run with model=hub"
        )
    encoded = tokenizer.encode_responses([prompt], [""])
    (row,), (start,) = encoded.input_ids, encoded.response_start or [0]
    ids, probability, end = row[:start], 1.0, row[start:]
    with torch.inference_mode():
        for _ in range(_MAX_ANSWER_TOKENS):
            inputs = torch.tensor([ids[-trained.config.model.max_tokens :]])
            last = torch.zeros_like(inputs, dtype=torch.bool)
            last[0, -1] = True
            likelihood = torch.softmax(trained.model(inputs, torch.ones_like(inputs), last)[0], dim=-1)
            token = int(likelihood.argmax())
            probability *= float(likelihood[token])
            if [token] == end:
                break
            ids.append(token)
    return str(tokenizer.tokenizer.decode(ids[start:])), probability


def _outputs(folder: Path, config: Config) -> tuple[Kind, tuple[str, ...]]:
    """Return the kind of task and its labels: from the summary, else from the data."""
    path = folder / "summary.json"
    summary = json.loads(path.read_text()) if path.exists() else {}
    if "label_names" in summary:
        return summary["task_kind"], tuple(summary["label_names"])
    task = load_data(config)
    return task.kind, task.label_names
