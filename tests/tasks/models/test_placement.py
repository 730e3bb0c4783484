"""Which device a model is computed on."""

from __future__ import annotations

import pytest
import torch

from tasks.models.placement import pick_device
from tasks.settings import ComputeSettings, ModelError


@pytest.mark.parametrize(
    ("asked", "gpus", "device"),
    [("auto", 0, "cpu"), ("auto", 2, "cuda"), ("cpu", 2, "cpu"), ("cuda", 1, "cuda"), ("cuda:1", 2, "cuda:1")],
)
def test_a_gpu_is_taken_by_its_name(asked: str, gpus: int, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert pick_device(ComputeSettings(device=asked)) == torch.device(device)


@pytest.mark.parametrize(("asked", "gpus"), [("cuda", 0), ("cuda:1", 0), ("cuda:2", 2)])
def test_a_gpu_that_is_not_there_is_one_line(asked: str, gpus: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with pytest.raises(ModelError, match=f"training.device={asked}: expected a GPU .*found {gpus or 'none'}"):
        pick_device(ComputeSettings(device=asked))
