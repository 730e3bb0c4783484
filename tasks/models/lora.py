"""LoRA modules on the base: which ones, their seeded values, and their exchange as plain arrays.

Names are PEFT's without the adapter's name: ``base_model.model.encoder…query`` for a LoRA module (its factors are
``….lora_A.weight`` and ``….lora_B.weight`` in a saved adapter) and ``base_model.model.head.weight`` for the head.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from adapter.state import AdapterSpec, AdapterState, FloatArray, ModuleShape
from tasks.settings import LoraSettings, ModelError

PREFIX = "base_model.model."
_ADAPTER = "default"
ALL_LINEAR = "all-linear"
# Beyond PEFT's own table.
_TARGETS: dict[str, tuple[str, ...]] = {"mpnet": ("q", "v"), "mlp": ("dense",)}
_TARGETS |= dict.fromkeys(("distilbert", "xlm"), ("q_lin", "v_lin"))
_TARGETS |= dict.fromkeys(("albert", "camembert"), ("query", "value"))
_TARGETS |= dict.fromkeys(("modernbert", "nomic_bert"), ("Wqkv",))


def target_names(base: Any, lora: LoraSettings) -> list[str]:
    """Return the names of the modules that get LoRA factors, relative to the base, in the order of the model."""
    linear = _adaptable(base)
    # What turns hidden states into logits over the vocabulary, where there is such a layer.
    output: Any = getattr(base.encoder, "get_output_embeddings", lambda: None)()
    in_layers = [name for name, module in linear.items() if layer_index(name) >= 0 and module is not output]
    num_layers = 1 + max(map(layer_index, linear), default=-1)
    if lora.layers != "all" and lora.layers > num_layers:
        raise ModelError(f"lora.layers: expected at most the encoder's {num_layers} layers, found {lora.layers}")
    first = -1 if lora.layers == "all" else num_layers - lora.layers
    chosen: set[str] = set()
    for target in lora.target_modules or default_targets(base) or (ALL_LINEAR,):
        matching = in_layers if target == ALL_LINEAR else [name for name in linear if _matches(name, target)]
        if not matching:
            known = sorted({ALL_LINEAR, *(name.rsplit(".", 1)[-1] for name in linear)})
            raise ModelError(f"lora.target_modules: expected some of {known}, found {target!r}")
        upper = [name for name in matching if layer_index(name) >= first]
        wanted = ""
        adapts_output = any(linear[name] is output for name in matching)
        if adapts_output and output.weight is base.encoder.get_input_embeddings().weight:
            wanted, has = "with weights of their own", "shares them with the input embeddings; leave it out"
        elif not upper:
            wanted, has = f"in the upper {lora.layers} layers (lora.layers)", "has none there"
        if wanted:
            raise ModelError(f"lora.target_modules: expected modules {wanted}, found {target!r}, which {has}")
        chosen.update(upper)
    return [f"encoder.{name}" for name in linear if name in chosen]


def _adaptable(base: Any) -> dict[str, nn.Module]:
    """Return the linear modules of a base, but no pooler, which is not computed, and no router, which returns more."""
    return {
        name.removesuffix(".base_layer"): module
        for name, module in base.encoder.named_modules()
        if linear_shape(module) is not None
        and ".lora_" not in name
        and "pooler" not in name.split(".")
        and not type(module).__module__.startswith("transformers.models.")
    }


def spec_of(base: Any, lora: LoraSettings) -> AdapterSpec:
    """Return the layout that `attach` gives ``base``; works on meta tensors."""
    shapes: dict[str, Any] = {name: linear_shape(base.get_submodule(name)) for name in target_names(base, lora)}
    trained = () if base.head is None or base.settings.freeze_head else base.head.named_parameters()
    head = tuple((f"{PREFIX}head.{name}", tuple(value.shape)) for name, value in trained)
    modules = (ModuleShape(PREFIX + name, shape[0], shape[1], lora.r) for name, shape in shapes.items())
    return AdapterSpec(tuple(modules), head)


def attach(base: Any, lora: LoraSettings, *, seed: int) -> Any:
    """Wrap the base as a PEFT model with seeded factors: A as ``lora.init`` says, B zero beside a frozen weight.

    ``seed`` draws ``lora_A`` and leaves the global generator as it was. Only LoRA factors and (unless frozen) the head
    require a gradient.
    """
    from peft import LoraConfig, get_peft_model

    targets = target_names(base, lora)
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.lora_alpha,  # type: ignore[arg-type]  # PEFT divides; a float is fine
        use_rslora=lora.use_rslora,
        lora_dropout=lora.lora_dropout,
        bias="none",
        target_modules=targets,
        fan_in_fan_out=not isinstance(base.get_submodule(targets[0]), nn.Linear),  # GPT-2's Conv1D
        # A frozen head is saved too: an exported adapter is complete.
        modules_to_save=None if base.head is None else ["head"],
    )
    with torch.random.fork_rng(devices=[]):  # PEFT initialises from the global generator
        model = get_peft_model(base, config)
    generator = torch.Generator().manual_seed(seed)
    for _, factor_A, factor_B in _factors(model):
        # Done again here, module by module, so that the values depend on the seed alone and not on PEFT's order.
        if lora.init == "orthogonal":
            nn.init.orthogonal_(factor_A, generator=generator)
        else:
            nn.init.kaiming_uniform_(factor_A, a=math.sqrt(5), generator=generator)
        if base.settings.frozen_weight:
            nn.init.zeros_(factor_B)
        else:  # ReLU passes no gradient at zero
            nn.init.kaiming_uniform_(factor_B, a=math.sqrt(5), generator=generator)
    if base.settings.freeze_head and base.head is not None:
        head_of(model).requires_grad_(False)
    return model


def adapter_spec(model: Any) -> AdapterSpec:
    """Return the layout of a model's adapter."""
    modules = tuple(ModuleShape(name, len(b), a.shape[1], len(a)) for name, a, b in _factors(model))
    return AdapterSpec(modules, tuple((name, tuple(value.shape)) for name, value in _trained_head(model)))


