"""A trained model without LoRA modules: factors added to the base, saved as a plain Hugging Face folder."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tasks.export.card import write_card
from tasks.models.tokenizer import HubTokenizer, TextTokenizer

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
