"""What a model is called with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

IndexArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """Keyword arguments of the model, and the labels its outputs are compared with."""

    inputs: dict[str, Any]
    labels: Tensor

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch on another device."""
        moved = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in self.inputs.items()}
        return Batch(moved, self.labels.to(device))
