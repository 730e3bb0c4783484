"""Where a model is computed, in which numbers, and by which layers: the one door to `tasks.speed`.

Nothing else imports `tasks.speed`. Without that folder a model trains the same way, more slowly.
"""

import functools
import importlib.util
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from tasks.data.model_inputs import Encoded
from tasks.models.gguf_import import bfloat16_weights
from tasks.settings import ComputeSettings, Kind, ModelError, PrefixSettings


class KeptStates(Protocol):
    """What the frozen lower layers make of examples, kept once it is computed (`tasks.speed.prefix_cache`)."""

    uses: int

    def source(self, data: Encoded) -> Encoded:
        """Return the examples with their states in place of their token ids; anything but texts as it is."""

    def report(self) -> dict[str, float]:
        """Return hit rate and sizes, for the log and the summary."""

    def describe(self) -> str:
        """Return `report` as one line."""


def _has_speed() -> bool:
    return importlib.util.find_spec("tasks.speed") is not None


def layered(encoder: Any) -> Callable[..., Tensor] | None:
    """Return what runs an encoder layer by layer, without padding; None where that is not all that it computes."""
    if not _has_speed():
        return None
    from tasks.speed.unpadded import hidden_states, runs_layer_by_layer

    return hidden_states if runs_layer_by_layer(encoder) else None


def cut(decoder: Any) -> Callable[..., Tensor] | None:
    """Return what computes a decoder's logits from its lower layers' states; None where it needs more than these."""
    if not _has_speed():
        return None
    from tasks.speed.cut_decoder import can_be_cut, logits_above

    return logits_above if can_be_cut(decoder) else None


def keep_states(model: Any, settings: PrefixSettings | None) -> tuple[KeptStates | None, str]:
    """Return what keeps the states of a PEFT model's frozen lower layers, or None and why ("": there is no need)."""
    if settings is None or not _has_speed():
        return None, ""
    from tasks.speed.prefix_cache import open_prefix_cache

    return open_prefix_cache(model, settings)


def pick_device(compute: ComputeSettings) -> torch.device:
    """Return the device that the settings ask for.

    Raises `ModelError` if a GPU is asked for and this process sees none.
    """
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
    if compute.dtype == "auto":
        fast = torch.cuda.is_bf16_supported() if device.type == "cuda" else kind == "causal" and multiplies_bfloat16()
        return torch.bfloat16 if fast else torch.float32
    return torch.bfloat16 if compute.dtype == "bfloat16" else torch.float32


def place(model: Any, compute: ComputeSettings) -> Any:
    """Move a PEFT model to its device, give its frozen floating-point weights their number type, fuse its LoRA layers.

    The model is changed in place. LoRA factors and head keep float32, so that small changes are not lost to rounding.

    Raises `ModelError` if its device is not there.
    """
    device = pick_device(compute)
    base = model.base_model.model
    dtype = pick_dtype(compute, device, base.kind)
    if compute.fused_lora and _has_speed():
        from tasks.speed.frozen_linear import freeze_products
        from tasks.speed.fused_lora import fuse

        fuse(model)
        freeze_products(model)
        attention = getattr(getattr(getattr(base, "encoder", None), "config", None), "_attn_implementation", None)
        if base.kind == "causal" and device.type == "cpu" and attention == "sdpa":
            base.encoder.set_attn_implementation("eager")  # a third of the step at 64 tokens; see docs/performance.md
    encoder: Any = getattr(base, "encoder", None)
    if compute.gradient_checkpointing:
        if not getattr(encoder, "supports_gradient_checkpointing", False):
            raise ModelError(f"training.gradient_checkpointing: expected false for {base.name_or_path}, found true")
        renamed = getattr(encoder, "activation_checkpointing_enable", None)  # its name of late
        (renamed or encoder.gradient_checkpointing_enable)({"use_reentrant": False})
        encoder.disable_input_require_grads()  # wanted by the reentrant kind alone
    quantised = encoder is None or any(not value.is_floating_point() for value in encoder.parameters())
    if dtype != torch.float32 and not quantised:  # a 4-bit base has chosen its own number types
        shared = bfloat16_weights(base.settings) if dtype == torch.bfloat16 and device.type == "cpu" else {}
        for name, value in [*encoder.named_parameters(), *encoder.named_buffers()]:
            if "lora_" not in name and value.is_floating_point():
                known = shared.get(name.replace(".base_layer", ""))
                value.data = value.data.to(dtype) if known is None else known
    return model.to(device)
