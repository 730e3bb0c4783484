"""An adapter as a folder that PEFT loads: configuration, factors, head and a model card."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import load, save_file

from tasks.export.card import write_card
from tasks.export.transformers_names import Layout
from tasks.models.lora import PREFIX

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