def get_adapter(model: Any) -> AdapterState:
    """Return float32 copies of the adapter's values."""
    lora_A = {name: _to_numpy(a) for name, a, _ in _factors(model)}
    lora_B = {name: _to_numpy(b) for name, _, b in _factors(model)}
    return AdapterState(lora_A, lora_B, {name: _to_numpy(value) for name, value in _trained_head(model)})


@torch.no_grad()
def set_adapter(model: Any, state: AdapterState) -> None:
    """Copy values into the model's adapter, and set its base to the pristine one plus ``state.base``."""
    state.check(adapter_spec(model))
    for name, a, b in _factors(model):
        a.copy_(_to_tensor(state.lora_A[name]))
        b.copy_(_to_tensor(state.lora_B[name]))
    for name, parameter in _trained_head(model):
        parameter.copy_(_to_tensor(state.head[name]))
    set_base(model, state.base)


def trainable_parameters(model: Any, factors: Sequence[str] = ("A", "B")) -> dict[str, nn.Parameter]:
    """Return what a device trains, by name: ``<module>.lora_A``, ``<module>.lora_B``, the head unless frozen."""
    found: dict[str, nn.Parameter] = {}
    for name, a, b in _factors(model):
        found |= {f"{name}.lora_{factor}": value for factor, value in (("A", a), ("B", b)) if factor in factors}
    return found | dict(_trained_head(model))


