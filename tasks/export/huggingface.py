"""A trained model as a folder with a model card: an adapter that PEFT loads, or a merged model without LoRA modules."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save_file

from tasks.export.transformers_names import Layout
from tasks.models.lora import PREFIX
from tasks.models.tokenizer import HubTokenizer, TextTokenizer
from tasks.settings import ModelSettings

UNKNOWN_LICENSE = "unknown"
_CARD = """---
library_name: {library}
tags: [{tags}federated-learning, fedlodrop]
base_model: {base}
{license}---

# {title} trained with fedlodrop

{text}

{facts}{use}

License: {license_line}
"""
_USE_TRANSFORMERS = """```python
from peft import PeftModel
from transformers import {loader}, AutoTokenizer

base = {loader}.from_pretrained("{base}"{options})
model = PeftModel.from_pretrained(base, "{folder}")
tokenizer = AutoTokenizer.from_pretrained("{folder}")
{then}```

The base must be the unchanged published one."""
_USE_HEAD = """
# What the head makes of a batch of texts: logits of shape (batch, {num_outputs}).
from safetensors.torch import load_file
from torch.nn.functional import linear

head = load_file("{folder}/head.safetensors")
batch = tokenizer(["a text", "another"], return_tensors="pt", padding=True, truncation=True, max_length={max_tokens})
states = model(**batch).last_hidden_state
{pooling}
{layers}
"""
_POOLED = {
    "cls": "pooled = states[:, 0]",
    "last": "pooled = states[range(len(states)), batch['attention_mask'].cumsum(1).argmax(1)]",
    "mean": "mask = batch['attention_mask'][..., None]\npooled = (states * mask).sum(1) / mask.sum(1)",
}
_LAYERS = {
    "linear": "logits = linear(pooled, head['weight'], head['bias'])",
    "mlp": "hidden = linear(pooled, head['dense.weight'], head['dense.bias']).tanh()\n"
    "logits = linear(hidden, head['output.weight'], head['output.bias'])",
}
_USE = """```python
from peft import PeftModel
from tasks.models.build import ModelSettings, build_base

settings = ModelSettings({settings})
base = build_base(settings, num_outputs={num_outputs}, kind="{kind}")
model = PeftModel.from_pretrained(base, "{folder}")
```

{call}

The base must be the unchanged published one."""
_LOAD_ENCODER = """```python
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

encoder = AutoModel.from_pretrained("{folder}")
tokenizer = AutoTokenizer.from_pretrained("{folder}")
head = load_file("{folder}/head.safetensors")  # applied to the {pooling} of the last hidden states
```

Outputs, in this order: {labels}."""
_LOAD_DECODER = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{folder}")
tokenizer = AutoTokenizer.from_pretrained("{folder}")
```"""


def save_adapter(
    model: Any,
    folder: str | Path,
    *,
    label_names: Sequence[str] = (),
    facts: Sequence[str] = (),
    online: bool = False,
    incomplete: str = "",
    layout: Layout | None = None,
) -> None:
    """Write an adapter in PEFT format, with its head and a model card; ``layout`` gives it transformers' own names.

    For the card: names of the outputs; what it was trained on; whether a hub may be asked for the base's licence; and
    in ``incomplete`` why these factors alone are no trained model, instead of how to load them.
    """
    folder = Path(folder)
    # "auto" would ask the model hub for the base's configuration.
    model.save_pretrained(folder, save_embedding_layers=False)
    config_file = folder / "adapter_config.json"
    config = json.loads(config_file.read_text(encoding="utf-8"))
    config["target_modules"] = sorted(config["target_modules"])  # PEFT writes a set: the order would vary
    if layout is not None:
        _rename(folder / "adapter_model.safetensors", config, layout)
    config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    base, head = model.base_model.model, ""
    if base.kind != "causal":
        labels = f": {', '.join(label_names)}" if label_names else ""
        head = f" and a task head ({base.kind}, {base.num_outputs} outputs{labels})"
    modules = f"{len(model.targeted_module_names)} LoRA modules of rank {model.peft_config['default'].r}{head}"
    apart = ", `head.safetensors` the head" if layout is not None and layout.apart else ""
    content = "the factors and the head" if head and not apart else f"the factors{apart}"
    text = f"{modules} on `{base.name_or_path}`. `adapter_model.safetensors` holds {content}."
    write_card(folder, base, "LoRA adapter", "peft", text, incomplete or _use(base, folder.name, layout), facts, online)


def _rename(file: Path, config: dict[str, Any], layout: Layout) -> None:
    """Give the tensors of a saved adapter, and its configuration, the names of transformers' model."""
    saved, start = load(file.read_bytes()), f"{PREFIX}head."  # not mapped: the file is written anew
    if layout.apart:
        head = {name.removeprefix(start): saved.pop(name) for name in [*saved] if name.startswith(start)}
        save_file(head, file.with_name("head.safetensors"), metadata={"format": "pt"})
    save_file({layout.rename(name): value for name, value in saved.items()}, file, metadata={"format": "pt"})
    config["target_modules"] = sorted(layout.rename(name) for name in config["target_modules"])
    config |= {"task_type": layout.task_type, "modules_to_save": list(layout.modules_to_save) or None}
    config["auto_mapping"] = None


