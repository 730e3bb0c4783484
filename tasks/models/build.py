"""The model that devices train and the server evaluates: a frozen base with LoRA factors and, for classifiers, a head.

References
----------
.. [Hu2022] Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022.
.. [Kalajdzievski2023] Kalajdzievski, A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA, 2023.
"""

import functools
from dataclasses import dataclass
from typing import Any

from adapter.state import AdapterSpec
from tasks.models.base import build_base, build_shapes
from tasks.models.flops import FlopCount, count_flops
from tasks.models.lora import (
    ALL_LINEAR,
    adapter_spec,
    attach,
    default_targets,
    get_adapter,
    set_adapter,
    spec_of,
    trainable_parameters,
)
from tasks.models.placement import place
from tasks.models.tokenizer import TextTokenizer, load_tokenizer
from tasks.settings import ComputeSettings, Kind, LoraSettings, ModelError, ModelSettings, some_of

__all__ = [
    "ComputeSettings",
    "LoraSettings",
    "ModelDescription",
    "ModelError",
    "ModelSettings",
    "TextTokenizer",
    "adapter_spec",
    "build_base",
    "build_model",
    "describe_model",
    "get_adapter",
    "load_tokenizer",
    "model_notes",
    "set_adapter",
    "trainable_parameters",
]


def build_model(
    model: ModelSettings,
    lora: LoraSettings,
    *,
    num_outputs: int,
    kind: Kind = "classification",
    seed: int = 0,
    compute: ComputeSettings | None = None,
) -> Any:
    """Build the PEFT model of any kind of task; equal arguments give bit-identical values in every process.

    ``num_outputs`` is the number of classes, or 1. ``seed`` draws the head and ``lora_A``; ``lora_B`` starts at zero
    [Hu2022]_. Without ``compute`` the layers are fused, in float32, on the CPU. It is in evaluation mode;
    ``model(**batch.inputs)`` returns logits in float32. `ModelError` if the encoder cannot be loaded or a LoRA module
    does not exist.
    """
    base = build_base(model, num_outputs=num_outputs, kind=kind, seed=seed)
    return place(attach(base, lora, seed=seed), compute or ComputeSettings(dtype="float32", device="cpu")).eval()


def model_notes(model: Any, lora: LoraSettings) -> list[str]:
    """Return what a user is told of a model: weights that nobody reads, modules taken for lack of a usual choice."""
    base, notes = model.base_model.model, []
    unused = getattr(base.encoder, "unused_weights", ())
    if unused:
        notes.append(f"{base.name_or_path}: {len(unused)} weights of the checkpoint are not used: {some_of(unused)}")
    if lora.target_modules is None and not default_targets(base):
        kinds = sorted({module.name.rsplit(".", 1)[-1] for module in adapter_spec(model).modules})
        notes.append(
            f"lora.target_modules: no usual choice for {base.encoder.config.model_type}, so {ALL_LINEAR}: "
            f"{', '.join(kinds)}"
        )
    return notes


@dataclass(frozen=True)
class ModelDescription:
    """What planning needs to know of a model: the adapter's layout, the cost of a step and the encoder's size."""

    spec: AdapterSpec
    flops: FlopCount
    base_parameters: int
    hidden_size: int
    num_layers: int
    num_heads: int


@functools.lru_cache(maxsize=16)
def describe_model(
    model: ModelSettings, lora: LoraSettings, num_outputs: int, kind: Kind = "classification"
) -> ModelDescription:
    """Describe what `build_model` builds of these arguments without its weights, from tensors without storage."""
    base = build_shapes(model, num_outputs=num_outputs, kind=kind)
    spec = spec_of(base, lora)
    parameters = sum(value.numel() for value in base.encoder.parameters())
    shape = base.encoder.config.get_text_config()  # of several, where the model also reads images
    return ModelDescription(
        spec,
        count_flops(base, spec),
        parameters,
        int(shape.hidden_size),
        int(shape.num_hidden_layers),
        int(getattr(shape, "num_attention_heads", 0)),  # a state-space model has none
    )
