"""FedProx's penalty and LoRA+'s rates against plain NumPy, and what a whole round makes of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from client_app.training import parameter_groups, proximal


def test_two_proximal_steps_equal_numpy() -> None:
    rng, mu, lr = np.random.default_rng(0), 0.7, 0.1
    w0, target = rng.standard_normal((2, 3, 4))
    w = torch.nn.Parameter(torch.from_numpy(w0.copy()))
    start, optimizer = [w.detach().clone()], torch.optim.SGD([w], lr=lr)
    for _ in range(2):
        optimizer.zero_grad()
        (0.5 * (w - torch.from_numpy(target)).square().sum() + proximal([w], start, mu)).backward()
        optimizer.step()
    first = w0 - lr * (w0 - target)  # at the received weights the penalty has no gradient
    second = first - lr * ((first - target) + mu * (first - w0))
    np.testing.assert_allclose(w.detach().numpy(), second, rtol=1e-12)
    assert float(proximal([w], start, mu)) == pytest.approx(mu / 2 * np.square(second - w0).sum())


@pytest.mark.parametrize(("ratio", "groups"), [(1.0, 2), (16.0, 3)])
def test_lora_plus_gives_lora_B_a_rate_of_its_own(ratio: float, groups: int) -> None:
    names = ("a.lora_A", "a.lora_B", "b.lora_A", "b.lora_B", "head.weight")
    parameters = {name: torch.nn.Parameter(torch.ones(1)) for name in names}
    settings = cast(Any, SimpleNamespace(lr=0.01, loraplus_lr_ratio=ratio, head_lr=0.5))
    found = parameter_groups(parameters, settings, 0.5)
    assert len(found) == groups
    rate = {id(value): group["lr"] for group in found for value in group["params"]}
    assert [rate[id(parameters[name])] for name in names] == [0.005, 0.005 * ratio, 0.005, 0.005 * ratio, 0.25]
