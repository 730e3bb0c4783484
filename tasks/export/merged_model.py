"""A trained model without LoRA modules: factors added to the base, saved as a plain Hugging Face folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from transformers.utils.logging import disable_progress_bar

from tasks.models.encoder import width
from tasks.models.files import MINILM_HUB_ID
from tasks.models.tokenizer import HubTokenizer, TextTokenizer
from tasks.settings import ModelError, ModelSettings

UNKNOWN_LICENSE = "unknown"
_CARD = """---
{front}
---

# {title}

Trained with fedlodrop on `{base}`: {what}.

License: {license_line}

{use}
"""
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
_GGUF = """Weights are float16, ready for llama.cpp's converter: `python convert_hf_to_gguf.py {folder}`.{head}"""


def base_license(model: ModelSettings, *, online: bool = False) -> str:
    """Return the licence of a base model as its own card names it, or ``unknown``: then look it up before you publish.

    What a run writes at its end must not wait for a network: the model hub is asked only where ``online``.
    """
    if model.name == "minilm":
        return "apache-2.0"
    if model.name != "hub":
        return "apache-2.0"  # random weights, made by this project
    if model.gguf_file:
        return UNKNOWN_LICENSE
    card = Path(str(model.path)) / "README.md"
    if card.is_file():
        return _license_in(card.read_text(encoding="utf-8"))
    if Path(str(model.path)).exists() or not online:
        return UNKNOWN_LICENSE
    from huggingface_hub import ModelCard

    try:
        return _license_in(str(ModelCard.load(str(model.path)).content))
    except Exception:  # offline, private, or without a card: all the same to the reader
        return UNKNOWN_LICENSE


def _license_in(card: str) -> str:
    import yaml

    parts = card.split("---")
    front = yaml.safe_load(parts[1]) if card.startswith("---") and len(parts) > 2 else None
    return str((front or {}).get("license") or UNKNOWN_LICENSE)


def license_line(name: str) -> str:
    """Return the sentence about the base's licence for a model card."""
    if name == UNKNOWN_LICENSE:
        return "the licence of the base model could not be determined; look it up before you publish these weights."
    return f"the base model is published under {name}, and its terms hold for these weights as well."


def save_merged(
    model: Any, tokenizer: TextTokenizer, folder: Path, *, label_names: Sequence[str] = (), gguf: bool = False
) -> None:
    """Add the factors to the base and write a folder that Hugging Face loads without PEFT.

    The model is merged in place; the tokenizer goes along where it has files; the folder exists and is empty. ``gguf``
    takes float16 and adds the files that llama.cpp's converter reads.

    Raises `ModelError` if the model has no transformer that a converter knows.
    """
    cast(Any, disable_progress_bar)()  # one file is written in a moment
    base = model.merge_and_unload()
    settings: ModelSettings = base.settings
    dtype = torch.float16 if gguf else torch.float32
    if gguf and (settings.name == "mlp" or not isinstance(tokenizer, HubTokenizer)):
        raise ModelError(
            f"--to gguf-ready: expected a transformer with a tokenizer of its own, found model={settings.name}"
        )
    if hasattr(base.encoder, "save_pretrained"):
        base.encoder.to(dtype).save_pretrained(folder)
    else:
        save_file(
            {name: value.contiguous().to(dtype) for name, value in base.encoder.state_dict().items()},
            folder / "model.safetensors",
        )
    save_tokenizer(tokenizer, folder)
    if base.head is not None:
        save_file(
            {name: value.contiguous() for name, value in base.head.state_dict().items()}, folder / "head.safetensors"
        )
        labels = {"labels": list(label_names), "kind": base.kind, "pooling": base.pooling, "head": settings.head}
        (folder / "head.json").write_text(json.dumps(labels, indent=2) + "\n")
    if gguf and base.head is not None:
        _write_pooling(folder, width(base.encoder.config), base.pooling)
    (folder / "README.md").write_text(_card(base, folder, label_names, gguf), encoding="utf-8")


def save_tokenizer(tokenizer: TextTokenizer, folder: Path) -> None:
    """Write a tokenizer's files, where it has some."""
    if isinstance(tokenizer, HubTokenizer):
        tokenizer.tokenizer.save_pretrained(folder)


def _write_pooling(folder: Path, hidden_size: int, pooling: str) -> None:
    """Write the files of sentence-transformers from which a converter takes the kind of pooling."""
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    (folder / "modules.json").write_text(json.dumps(modules, indent=2) + "\n")
    (folder / "1_Pooling").mkdir()
    modes = {
        "word_embedding_dimension": hidden_size,
        "pooling_mode_cls_token": pooling == "cls",
        "pooling_mode_mean_tokens": pooling == "mean",
        "pooling_mode_lasttoken": pooling == "last",
    }
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(modes, indent=2) + "\n")


def _card(base: Any, folder: Path, label_names: Sequence[str], gguf: bool) -> str:
    settings: ModelSettings = base.settings
    name = MINILM_HUB_ID if settings.name == "minilm" else base.name_or_path
    license_name = base_license(settings, online=True)
    front = ["library_name: transformers", f"base_model: {name}", "tags: [federated-learning, fedlodrop]"]
    front += [f"license: {license_name}"] * (license_name != UNKNOWN_LICENSE)
    labels = ", ".join(label_names) or "one value"
    template = _LOAD_DECODER if base.head is None else _LOAD_ENCODER
    use = template.format(folder=folder.name, pooling=getattr(base, "pooling", "mean"), labels=labels)
    if gguf:
        head = "" if base.head is None else " GGUF has no place for the task head: it stays in `head.safetensors`."
        use = _GGUF.format(folder=folder.name, head=head) + "\n\n" + use
    return _CARD.format(
        front="\n".join(front),
        title="Model trained with fedlodrop",
        base=name,
        license_line=license_line(license_name),
        use=use,
        what="the LoRA factors are merged into the weights, so no adapter library is needed",
    )
