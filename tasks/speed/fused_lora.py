r"""A frozen linear layer and its LoRA factors as one differentiable operation.

    y = W0 x + b + s B (A x)           dx = W0ᵀ dy + s Aᵀ(Bᵀ dy),   dA = s (Bᵀ dy) xᵀ,   dB = s dy (A x)ᵀ

PEFT's layer adds the update to a fresh copy of the output and keeps two products of the output's size for the backward
pass. Here the update is added in place, nothing but x and A x is kept, and the backward pass computes only what
somebody asked for. Gathering the kept columns of a masked factor first costs more than the smaller product saves.
Whatever this operation does not cover goes through PEFT's own layer.
"""

from typing import Any

from peft.tuners.lora.layer import Linear as PeftLinear
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from tasks.speed.frozen_linear import frozen_product


class LoraProduct(Function):
    """``W0 x + b + s B (A x)`` with W0 and b frozen; see the module's formulas."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, lora_A: Tensor, lora_B: Tensor, scaling: float
    ) -> Tensor:
        """Return y for x (tokens, in), weight (out, in), bias (out,), lora_A (r, in), lora_B (out, r)."""
        # Rank first: a product with r rows is two to four times as fast on the CPU as one with r columns.
        low = lora_A @ x.T  # (r, tokens)
        y = frozen_product(x, weight, bias)  # (tokens, out)
        y.addmm_(low.T, lora_B.T, alpha=scaling)
        needs_A, needs_B = ctx.needs_input_grad[3:5]
        ctx.save_for_backward(x if needs_A else None, low if needs_B else None, weight, lora_A, lora_B)
        ctx.scaling = scaling
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, lora_A and lora_B that are needed."""
        x, low, weight, lora_A, lora_B = ctx.saved_tensors
        needs_x, _, _, needs_A, needs_B, _ = ctx.needs_input_grad
        dx = dA = dB = None
        if needs_x or needs_A:
            dlow = lora_B.T @ dy.T  # (r, tokens)
        if needs_x:
            dx = frozen_product(dy, weight.T)
            dx.addmm_(dlow.T, lora_A, alpha=ctx.scaling)
        if needs_A:
            dA = (dlow @ x).mul_(ctx.scaling)  # (r, in)
        if needs_B:
            dB = (low @ dy).mul_(ctx.scaling).T  # (out, r)
        return dx, None, None, dA, dB, None


def lora_product(x: Tensor, *weights: Any) -> Tensor:
    """Return `LoraProduct` of x (…, in); a view made in there could not be written to in place."""
    y: Tensor = LoraProduct.apply(x.reshape(-1, x.shape[-1]), *weights)  # type: ignore[no-untyped-call]
    return y.view(*x.shape[:-1], y.shape[-1])


class FusedLoraLinear(PeftLinear):
    """PEFT's LoRA layer with `LoraProduct` wherever it applies; parameters, saving, loading and merging stay PEFT's."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return ``W0 x + b + s B A x``."""
        name = self._fusable_adapter(x) if not args and not kwargs else None
        if name is None:
            plain: Tensor = super().forward(x, *args, **kwargs)
            return plain
        base = self.base_layer
        # Factors are kept in float32; the product is taken in the number type of the base.
        lora_A, lora_B = (factor[name].weight.to(x.dtype) for factor in (self.lora_A, self.lora_B))
        return lora_product(x, base.weight, base.bias, lora_A, lora_B, self.scaling[name])

    def _fusable_adapter(self, x: Tensor) -> str | None:
        """Name of the one active adapter, None where PEFT's own forward must run."""
        active = self.active_adapters
        if self.disable_adapters or self.merged or len(active) != 1 or active[0] not in self.lora_A:
            return None
        base, name = self.base_layer, active[0]
        frozen = type(base) is nn.Linear and not any(value.requires_grad for value in base.parameters())
        plain = name not in self.lora_variant and isinstance(self.lora_dropout[name], nn.Identity)
        bias_free = self.lora_B[name].bias is None and self.lora_A[name].bias is None
        return name if frozen and plain and bias_free and x.dtype == base.weight.dtype else None


def fuse(model: Any) -> None:
    """Let every LoRA layer of a PEFT model that is exactly PEFT's linear one use the fused operation, in place.

    The others (quantised bases, Conv1D, embeddings) stay as they are.
    """
    for module in model.modules():
        if type(module) is PeftLinear and type(module.base_layer) is nn.Linear:
            module.__class__ = FusedLoraLinear
