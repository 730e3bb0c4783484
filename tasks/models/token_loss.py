"""The loss of a causal model's tokens and its derivative at once, part by part, so that few logits exist at a time."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

# Bytes of the logits that exist at a time (in bfloat16, of a vocabulary of 49,152 words, 85 tokens on a CPU, 682
# elsewhere), and how many of them a pass takes at a time, which then stay in the processor's cache.
_PART, _PART_ON_GPU, _PASS = 2**23, 2**26, 2**18


class _TokenLoss(Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, labels: Tensor, head: Callable[[Tensor], Tensor], vocabulary: int) -> Tensor:
        slope, losses = torch.empty_like(rows), []
        room = _PART if rows.device.type == "cpu" else _PART_ON_GPU
        size = max(1, room // (vocabulary * rows.element_size()))
        for part, wanted, out in zip(*(torch.split(each, size) for each in (rows, labels, slope)), strict=True):
            losses.append(_part_loss(part, wanted, head, 1 / len(labels), out))
        ctx.save_for_backward(slope)
        return torch.cat(losses).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.saved_tensors[0] * scale, None, None, None


def _part_loss(rows: Tensor, labels: Tensor, head: Callable[[Tensor], Tensor], share: float, slope: Tensor) -> Tensor:
    """Return the cross entropy of each row, and write ``share`` times its derivative into ``slope``."""
    with torch.enable_grad():
        known = rows.detach().requires_grad_()
        logits = head(known)  # (rows, vocabulary)
    steep = logits.detach()
    losses = _losses(steep, labels, share)
    slope.copy_(torch.autograd.grad(logits, known, steep)[0])
    return losses


def _losses(logits: Tensor, labels: Tensor, share: float) -> Tensor:
    """Return the cross entropy of each row; ``share`` times its derivative takes the place of the logits."""
    losses, size = [], max(1, _PASS // logits.shape[1])
    wide = torch.promote_types(logits.dtype, torch.float32)
    for own, wanted in zip(*(torch.split(each, size) for each in (logits, labels)), strict=True):
        part = own.to(wide)  # of float32 no copy
        total, right = part.logsumexp(dim=1, keepdim=True), wanted[:, None]  # (rows, 1)
        losses.append((total - part.gather(1, right))[:, 0])
        part.sub_(total).exp_().mul_(share)
        part.scatter_add_(1, right, torch.full_like(total, -share))
        if part is not own:
            own.copy_(part)
    return torch.cat(losses)


def token_loss(rows: Tensor, labels: Tensor, head: Any = None) -> Tensor:
    """Return the mean cross entropy of tokens in float32, or in float64 where the logits are.

    ``rows`` are what a head makes logits of, (tokens, hidden), or, without a ``head``, the logits (tokens, vocabulary)
    of any number type; ``labels`` (tokens,). PyTorch's own loss keeps the logits of all tokens three times in float32
    while it derives. The head's weights get no derivative.
    """
    # A copy of given logits: what the derivative overwrites is another's.
    of_head = (torch.clone, rows.shape[1]) if head is None else (head, len(head.weight))
    loss: Tensor = _TokenLoss.apply(rows, labels, *of_head)  # type: ignore[no-untyped-call]
    return loss
