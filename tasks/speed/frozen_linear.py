"""Products with frozen weights on processors where PyTorch's default library uses half of their width.

PyTorch hands float32 products to MKL, which takes its 256-bit kernels on every processor that is not Intel's. oneDNN,
which PyTorch carries as well (for bfloat16, and for its compiler), looks at what the processor can do: with AVX-512 on
AMD it is more than twice as fast, forward and backward. Values differ by rounding only. PyTorch offers that product
without a derivative; for a frozen weight there is just one, dx = dy W0.

A frozen layer and its LoRA factors are one differentiable operation:

    y = W0 x + b + s B (A x)           dx = W0ᵀ dy + s Aᵀ(Bᵀ dy),   dA = s (Bᵀ dy) xᵀ,   dB = s dy (A x)ᵀ

PEFT's layer adds the update to a fresh copy of the output and keeps two products of the output's size for the backward
pass. Here the update is added in place, nothing but x and A x is kept, and the backward pass computes only what
somebody asked for. Gathering the kept columns of a masked factor first costs more than the smaller product saves.
Whatever this operation does not cover goes through PEFT's own layer.
"""

import functools
import math
from typing import Any

import torch
from peft.tuners.lora.layer import Linear as PeftLinear
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional

# The first product of a shape prepares its kernel (about a millisecond); a small weight never earns that back. With
# AVX2 alone both libraries are equally fast, but for a language model's head, for which MKL takes 1.5 times as long.
_SMALLEST_WEIGHT, _SMALLEST_WITH_AVX2 = 2**16, 2**24


def wide_products(entries: int) -> bool:
    """Say whether float32 products with such a weight go through oneDNN: by the kind of processor, never by timing."""
    return entries >= _smallest_weight()


@functools.lru_cache(maxsize=1)
def _smallest_weight() -> float:
    """Return the smallest weight for oneDNN; infinite on Intel's processors and where PyTorch lacks the operation."""
    capabilities = torch.cpu.get_capabilities()
    if not capabilities.get("avx2") or "Intel" in str(capabilities.get("cpu_name", "Intel")):
        return math.inf
    x, weight, bias = torch.arange(6.0).view(2, 3), torch.arange(12.0).view(4, 3), torch.arange(4.0)
    try:  # an operation of PyTorch's own compiler: present in the pinned version, promised for none
        found = _one_dnn(x, weight, bias)
    except (AttributeError, RuntimeError, TypeError):
        return math.inf
    if not torch.equal(found, functional.linear(x, weight, bias)):  # small whole numbers: exact in any order
        return math.inf
    return _SMALLEST_WEIGHT if capabilities.get("avx512_f") else _SMALLEST_WITH_AVX2


def frozen_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``x Wᵀ + b`` without a derivative: x (tokens, in), W (out, in) with any strides, b (out,)."""
    if x.dtype == torch.float32 == weight.dtype and x.device.type == "cpu" and wide_products(weight.numel()):
        return _one_dnn(x, weight, bias)
    return functional.linear(x, weight, bias)


class _FrozenProduct(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return frozen_product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return frozen_product(dy, weight.T), None, None


class FrozenLinear(nn.Linear):
    """PyTorch's linear layer with `frozen_product` while its weight is frozen; parameters and saving stay PyTorch's."""

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x Wᵀ + b``."""
        if any(value.requires_grad for value in self.parameters()):
            return super().forward(x)
        flat = x.reshape(-1, x.shape[-1])  # (tokens, in)
        y: Tensor = _FrozenProduct.apply(flat, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return y.view(*x.shape[:-1], y.shape[-1])  # out here, since a view made inside may not be written to in place


def freeze_products(model: Any) -> None:
    """Turn frozen linear layers into `FrozenLinear` where that is faster, in place; LoRA's parts are left to `fuse`."""
    layers: list[Any] = [layer for layer in model.modules() if isinstance(layer, LoraLayer)]
    for module in set(model.modules()).difference(*(layer.modules() for layer in layers)):
        frozen = type(module) is nn.Linear and not module.weight.requires_grad
        if frozen and wide_products(module.weight.numel()):
            module.__class__ = FrozenLinear


def _one_dnn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    library: Any = torch.ops.mkldnn
    y: Tensor = library._linear_pointwise(x, weight, bias, "none", [], "")
    return y


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
    """Let PEFT's linear LoRA layers use the fused operation, in place; others (quantised, Conv1D) stay as they are."""
    for module in model.modules():
        if type(module) is PeftLinear and type(module.base_layer) is nn.Linear:
            module.__class__ = FusedLoraLinear
