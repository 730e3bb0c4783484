"""The model that devices train and the server evaluates: a frozen base with LoRA factors and, for classifiers, a head.

[Hu2022]: Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022.
"""

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from adapter.state import AdapterSpec
from tasks.models.bases import CausalModel, ImageClassifier, TextClassifier, build_classifier, build_decoder
from tasks.models.flops import FlopCount, count_flops
from tasks.models.lora import ALL_LINEAR, adapter_spec, attach, default_targets, spec_of
from tasks.models.placement import place
from tasks.models.transformer import random_transformer, transformer_config
from tasks.settings import ComputeSettings, Kind, LoraSettings, ModelSettings, some_of

BaseModel = TextClassifier | CausalModel | ImageClassifier


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
    [Hu2022]; the global generator stays as it was. Without ``compute`` the layers are fused, in float32, on the CPU.
    It is in evaluation mode; ``model(**batch.inputs)`` returns logits in float32.
    """
    base = build_base(model, num_outputs=num_outputs, kind=kind, seed=seed)
    return place(attach(base, lora, seed=seed), compute or ComputeSettings(dtype="float32", device="cpu")).eval()


def build_base(model: ModelSettings, *, num_outputs: int, kind: Kind = "classification", seed: int = 0) -> BaseModel:
    """Build the frozen base of `build_model` without an adapter, in float32 (4 bits where asked for)."""
    base: BaseModel
    with torch.random.fork_rng(devices=[]):  # constructors draw from the global generator
        if kind == "causal":
            base = build_decoder(model)
        elif model.name == "mlp":
            base = ImageClassifier(model, num_outputs)
        else:
            base = build_classifier(model, num_outputs, kind)
    if not isinstance(base, CausalModel):
        generator = torch.Generator().manual_seed(seed)
        for module in base.head.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=base.head_std, generator=generator)
                nn.init.zeros_(module.bias)
        base.head.to(next(base.encoder.parameters()).device)
    return base.requires_grad_(False).eval()


def build_shapes(model: ModelSettings, *, num_outputs: int, kind: Kind = "classification") -> BaseModel:
    """Build the base for its names and shapes, on PyTorch's meta device."""
    causal = kind == "causal"
    if model.name == "mlp" and not causal:
        with torch.device("meta"):
            return ImageClassifier(model, num_outputs)
    config = transformer_config(model, causal=causal)  # a model that is not unpacked yet must not be read onto meta
    with torch.device("meta"):
        transformer = random_transformer(config, causal=causal)
        return CausalModel(transformer, model) if causal else TextClassifier(transformer, model, num_outputs, kind)


def model_notes(model: Any, lora: LoraSettings) -> list[str]:
    """Return what a user is told of a model: weights that nobody reads, modules taken for lack of a usual choice."""
    base, notes = model.base_model.model, []
    if unused := getattr(base.encoder, "unused_weights", ()):
        notes.append(f"{base.name_or_path}: {len(unused)} weights of the checkpoint are not used: {some_of(unused)}")
    if lora.target_modules is None and not default_targets(base):
        kinds = sorted({module.name.rsplit(".", 1)[-1] for module in adapter_spec(model).modules})
        taken = f"{ALL_LINEAR}: {', '.join(kinds)}"
        notes.append(f"lora.target_modules: no usual choice for {base.encoder.config.model_type}, so {taken}")
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
    heads = getattr(shape, "num_attention_heads", 0)  # a state-space model has none
    flops = count_flops(base, spec)
    return ModelDescription(spec, flops, parameters, shape.hidden_size, shape.num_hidden_layers, heads)
