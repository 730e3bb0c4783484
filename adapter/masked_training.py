r"""Train a sub-adapter inside a dense LoRA model: dropped entries are zero, get no gradient and cannot regrow.

The module computes ``W0 x + s B̂ Â x`` with :math:`\hat A = A\,\mathrm{diag}(m_A)/(1-\gamma)` and
:math:`\hat B = \mathrm{diag}(m_B)\,B/(1-\gamma)`, so that the mean of B̂Â over masks is BA. The factors 1/(1-gamma) are
constants of the round and are folded into the scaling s, which leaves the gradients of the kept entries exact.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from adapter.mask import AdapterMask, Factors
from adapter.state import AdapterSpec, AdapterState

ADAPTER = "default"  # PEFT's name of the one adapter in a layer


@contextmanager
def masked_adapter(
    layers: Mapping[str, Any], spec: AdapterSpec, sub: AdapterState, mask: AdapterMask, scale: float, factors: Factors
) -> Iterator[None]:
    """Load a sub-adapter into dense layers for the duration of the context; on exit they are as trainable as before.

    ``layers`` are PEFT's, named as in ``spec``; ``sub`` holds the values received: `adapter.pack.gather`. ``factors``
    train; another one is loaded and frozen where it is present and keeps what the layer holds where it is absent.
    ``scale`` multiplies the layers' scaling: 1/(1-gamma) per dropped factor, 1 in the unscaled form.
    """
    with ExitStack() as undo:
        for module, kept in zip(spec.modules, mask.modules, strict=True):
            layer = layers[module.name]
            for factor, axis, index in (("A", 1, kept.columns), ("B", 0, kept.rows)):
                weight = getattr(layer, f"lora_{factor}")[ADAPTER].weight
                values = getattr(sub, f"lora_{factor}").get(module.name)
                keep = torch.from_numpy(index).to(weight.device)
                if values is not None:
                    # A device of lower rank fills the first components: the others are zero on both sides of the
                    # product, so their gradients are zero too.
                    dense = weight.detach().zero_()
                    filled = dense[: module.r] if axis else dense[:, : module.r]
                    filled.index_copy_(axis, keep, torch.as_tensor(values, dtype=weight.dtype, device=weight.device))
                undo.callback(weight.requires_grad_, weight.requires_grad)
                weight.requires_grad_(factor in factors)
                if factor in factors and index.size < weight.shape[axis]:
                    undo.callback(_zero_dropped_gradient(weight, keep, axis).remove)
            undo.callback(layer.scaling.__setitem__, ADAPTER, layer.scaling[ADAPTER])
            layer.scaling[ADAPTER] *= scale
        yield


def _zero_dropped_gradient(weight: torch.Tensor, keep: torch.Tensor, axis: int) -> Any:
    """Multiply the gradient by the mask: with zero values and zero moments no optimizer moves what was dropped."""
    survivors = torch.zeros(weight.shape[axis], dtype=weight.dtype, device=weight.device)
    survivors[keep] = 1
    survivors = survivors.unsqueeze(1 - axis)  # (1, n) for lora_A, (m, 1) for lora_B
    return weight.register_hook(lambda gradient: gradient * survivors)  # type: ignore[no-untyped-call]
