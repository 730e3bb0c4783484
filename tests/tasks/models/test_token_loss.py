"""The loss of a causal model's tokens: PyTorch's numbers in less memory."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from tasks.data.examples import Batch
from tasks.models.build import build_model
from tasks.models.token_loss import token_loss
from tasks.scoring.evaluation import batch_loss, task_loss
from tasks.settings import LoraSettings
from tests.support.causal import tiny_causal

TOKENS, WORDS, HIDDEN = 90, 49_152, 8  # more than two parts


def _rows(width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn((TOKENS, width), generator=generator).mul_(4).to(dtype).requires_grad_()
    return rows, torch.randint(0, WORDS, (TOKENS,), generator=generator)


def _head(dtype: torch.dtype) -> nn.Linear:
    torch.manual_seed(4)
    return nn.Linear(HIDDEN, WORDS).to(dtype).requires_grad_(False)


@pytest.mark.parametrize("tokens", [1, TOKENS])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("with_head", [True, False])
def test_loss_and_gradient_of_tokens_are_pytorchs(
    with_head: bool, dtype: torch.dtype, close: float, tokens: int
) -> None:
    head = _head(dtype) if with_head else None
    rows, labels = (each[:tokens] for each in _rows(HIDDEN if with_head else WORDS, dtype))
    wide = torch.promote_types(dtype, torch.float32)
    expected = functional.cross_entropy((rows if head is None else head(rows)).to(wide), labels)
    (slope,) = torch.autograd.grad(expected, rows)
    before = rows.detach().clone()
    found = token_loss(rows, labels, head)
    assert found.dtype == wide and torch.equal(rows, before)
    torch.testing.assert_close(found, expected, rtol=1e-5 if dtype != torch.float64 else close, atol=0)
    (quarter,) = torch.autograd.grad(found * 0.25, rows)  # of four equal parts
    assert (4 * quarter - slope).norm() <= close * slope.norm()


@pytest.mark.parametrize(("architecture", "plain"), [("llama", True), ("gemma2", False), ("granite", False)])
def test_a_model_whose_logits_are_scaled_or_capped_has_the_same_loss(
    architecture: str, plain: bool, tmp_path: Path
) -> None:
    model = build_model(tiny_causal(architecture, tmp_path), LoraSettings(r=2), num_outputs=1, kind="causal")
    assert model.base_model.model.plain_head is plain
    ids = torch.arange(24).view(3, 8)
    predict = ids % 8 > 3
    batch = Batch({"input_ids": ids, "attention_mask": torch.ones_like(ids), "predict": predict}, ids[predict] + 1)
    torch.testing.assert_close(batch_loss(model, batch), task_loss(model(**batch.inputs), batch.labels, "causal"))


def _peak_bytes(compute: Callable[[Tensor, Tensor, nn.Linear], Tensor]) -> int:
    """Return the most memory that tensors held at a time."""
    (rows, labels), head = _rows(HIDDEN, torch.float32), _head(torch.float32)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as run:
        compute(rows, labels, head).backward()  # type: ignore[no-untyped-call]
    held = peak = 0
    for event in run.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def test_logits_never_exist_all_at_once() -> None:
    assert _peak_bytes(token_loss) < 0.7 * TOKENS * WORDS * 4
    assert _peak_bytes(lambda rows, labels, head: functional.cross_entropy(head(rows), labels)) > 2 * TOKENS * WORDS * 4
