"""Where a model is computed, in which numbers, and by which layers."""

from __future__ import annotations

from typing import Any

import torch

from tasks.settings import ComputeSettings, ModelError


def pick_device(compute: ComputeSettings) -> torch.device:
    """Return the device that the settings ask for.

    Raises
    ------
    ModelError
        If a GPU is asked for and this process sees none.
    """
    available = torch.cuda.is_available()
    if compute.device == "cuda" and not available:
        raise ModelError("training.device: expected a GPU that PyTorch can use, found none; use training.device=auto")
    return torch.device("cuda" if available and compute.device != "cpu" else "cpu")


def pick_dtype(compute: ComputeSettings, device: torch.device) -> torch.dtype:
    """Return the number type of the frozen weights on ``device``."""
    if compute.dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if compute.dtype == "bfloat16" else torch.float32


def place(model: Any, compute: ComputeSettings) -> Any:
    """Move a PEFT model to its device, give its frozen floating-point weights their number type, fuse its LoRA layers.

    Parameters
    ----------
    model : peft.PeftModel
        Changed in place. LoRA factors and head keep float32, so that small changes are not lost to rounding.
    compute : ComputeSettings
        What to do.

    Returns
    -------
    peft.PeftModel
        The same model.

    Raises
    ------
    ModelError
        If its device is not there.
    """
    device = pick_device(compute)
    dtype = pick_dtype(compute, device)
    if compute.fused_lora:
        from tasks.speed.frozen_linear import freeze_products
        from tasks.speed.fused_lora import fuse

        fuse(model)
        freeze_products(model)
    encoder: Any = getattr(model.base_model.model, "encoder", None)
    quantised = encoder is None or any(not value.is_floating_point() for value in encoder.parameters())
    if dtype != torch.float32 and not quantised:  # a 4-bit base has chosen its own number types
        for name, value in [*encoder.named_parameters(), *encoder.named_buffers()]:
            if "lora_" not in name and value.is_floating_point():
                value.data = value.data.to(dtype)
    return model.to(device)
