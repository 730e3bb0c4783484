"""The loss of a causal model's tokens: PyTorch's numbers in less memory."""

import pytest
import torch
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from tasks.scoring.evaluation import task_loss

TOKENS, WORDS = 50, 49_152  # more than two parts


def _logits(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn((TOKENS, WORDS), generator=generator).mul_(4).to(dtype).requires_grad_()
    return logits, torch.randint(0, WORDS, (TOKENS,), generator=generator)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loss_and_gradient_of_tokens_are_pytorchs_bit_for_bit(dtype: torch.dtype) -> None:
    logits, labels = _logits(dtype)
    expected = functional.cross_entropy(logits.float(), labels)
    (slope,) = torch.autograd.grad(expected, logits)
    found = task_loss(logits, labels, "causal")
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
    assert torch.equal(torch.autograd.grad(found, logits)[0], slope)
    quarter = torch.autograd.grad(task_loss(logits, labels, "causal") * 0.25, logits)[0]  # of four equal parts
    torch.testing.assert_close(quarter, slope / 4)


def test_a_single_token_has_a_loss() -> None:
    logits, labels = _logits(torch.float32)
    expected = functional.cross_entropy(logits[:1], labels[:1])
    assert torch.equal(task_loss(logits[:1], labels[:1], "causal"), expected)


def _peak_bytes(own: bool) -> int:
    """Return the most memory that tensors held at a time, beyond the logits."""
    logits, labels = _logits(torch.bfloat16)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as run:
        loss = task_loss(logits, labels, "causal") if own else functional.cross_entropy(logits.float(), labels)
        loss.backward()  # type: ignore[no-untyped-call]
    held = peak = 0
    for event in run.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def test_the_loss_of_tokens_needs_less_than_half_of_pytorchs_memory() -> None:
    assert _peak_bytes(own=True) < _peak_bytes(own=False) / 2