@torch.no_grad()
def set_base(model: Any, deltas: Mapping[str, FloatArray]) -> None:
    """Set frozen weights to ``W0 + delta``; a module that is not named gets its pristine W0 back, bit for bit.

    Devices take turns with one model: counted from W0 and never from the last state, a change cannot leak from one to
    the next, and the weights do not depend on the order. A module in half precision becomes one in float32 while it is
    changed: in bfloat16, whatever is smaller than 1/256 of a weight would be rounded away.

    ``deltas`` have shape (out_features, in_features), whatever way round the module stores its weight.
    """
    pristine: dict[str, torch.Tensor] = model.__dict__.setdefault("_pristine_base", {})
    if not deltas and not pristine:
        return
    layers = {name: layer.get_base_layer() for name, layer in lora_layers(model)}
    for name in [name for name in pristine if name not in deltas]:
        _set_number_type(layers[name], pristine[name].dtype)
        layers[name].weight.copy_(pristine.pop(name))
    for name, delta in deltas.items():
        if name not in layers:
            raise ValueError(f"base update names a module without LoRA: {name}")
        base = layers[name]
        if not base.weight.is_floating_point():
            mend = "use model.load_in_4bit=false"
            raise ModelError(f"{name}: this method changes the base, whose weights are quantised; {mend}")
        if delta.shape != linear_shape(base):
            raise ValueError(f"base update of {name} has shape {delta.shape}, expected {linear_shape(base)}")
        if name not in pristine:
            pristine[name] = base.weight.detach().clone()
            _set_number_type(base, torch.promote_types(base.weight.dtype, torch.float32))
        update = _to_tensor(delta).to(base.weight)  # (out_features, in_features)
        # GPT-2's Conv1D keeps (in_features, out_features).
        base.weight.copy_(pristine[name] + (update if isinstance(base, nn.Linear) else update.T))


def _set_number_type(base: nn.Module, dtype: torch.dtype) -> None:
    """Let a module hold and multiply its numbers in ``dtype``; what comes in and goes out keeps its type."""
    if base.weight.dtype == dtype:
        return
    arrived = base.weight.dtype
    hooks: list[Any] = base.__dict__.setdefault("_number_type_hooks", [])
    base.to(dtype)
    if hooks:  # the way back
        hooks.pop().remove()
        hooks.pop().remove()
        return
    hooks.append(base.register_forward_pre_hook(lambda _, inputs: (inputs[0].to(dtype), *inputs[1:])))
    hooks.append(base.register_forward_hook(lambda _, __, output: output.to(arrived)))


def lora_layers(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield name and layer of every LoRA module, in the order of the adapter's layout."""
    from peft.tuners.lora import LoraLayer

    return ((name, layer) for name, layer in model.named_modules() if isinstance(layer, LoraLayer))


def _factors(model: Any) -> Iterator[tuple[str, nn.Parameter, nn.Parameter]]:
    return ((name, part.lora_A[_ADAPTER].weight, part.lora_B[_ADAPTER].weight) for name, part in lora_layers(model))


def head_of(model: Any) -> Any:
    """Return the head that is trained; PEFT keeps the initial one beside it."""
    return model.base_model.model.head.modules_to_save[_ADAPTER]


def _trained_head(model: Any) -> list[tuple[str, nn.Parameter]]:
    base = model.base_model.model
    if base.head is None or base.settings.freeze_head:
        return []
    return [(f"{PREFIX}head.{name}", value) for name, value in head_of(model).named_parameters()]


def linear_shape(module: nn.Module) -> tuple[int, int] | None:
    """Shape (out_features, in_features), or None for a module without LoRA support here."""
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    if type(module).__name__ == "Conv1D":  # GPT-2's transposed linear layer
        in_features, out_features = module.weight.shape  # type: ignore[misc]
        return int(out_features), int(in_features)
    return None


def layer_index(name: str) -> int:
    """Index of the encoder layer a module lies in: the first number in its name; -1 outside the layers."""
    return next((int(part) for part in name.split(".")[:-1] if part.isdigit()), -1)


def _matches(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def default_targets(base: Any) -> tuple[str, ...]:
    """Return the names that LoRA usually adapts in an architecture, PEFT's where it has some; empty where unknown."""
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as known

    architecture = base.encoder.config.model_type
    targets = _TARGETS.get(architecture, known.get(architecture, ()))
    names = _adaptable(base)
    if isinstance(targets, str):  # PEFT's patterns match whole names
        return tuple(name for name in names if re.fullmatch(targets, name))
    return tuple(target for target in targets if any(_matches(name, target) for name in names))


def _to_numpy(value: torch.Tensor) -> FloatArray:
    return value.detach().to("cpu", torch.float32).numpy().copy()


def _to_tensor(value: FloatArray) -> torch.Tensor:
    return torch.from_numpy(np.array(value, dtype=np.float32))  # a copy: received arrays are often read-only