def _use(base: Any, folder: str, layout: Layout | None) -> str:
    if layout is not None:
        options, then, s = f", num_labels={base.num_outputs}" if layout.head else "", "", base.settings
        named = {"folder": folder, "loader": layout.loader, "base": base.name_or_path, "options": options}
        if layout.apart:
            ways = {"pooling": _POOLED[base.pooling], "layers": _LAYERS[s.head], "max_tokens": s.max_tokens}
            then = _USE_HEAD.format(num_outputs=base.num_outputs, folder=folder, **ways)
        return _USE_TRANSFORMERS.format(then=then, **named)
    if base.kind == "causal":
        call = "`model(input_ids=, attention_mask=, predict=)`: logits, (tokens where `predict` is true, vocabulary)."
    else:
        inputs = "pixels" if base.settings.name == "mlp" else "input_ids=, attention_mask=, token_type_ids="
        call = f"`model({inputs})` returns logits of shape (batch, {base.num_outputs})."
    settings = ", ".join(f"{key}={value!r}" for key, value in asdict(base.settings).items())
    return _USE.format(settings=settings, num_outputs=base.num_outputs, kind=base.kind, folder=folder, call=call)


def save_merged(
    model: Any, tokenizer: TextTokenizer, folder: Path, *, label_names: Sequence[str] = (), facts: Sequence[str] = ()
) -> None:
    """Add the factors to the base, in place, and write a folder that Hugging Face loads without PEFT."""
    base = model.merge_and_unload()
    base.encoder.float()
    if hasattr(base.encoder, "save_pretrained"):
        base.encoder.save_pretrained(folder)
    else:
        _save(base.encoder, folder / "model.safetensors")
    save_tokenizer(tokenizer, folder)
    use = _LOAD_DECODER.format(folder=folder.name)
    if base.head is not None:
        _save(base.head, folder / "head.safetensors")
        about = {"kind": base.kind, "pooling": getattr(base, "pooling", "mean"), "head": base.settings.head}
        (folder / "head.json").write_text(json.dumps({"labels": list(label_names), **about}, indent=2) + "\n")
        labels = ", ".join(label_names) or "one value"
        use = _LOAD_ENCODER.format(folder=folder.name, pooling=about["pooling"], labels=labels)
    text = f"The LoRA factors are merged into the weights of `{base.name_or_path}`; no adapter library is needed."
    write_card(folder, base, "Model", "transformers", text, use, facts, online=True)


def save_tokenizer(tokenizer: TextTokenizer, folder: Path) -> None:
    """Write a tokenizer's files, where it has some."""
    if isinstance(tokenizer, HubTokenizer):
        tokenizer.tokenizer.save_pretrained(folder)


def _save(module: torch.nn.Module, file: Path) -> None:
    save_file({name: value.contiguous() for name, value in module.state_dict().items()}, file)


def write_card(
    folder: Path, base: Any, title: str, library: str, text: str, use: str, facts: Sequence[str], online: bool
) -> None:
    """Write ``README.md`` for a model that ``library`` loads; a hub is asked for a licence if ``online``."""
    name = base_license(base.settings, online=online)
    line, front = f"the base model is published under {name}, and its terms hold for these weights as well.", ""
    if name == UNKNOWN_LICENSE:
        line = "the licence of the base model could not be determined; look it up before you publish these weights."
    else:
        front = f"license: {name}\n"
    listed = "".join(f"- {fact}\n" for fact in (*facts, *_origin(base.settings)))
    head = {"library": library, "tags": "" if library == "transformers" else "lora, ", "base": base.name_or_path}
    told = {"text": text, "facts": listed and f"{listed}\n", "use": use, "license_line": line}
    (folder / "README.md").write_text(_CARD.format(title=title, license=front, **head, **told), encoding="utf-8")


def _origin(model: ModelSettings) -> list[str]:
    """Say of weights that were 4-bit numbers that they are not the published ones."""
    if model.name == "smollm2":
        return ["Base weights: the published model's, quantised to 4 bits by its packager and written out in float32."]
    if model.gguf_file:
        return [f"Base weights: those of {Path(model.gguf_file).name}, written out in float32 whatever it quantised."]
    return ["Base weights: kept in 4 bits (NF4) while training."] if model.load_in_4bit else []


def base_license(model: ModelSettings, *, online: bool = False) -> str:
    """Return a base's licence by its own card, or ``unknown``; a hub is asked only ``online``: a run must not wait."""
    if model.name != "hub":
        return "apache-2.0"  # packages under this licence, or random weights made by this project
    card = Path(str(model.path)) / "README.md"
    if model.gguf_file or not (card.is_file() or (online and not card.parent.exists())):
        return UNKNOWN_LICENSE
    from huggingface_hub import ModelCard

    try:
        return str(
            ModelCard.load(card if card.is_file() else str(model.path), ignore_metadata_errors=True).data.license
            or UNKNOWN_LICENSE
        )
    except Exception:  # offline, private, or without a card: all the same to the reader
        return UNKNOWN_LICENSE
