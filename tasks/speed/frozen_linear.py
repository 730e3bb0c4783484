"""Products with frozen weights on processors where PyTorch's default library uses half of their width.

PyTorch hands float32 products to MKL, which takes its 256-bit kernels on every processor that is not Intel's. oneDNN,
which PyTorch carries as well (for bfloat16, and for its compiler), looks at what the processor can do: with AVX-512 on
AMD it is more than twice as fast, forward and backward. Values differ by rounding only. PyTorch offers that product
without a derivative; for a frozen weight there is just one, dx = dy W0.
"""

import functools
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional

# The first product of a shape prepares its kernel (about a millisecond); a small weight never earns that back. With
# AVX2 alone both libraries are equally fast, but for a language model's head, for which MKL takes 1.5 times as long.
_SMALLEST_WEIGHT, _SMALLEST_WITH_AVX2 = 2**16, 2**24


def wide_products(entries: int) -> bool:
    """Say whether float32 products with a weight of so many entries go through oneDNN here.

    Decided by the kind of processor and never by timing, so that equal seeds give equal bits.
    """
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
    """Return ``x Wᵀ + b`` without a derivative.

    Shapes: x (tokens, in), W (out, in) with any strides, b (out,).
    """
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
    """Let the frozen linear layers of a PEFT model compute through `FrozenLinear`, where that is faster, in place.

    Parts of LoRA layers stay as they are: `tasks.speed.fused_lora` takes care of them.
    """
    from peft.tuners.lora.layer import LoraLayer  # two seconds of imports, not for those who only ask what a layer is

    layers: list[Any] = [layer for layer in model.modules() if isinstance(layer, LoraLayer)]
    for module in set(model.modules()).difference(*(layer.modules() for layer in layers)):
        frozen = type(module) is nn.Linear and not module.weight.requires_grad
        if frozen and wide_products(module.weight.numel()):
            module.__class__ = FrozenLinear


def _one_dnn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    library: Any = torch.ops.mkldnn
    y: Tensor = library._linear_pointwise(x, weight, bias, "none", [], "")
    return y
