"""Where a model is computed, in which numbers, and by which layers: the one door to `tasks.speed`.

Nothing else imports `tasks.speed`. Without that folder a model trains the same way, more slowly.
"""

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tasks.models.files import bfloat16_weights
from tasks.settings import ComputeSettings, Kind, ModelError, PrefixSettings

_SPEED = importlib.util.find_spec("tasks.speed") is not None
KeptStates = Any  # `tasks.speed.prefix_cache.PrefixCache`: what the frozen lower layers make of examples


def layered(transformer: Any, *, causal: bool) -> Callable[..., Tensor] | None:
    """Return what runs a transformer on its lower layers' states, an encoder without padding; None where it cannot."""
    if not _SPEED:
        return None
    from tasks.speed import cut_decoder, unpadded

    if causal:
        return cut_decoder.logits_above if cut_decoder.can_be_cut(transformer) else None
    return unpadded.hidden_states if unpadded.runs_layer_by_layer(transformer) else None


def keep_states(model: Any, settings: PrefixSettings | None) -> tuple[KeptStates | None, str]:
    """Return what keeps the states of a PEFT model's frozen lower layers, or None and why ("": there is no need)."""
    if settings is None or not _SPEED:
        return None, ""
    from tasks.speed.prefix_cache import open_prefix_cache

    return open_prefix_cache(model, settings)


def pick_device(compute: ComputeSettings) -> torch.device:
    """Return the device that the settings ask for; `ModelError` if it is a GPU and this process does not see it."""
    count, number = torch.cuda.device_count(), int(compute.device.partition(":")[2] or 0)
    if compute.device.startswith("cuda") and number >= count:
        found = f"found {count or 'none'}; use training.device=auto"
        raise ModelError(f"training.device={compute.device}: expected a GPU that PyTorch can use, {found}")
    if compute.device == "auto":
        return torch.device("cuda" if count else "cpu")
    return torch.device(compute.device)


@functools.lru_cache(maxsize=1)
def multiplies_bfloat16() -> bool:
    """Say whether the processor has products of bfloat16: AMX's are seven times as fast as float32, AVX-512's twice."""
    found = torch.cpu.get_capabilities()
    return bool(found.get("amx_bf16") or found.get("avx512_bf16"))


def pick_dtype(compute: ComputeSettings, device: torch.device, kind: Kind = "classification") -> torch.dtype:
    """Return the number type of the frozen weights on ``device``: decided by the kind of hardware, never by timing."""
    half = compute.dtype == "bfloat16"
    if compute.dtype == "auto":
        half = torch.cuda.is_bf16_supported() if device.type == "cuda" else kind == "causal" and multiplies_bfloat16()
    return torch.bfloat16 if half else torch.float32


def place(model: Any, compute: ComputeSettings) -> Any:
    """Move a PEFT model to its device, give its frozen floating-point weights their number type, fuse its LoRA layers.

    The model is changed in place. LoRA factors and head keep float32, so that small changes are not lost to rounding.
    """
    device = pick_device(compute)
    base = model.base_model.model
    encoder, dtype = base.encoder, pick_dtype(compute, device, base.kind)
    if compute.fused_lora and _SPEED:
        from tasks.speed.frozen_linear import freeze_products, fuse

        fuse(model)
        freeze_products(model)
        if base.kind == "causal" and device.type == "cpu" and encoder.config._attn_implementation == "sdpa":
            encoder.set_attn_implementation("eager")  # a third of the step at 64 tokens; see docs/performance.md
    if compute.gradient_checkpointing:
        if not getattr(encoder, "supports_gradient_checkpointing", False):
            raise ModelError(f"training.gradient_checkpointing: expected false for {base.name_or_path}, found true")
        renamed = getattr(encoder, "activation_checkpointing_enable", None)  # its name of late
        (renamed or encoder.gradient_checkpointing_enable)({"use_reentrant": False})
        encoder.disable_input_require_grads()  # wanted by the reentrant kind alone
    quantised = any(not value.is_floating_point() for value in encoder.parameters())
    if dtype == torch.bfloat16 and not quantised:  # a 4-bit base has chosen its own number types
        shared = bfloat16_weights(base.settings) if device.type == "cpu" else {}
        for name, value in [*encoder.named_parameters(), *encoder.named_buffers()]:
            if "lora_" not in name and value.is_floating_point():
                known = shared.get(name.replace(".base_layer", ""))
                value.data = value.data.to(dtype) if known is None else known
    return model.to(device)
