"""The model card of an export: what it is, how to load it, and under which licence."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
        return str(ModelCard.load(card if card.is_file() else str(model.path)).data.license or UNKNOWN_LICENSE)
    except Exception:  # offline, private, or without a card: all the same to the reader
        return UNKNOWN_LICENSE
